//! Two machines with a worker each, of which one is killed, stopped or halted at a time:
//! while the other lives, every stream ends whole and says all of its words.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use e2e::{Pair, Process, told, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::nemesis::{StopAtEnd, pass};
use crate::requests::{CHAT, CONTINUED, metric};
use crate::volume;

const CLIENTS: u64 = 4;
/// Contacts that are short enough to wait for, and no end of restarts.
const HIVE: &str = "heartbeat_interval_seconds = 1\nidle_stop_seconds = 0\n\
                    [restart]\ndelay_ms = 100\ndelay_max_ms = 100\nfailures_max = 1000\n";
/// Two intervals, the question to one that is silent, its end, and a busy machine.
const REPLACED: Duration = Duration::from_secs(40);

/// Reads streams until told to stop; whatever is not whole is noted.
fn client(
    pair: &Pair,
    seed: u64,
    stop: &AtomicBool,
    whole: &AtomicU64,
    wrong: &Mutex<Vec<String>>,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    let queen = pair.cluster.queen();
    while !stop.load(Ordering::Relaxed) {
        let (tokens, name) = (random.usize(1..150), random.u32(..));
        let body = json!({"model": pair.model(), "stream": true,
            "stream_options": {"include_usage": true}, "messages": [{"role": "user",
            "content": format!("[[tokens={tokens} delay_ms=10]] a{name} b{name} c{name}")}]});
        let words: Vec<String> =
            ["a", "b", "c"].iter().cycle().take(tokens).map(|w| format!("{w}{name}")).collect();
        let seen = match queen.try_stream(CHAT, &body) {
            Some((200, events)) => told(&events.collect::<Vec<_>>()),
            Some((status, _)) => Err(format!("status {status}")),
            None => Err("no reply".to_owned()),
        };
        match seen {
            Ok(seen) if says(&seen, &words) => {
                whole.fetch_add(1, Ordering::Relaxed);
            }
            Ok(seen) => wrong.lock().expect("a list").push(format!("{tokens} of {name}: {seen}")),
            Err(why) => wrong.lock().expect("a list").push(format!("{tokens} of {name}: {why}")),
        }
    }
}

fn says(seen: &Value, words: &[String]) -> bool {
    let text = seen["texts"][0].as_str().unwrap_or_default();
    text.split_whitespace().eq(words.iter().map(String::as_str))
        && seen["usage"] == json!([words.len()])
}

/// Does one thing to one worker, and waits until there are two again.
fn strike(pair: &Pair, random: &mut fastrand::Rng, deed: usize) -> &'static str {
    let workers = pair.worker_processes();
    let victim = &workers[random.usize(0..workers.len())];
    let done = match deed % 3 {
        0 => {
            victim.signal(Signal::STOP);
            wait_until("the halted worker is ended", REPLACED, || is_gone(pair, victim));
            "halted"
        }
        1 => {
            victim.signal(Signal::KILL);
            wait_until("the killed worker is gone", REPLACED, || is_gone(pair, victim));
            "killed"
        }
        _ => {
            victim.signal(Signal::STOP);
            pass(Duration::from_millis(random.u64(50..1200)));
            victim.signal(Signal::CONT);
            "stopped"
        }
    };
    wait_until("two workers are ready", REPLACED, || {
        pair.worker_processes().len() == 2 && pair.ready() == 2
    });
    done
}

fn is_gone(pair: &Pair, process: &Process) -> bool {
    pair.worker_processes().iter().all(|living| living.pid != process.pid)
}

#[test]
fn streams_end_whole_under_random_faults_while_another_worker_lives() {
    let seed = fastrand::u64(..);
    volume::figure("soak of streams, seed", seed);
    let pair = Pair::echo(HIVE);
    let (stop, whole, wrong) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    let mut deeds = BTreeMap::<&str, u32>::new();
    let (start, time) = (SystemTime::now(), volume::soak_time());
    std::thread::scope(|scope| {
        let _end = StopAtEnd(&stop);
        for number in 0..CLIENTS {
            let (pair, stop, whole, wrong) = (&pair, &stop, &whole, &wrong);
            scope.spawn(move || client(pair, seed ^ number, stop, whole, wrong));
        }
        let mut random = fastrand::Rng::with_seed(seed);
        for deed in 0.. {
            *deeds.entry(strike(&pair, &mut random, deed)).or_default() += 1;
            if start.elapsed().is_ok_and(|passed| passed >= time) {
                break;
            }
            pass(Duration::from_millis(random.u64(100..1500)));
        }
    });
    let (whole, wrong) = (whole.into_inner(), wrong.into_inner().expect("a list"));
    let continued = metric(&pair.cluster.queen().get("/metrics").body, CONTINUED);
    volume::figure("soak of streams, what was done", format!("{deeds:?}"));
    let streams = whole + wrong.len() as u64;
    let figures = format!("{whole} of {streams} whole, {continued} went on at another worker");
    volume::figure("soak of streams", figures);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(continued >= 1.0, "no stream was struck");
}
