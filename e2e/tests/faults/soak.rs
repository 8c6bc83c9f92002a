//! Everything at once for a while: clients of all manners, and a nemesis that kills,
//! stops, halts and wakes at random. Every request ends exactly once, nobody panics, and what
//! the daemons hold does not grow. `make soak` runs it for an hour.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use e2e::holds_within;

use crate::agreement::assert_agreement;
use crate::figures::Holds;
use crate::nemesis::{Nemesis, Reach, StopAtEnd, pass};
use crate::requests::{Ending, Manner, ask, under_way};
use crate::site::{HIVE, LIMIT, QUEEN, Site};
use crate::volume;

const CLIENTS: u64 = 6;
const MODELS: [&str; 3] = ["red", "green", "blue"];
/// Longest round: daemons that are killed in its first third, and live through the rest.
const ROUND_MAX: Duration = Duration::from_secs(600);
/// What a daemon may hold more at the end of a round than after its first third: kept
/// connections, threads for calls that block, and what an allocator keeps.
const DESCRIPTORS_MORE_MAX: usize = 64;
const THREADS_MORE_MAX: usize = 12;
const MEMORY_MORE_KIB_MAX: u64 = 16 * 1024;

/// Pauses and a breaker that a model gets through within the time it is waited for.
const RESTART: &str = "[restart]\ndelay_ms = 100\ndelay_max_ms = 1000\nwindow_seconds = 10\n\
                       healthy_seconds = 10\nprobe_delays_ms = [2000, 4000]\n";

/// A worker that was halted while it loaded is not waited for.
const LOAD: &str = "load_stall_seconds = 3\n";
/// A request ends before its client gives up, even if one worker after another is halted.
const REQUEST: &str = "request_timeout_seconds = 20\n";

/// What clients have seen so far.
#[derive(Default)]
struct Tally {
    endings: Mutex<BTreeMap<String, u64>>,
    wrong: Mutex<Vec<String>>,
}

impl Tally {
    fn add(&self, ending: &Ending) {
        let name = match ending {
            Ending::Done => "done".to_owned(),
            Ending::Left => "left".to_owned(),
            Ending::Refused(code) => format!("refused: {code}"),
            Ending::Broken(_) => "broken with the queen".to_owned(),
        };
        *self.endings.lock().expect("a tally").entry(name).or_default() += 1;
    }
}

/// Sends requests until told to stop. One may break only when a queen ended meanwhile.
fn client(site: &Site, seed: u64, stop: &AtomicBool, queens: &AtomicU64, tally: &Tally) {
    let mut random = fastrand::Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let manner = match random.u8(0..4) {
            0 => Manner::Whole,
            1 => Manner::Leave(random.usize(0..10)),
            _ => Manner::Stream,
        };
        let model = MODELS[random.usize(0..MODELS.len())];
        let before = queens.load(Ordering::SeqCst);
        let ending = ask(site, model, manner, random.u32(1..40), Duration::from_millis(5));
        let is_queens = before % 2 == 1 || queens.load(Ordering::SeqCst) != before;
        if let Ending::Broken(why) = &ending
            && !is_queens
        {
            tally.wrong.lock().expect("a tally").push(format!("{manner:?} of {model}: {why}"));
        }
        tally.add(&ending);
        if !matches!(ending, Ending::Done | Ending::Left) {
            pass(Duration::from_millis(random.u64(1..100)));
        }
    }
}

/// Lets clients and nemesis loose for a time, then waits until all is calm.
fn phase(nemesis: &mut Nemesis<'_>, reach: Reach, time: Duration, tally: &Tally) {
    let stop = AtomicBool::new(false);
    let queens = AtomicU64::new(0);
    let seed = nemesis.random.u64(..);
    let site = nemesis.site;
    std::thread::scope(|scope| {
        let _end = StopAtEnd(&stop);
        for number in 0..CLIENTS {
            let (stop, queens) = (&stop, &queens);
            scope.spawn(move || client(site, seed ^ number, stop, queens, tally));
        }
        let start = SystemTime::now();
        while start.elapsed().is_ok_and(|passed| passed < time) {
            nemesis.act(reach, &queens);
        }
    });
    let wrong = tally.wrong.lock().expect("a tally");
    assert!(wrong.is_empty(), "{} requests did not end: {wrong:?}", wrong.len());
    for model in MODELS {
        assert_serves(site, model);
    }
    let mut last = None;
    let calm = holds_within(LIMIT, || {
        last = under_way(site);
        last.is_none()
    });
    assert!(calm, "{last:?}");
    assert_agreement(site, "after the chaos");
}

/// A model is served again within a minute: pauses between restarts grow.
fn assert_serves(site: &Site, model: &str) {
    let mut last = None;
    let serves = holds_within(Duration::from_secs(120), || {
        let ending = ask(site, model, Manner::Whole, 1, Duration::ZERO);
        let is_done = ending == Ending::Done;
        last = Some(ending);
        is_done
    });
    assert!(serves, "{model}: {last:?}");
}

fn assert_no_growth(nemesis: &Nemesis<'_>, before: &[(u32, Holds)]) {
    for (pid, before) in before {
        let now = Holds::of(*pid).expect("a daemon that nobody has killed");
        let what = format!("{}: {before:?}, then {now:?}", nemesis.name_of(*pid));
        volume::figure("soak", &what);
        assert!(now.descriptors <= before.descriptors + DESCRIPTORS_MORE_MAX, "{what}");
        assert!(now.threads <= before.threads + THREADS_MORE_MAX, "{what}");
        assert!(now.memory_kib <= before.memory_kib + MEMORY_MORE_KIB_MAX, "{what}");
    }
}

#[test]
fn under_random_faults_every_request_ends_once_and_nothing_grows() {
    let seed = fastrand::u64(..);
    volume::figure("soak, seed", seed);
    let site = Site::with(&format!("{LOAD}{HIVE}{RESTART}"), &format!("{QUEEN}{REQUEST}"));
    let mut nemesis = Nemesis::new(&site, seed);
    for model in MODELS {
        site.cluster.import_tiny(model);
    }
    let (tally, start, whole) = (Tally::default(), SystemTime::now(), volume::soak_time());
    while let Some(rest) = whole.checked_sub(start.elapsed().expect("a clock")) {
        let round = rest.min(ROUND_MAX);
        phase(&mut nemesis, Reach::Everybody, round / 3, &tally);
        let before = nemesis.daemons();
        phase(&mut nemesis, Reach::Workers, round * 2 / 3, &tally);
        assert_no_growth(&nemesis, &before);
        site.assert_no_panic("soak");
    }
    volume::figure("soak, what was done", format!("{:?}", nemesis.deeds));
    volume::figure("soak, streams that went on at another worker", nemesis.continued());
    let endings = tally.endings.into_inner().expect("a tally");
    volume::figure("soak, how requests ended", format!("{endings:?}"));
    assert!(endings.get("done").is_some_and(|done| *done > 0), "{endings:?}");
}
