//! The end of everything: the queen takes her hive along and the hive its workers, within the queen's time, also when a
//! worker obeys nobody.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use e2e::{Cluster, bin, holds_within, wait_until};
use rustix::process::Signal;
use serde_json::json;

/// Left alone, a hive waits for longer than this until it kills a worker that hangs.
const GRACE: &str = "stop_grace_seconds = 13\n";

/// A cluster with a worker that answers, for `tiny`, and one that obeys nothing, for `hung`.
fn with_a_worker_that_hangs(queen: &str) -> (Cluster, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a folder");
    // The kernel calls a script by its file's name, and by that name the cluster finds its processes.
    let script = directory.path().join("llm-worker-rbee");
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in\n*'--model-name hung'*)\n  read secrets\n  trap '' TERM INT HUP\n  \
         while :; do sleep 1; done;;\nesac\nexec {} \"$@\"\n",
        bin("llm-worker-rbee").display()
    );
    fs::write(&script, text).expect("a script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("a program");
    let cluster = Cluster::echo()
        .env("RBEE_HIVE_WORKER_PATH", script.to_str().expect("a UTF-8 path"))
        .config("rbee-hive", GRACE)
        .config("queen-rbee", queen);
    cluster.import_tiny("tiny");
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    cluster.import_tiny("hung");
    let started = cluster.hive().post("/api/v1/workers", &json!({"model": "hung"}));
    assert_eq!(started.status, 200, "{}", started.body);
    wait_until("two workers run", Duration::from_secs(10), || cluster.processes().len() == 4);
    (cluster, directory)
}

fn since(begun: SystemTime) -> Duration {
    begun.elapsed().expect("a clock that goes forward")
}

fn hive_log(cluster: &Cluster) -> String {
    fs::read_to_string(cluster.home().join("logs/rbee-hive.log")).expect("a log")
}

#[test]
fn a_queen_that_stops_gives_her_hive_the_time_that_is_left_of_hers() {
    let (cluster, _script) = with_a_worker_that_hangs("shutdown_timeout_seconds = 6\n");
    let begun = SystemTime::now();
    cluster.process("queen-rbee").signal(Signal::TERM);
    cluster.wait_until_empty(Duration::from_secs(30));
    assert!(since(begun) < Duration::from_secs(11), "{:?}", since(begun));
    let log = hive_log(&cluster);
    assert!(log.contains("graceful=1 forced=1"), "{log}");
}

#[test]
fn a_second_signal_ends_queen_hive_and_workers_at_once() {
    let (cluster, _script) = with_a_worker_that_hangs("");
    let queen = cluster.process("queen-rbee");
    queen.signal(Signal::TERM);
    wait_until("the obedient worker is gone", Duration::from_secs(10), || {
        hive_log(&cluster).contains("ended=1 of=2")
    });
    let begun = SystemTime::now();
    queen.signal(Signal::TERM);
    cluster.wait_until_empty(Duration::from_secs(30));
    assert!(since(begun) < Duration::from_secs(3), "{:?}", since(begun));
    let log = hive_log(&cluster);
    assert!(log.contains("graceful=1 forced=1") && log.contains("hastened=true"), "{log}");
}

/// A cluster with a worker that nobody but a hive can end in time.
fn with_a_worker(queen: &str) -> Cluster {
    let cluster = Cluster::echo().config("queen-rbee", queen);
    cluster.import_tiny("tiny");
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    cluster
}

fn kill_hive(cluster: &Cluster) {
    let hive = cluster.process("rbee-hive");
    hive.signal(Signal::KILL);
    wait_until("the hive is dead", Duration::from_secs(10), || {
        cluster.processes().iter().all(|process| process.pid != hive.pid || process.state == 'Z')
    });
}

#[test]
fn a_queen_that_stops_right_after_her_hive_was_killed_leaves_no_worker() {
    // Once, the next hive is started at once; twice, the queen is in a pause before the next start.
    for kills in [1, 2] {
        let cluster = with_a_worker("");
        for _ in 0..kills {
            kill_hive(&cluster);
        }
        let begun = SystemTime::now();
        drop(cluster.rbee(&["queen", "stop"]).ok());
        let left: Vec<_> = cluster.processes().into_iter().map(|left| left.program).collect();
        assert_eq!(left, [""; 0], "{kills}: {}", hive_log(&cluster));
        assert!(since(begun) < Duration::from_secs(20), "{kills}: {:?}", since(begun));
    }
}

#[test]
fn a_hive_that_is_killed_while_it_ends_leaves_no_worker_either() {
    let (cluster, _script) = with_a_worker_that_hangs("");
    let queen = cluster.process("queen-rbee");
    queen.signal(Signal::TERM);
    wait_until("the hive ends its workers", Duration::from_secs(10), || {
        hive_log(&cluster).contains("hive stops its workers")
    });
    kill_hive(&cluster);
    queen.signal(Signal::TERM);
    cluster.wait_until_empty(Duration::from_secs(30));
}

/// The whole time of a queen whose hive hangs, and what is told of it.
const SIXTEEN: (&str, Duration) = ("shutdown_timeout_seconds = 16\n", Duration::from_secs(16));

#[test]
fn a_hive_that_stands_still_is_woken_up_and_ends_with_its_workers_in_the_queens_time() {
    let (settings, limit) = SIXTEEN;
    let cluster = with_a_worker(settings);
    let queen = cluster.process("queen-rbee");
    cluster.process("rbee-hive").signal(Signal::STOP);
    let begun = SystemTime::now();
    queen.signal(Signal::TERM);
    cluster.wait_until_empty(Duration::from_secs(60));
    assert!(since(begun) < limit, "{:?}", since(begun));
    assert!(hive_log(&cluster).contains("graceful=1 forced=0"), "{}", hive_log(&cluster));
}

#[test]
fn a_hive_that_hangs_is_killed_in_time_for_another_one_to_end_its_workers() {
    let (settings, limit) = SIXTEEN;
    let cluster = with_a_worker(settings);
    let queen = cluster.process("queen-rbee");
    let hive = cluster.process("rbee-hive");
    // Its stream takes as much of the queen's time as a request may.
    let mut keeper = cluster
        .command("rbee", &["infer", "-m", "tiny", "-p", "[[tokens=100000 delay_ms=20]] word"]);
    let mut keeper = keeper.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("rbee");
    wait_until("the stream runs", Duration::from_secs(10), || {
        cluster.queen().get("/api/v1/status").json()["requests_running"] == 1
    });
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                hive.signal(Signal::STOP);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        let begun = SystemTime::now();
        queen.signal(Signal::TERM);
        let ended = holds_within(Duration::from_secs(60), || {
            keeper.try_wait().expect("a child").is_some() && cluster.processes().is_empty()
        });
        is_over.store(true, Ordering::Relaxed);
        assert!(ended && since(begun) < limit, "{:?}: {:?}", since(begun), cluster.processes());
    });
    let log = fs::read_to_string(cluster.home().join("logs/queen-rbee.log")).expect("a log");
    assert!(log.contains("is killed") && log.contains("another one ends its workers"), "{log}");
}
