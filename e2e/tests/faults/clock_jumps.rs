//! Wall clocks that are wrong, or set while everything runs: nobody is taken for dead,
//! requests have the time that they were given, and the audit log is whole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::{asks, told, wait_until};
use serde_json::{Value, json};

use crate::agreement::assert_agreement;
use crate::clock_shim::{Clock, Shim};
use crate::nemesis::{StopAtEnd, pass};
use crate::requests::CHAT;
use crate::site::{Daemon, LIMIT, Site};
use crate::volume;

const ROW: &str = "clocks that jump";
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// More than four heartbeats, after which a machine would be stale.
const LONG: Duration = Duration::from_millis(4500);
/// The time that a request is given, and how much later its client may know that it is over.
const GIVEN: Duration = Duration::from_secs(1);
const LATER_MAX: Duration = Duration::from_secs(2);

struct Stage {
    site: Site,
    _queen: Daemon,
    hive: Daemon,
    clocks: [Clock; 2],
    whole: Value,
}

impl Stage {
    fn new(shim: &Shim) -> Self {
        let (site, clocks) = (Site::new(), ["hive", "queen"].map(|name| shim.clock(name)));
        let hive = started(&site, "rbee-hive", &clocks[0]);
        let queen = started(&site, "queen-rbee", &clocks[1]);
        site.cluster.import_tiny("tiny");
        assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
        let mut stage = Self { site, _queen: queen, hive, clocks, whole: Value::Null };
        stage.whole = stage.streamed(|| {});
        stage
    }

    /// Reads a stream and sets clocks in the middle of it.
    fn streamed(&self, mut set: impl FnMut()) -> Value {
        let body = asks("tiny", "[[tokens=40 delay_ms=10]] one two three four", &json!({}));
        let mut events = Vec::new();
        for event in self.site.to_queen().stream(CHAT, &body) {
            events.push(event);
            if events.len() == 10 {
                set();
            }
        }
        told(&events).expect("a whole stream")
    }

    fn set(&self, shifts: [i64; 2]) {
        self.clocks.iter().zip(shifts).for_each(|(clock, shift)| clock.set(shift));
    }

    fn state_of_hive(&self) -> Value {
        self.site.to_queen().get("/api/v1/hives").json()["hives"][0]["state"].clone()
    }

    fn pids(&self) -> Vec<u32> {
        self.site.cluster.processes().iter().map(|process| process.pid).collect()
    }

    /// A request ends when the time is over that it was given, and not before.
    fn assert_deadline_is_kept(&self, context: &str) {
        let start = SystemTime::now();
        let prompt = "[[tokens=100000 delay_ms=10]] word";
        let given = GIVEN.as_secs().to_string();
        let ended =
            self.site.cluster.rbee(&["infer", "-m", "tiny", "-p", prompt, "--timeout", &given]);
        let took = start.elapsed().expect("a clock");
        assert_ne!(ended.code, 0, "{context}: {ended:?}");
        assert!(took >= GIVEN && took < GIVEN + LATER_MAX, "{context}: {took:?}: {ended:?}");
    }
}

fn started(site: &Site, program: &str, clock: &Clock) -> Daemon {
    let daemon = site.launch(program, &clock.wrapper());
    let name = if program == "rbee-hive" { "hive" } else { "queen" };
    wait_until("the daemon serves", LIMIT, || site.serves(name, daemon.pid()));
    daemon
}

#[test]
fn clocks_that_jump_change_nothing() {
    let Some(shim) = Shim::make() else {
        volume::not_run(ROW, "there is no C compiler");
        return;
    };
    let mut stage = Stage::new(&shim);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let to_1970 = 600 - i64::try_from(now).expect("a time");
    // Of the hive and of the queen; each round jumps from what the last one left.
    let shifts = [
        [DAY, to_1970],
        [to_1970, HOUR],
        [HOUR, 0],
        [-HOUR, 0],
        [0, HOUR],
        [0, -HOUR],
        [-DAY, DAY],
        [to_1970, to_1970],
        [DAY, 0],
        [0, DAY],
        [0, 0],
    ];
    let before = stage.pids();
    for shifts in &shifts[..volume::of(2, shifts.len())] {
        let context = format!("the hive's clock {} s wrong, the queen's {}", shifts[0], shifts[1]);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = StopAtEnd(&is_over);
            let watched = scope.spawn(|| {
                let mut states = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    states.push(stage.state_of_hive());
                    pass(Duration::from_millis(50));
                }
                states
            });
            let start = SystemTime::now();
            assert_eq!(stage.streamed(|| stage.set(*shifts)), stage.whole, "{context}");
            stage.assert_deadline_is_kept(&context);
            pass(LONG.saturating_sub(start.elapsed().unwrap_or_default()));
            drop(stop);
            let states = watched.join().expect("a thread");
            assert!(states.iter().all(|state| state == "online"), "{context}: {states:?}");
        });
        assert_eq!(stage.pids(), before, "{context}: nobody is killed or started");
    }
    // Another hive, whose clock shows yet another time, has to be believed.
    stage.hive.kill();
    stage.set([-DAY, 0]);
    stage.hive = started(&stage.site, "rbee-hive", &stage.clocks[0]);
    wait_until("the queen knows it", LIMIT, || stage.state_of_hive() == "online");
    assert_eq!(stage.streamed(|| {}), stage.whole, "after a hive with a wrong clock took over");
    assert_agreement(&stage.site, ROW);
    let verified = stage.site.cluster.rbee(&["audit", "verify"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    stage.site.assert_no_panic(ROW);
}
