//! How soon hive and queen know that a worker has ended.

use std::time::{Duration, SystemTime};

use e2e::{Http, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::Value;

use crate::figures::Spread;
use crate::site::{LIMIT, Site, is_ready, pid_of, signal_to};
use crate::volume;

/// Crashes without end, started anew at once. Heartbeats are as rare as by default, so that
/// none of them tells of an end.
const CONFIG: &str = "idle_stop_seconds = 0\n[worker]\ncache_ram_mib = 0\n\
                      [restart]\ndelay_ms = 1\ndelay_max_ms = 1\nfailures_max = 1000\n";
/// What is to hold for 99 of 100 ends on a quiet machine.
const BY_HIVE: Duration = Duration::from_millis(50);
const BY_QUEEN: Duration = Duration::from_millis(500);
/// So much longer may the slowest take on a machine that does something else too.
const MARGIN: u32 = 6;

#[test]
fn the_end_of_a_worker_is_known_at_once_to_hive_and_queen() {
    let site = Site::with(CONFIG, "drain_seconds = 2\n");
    let _queen = site.queen();
    site.cluster.import_tiny("tiny");
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    let (hive, queen) = (site.to_hive(), site.to_queen());
    let (mut by_hive, mut by_queen) = (Vec::new(), Vec::new());
    for _ in 0..volume::of(10, 100) {
        // Both know the same living worker.
        let worker = wait_for("a ready worker", LIMIT, || {
            let ready = workers(&queen).into_iter().find(is_ready)?;
            let same = workers(&hive).into_iter().find(|known| known["id"] == ready["id"])?;
            let lives = site.living("llm-worker-rbee").iter().any(|p| p.pid == pid_of(&same));
            (lives && is_ready(&same)).then_some(same)
        });
        let killed = SystemTime::now();
        signal_to(pid_of(&worker), Signal::KILL);
        let (hive_knew, queen_knew) = std::thread::scope(|scope| {
            let of_hive = scope.spawn(|| known_after(killed, &hive, &worker));
            let of_queen = known_after(killed, &queen, &worker);
            (of_hive.join().expect("the hive"), of_queen)
        });
        by_hive.push(hive_knew);
        by_queen.push(queen_knew);
    }
    let (by_hive, by_queen) = (Spread::of(&by_hive, 99), Spread::of(&by_queen, 99));
    volume::figure("an end known to the hive, p50 / p99 / max", by_hive.in_ms());
    volume::figure("an end known to the queen, p50 / p99 / max", by_queen.in_ms());
    for (spread, goal) in [(by_hive, BY_HIVE), (by_queen, BY_QUEEN)] {
        // Other work on the machine holds up a few of them, not half.
        assert!(spread.median <= goal && spread.high <= goal * MARGIN, "{spread:?}");
    }
}

/// Returns how long after a moment a daemon no longer lists the worker as ready.
fn known_after(moment: SystemTime, daemon: &Http, worker: &Value) -> Duration {
    wait_until("the end is known", LIMIT, || {
        !workers(daemon).iter().any(|known| known["id"] == worker["id"] && is_ready(known))
    });
    moment.elapsed().expect("a clock")
}

fn workers(daemon: &Http) -> Vec<Value> {
    daemon.get("/api/v1/workers").json()["workers"].as_array().expect("a list").clone()
}
