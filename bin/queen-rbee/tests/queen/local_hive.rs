//! The queen and the real hive that she starts.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deadline_propagation::Deadline;
use rbee_api::hive::{HiveSnapshot, Resources, SnapshotReply};
use rbee_home::Daemon;
use rbee_http::HopClient;
use rustix::process::{Pid, Signal, kill_process};
use secrets_management::Secret;
use tokio::time::Instant;

use crate::daemon::{Queen, TestHome, eventually};

/// A free port for the hive, so that tests do not meet each other.
const HIVE_PORT: (&str, &str) = ("RBEE_HIVE_BIND", "127.0.0.1:0");

/// A queen with a hive of her own, once both are up.
async fn queen_with_hive(home: &TestHome, settings: &str) -> Queen {
    let hive = Path::new(env!("CARGO_BIN_EXE_queen-rbee")).with_file_name("rbee-hive");
    assert!(hive.exists(), "build the hive first: cargo build --release -p rbee-hive");
    let queen = Queen::start_with(home, settings, &[HIVE_PORT]).await;
    online_hive(&queen, home).await;
    queen
}

/// Waits until a hive is online and returns its process id.
async fn online_hive(queen: &Queen, home: &TestHome) -> u32 {
    eventually("the hive is online", async || {
        let hives = queen.get_json("/api/v1/hives").await;
        let run = home.home.read_run_file(Daemon::Hive).unwrap()?;
        let hive = &hives["hives"][0];
        (hive["state"] == "online" && hive["url"] == run.url).then_some(run.pid)
    })
    .await
}

fn is_there(pid: u32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn sigterm_takes_the_hive_along_and_leaves_nothing() {
    let home = TestHome::new();
    let mut queen = queen_with_hive(&home, "").await;
    let run = home.home.read_run_file(Daemon::Hive).unwrap().unwrap();
    assert!(is_there(run.pid));
    queen.signal(Signal::TERM);
    assert_eq!(queen.ended().await.code(), Some(0), "{}", home.log());
    assert!(!is_there(run.pid), "the hive outlived the queen");
    assert!(TcpStream::connect(run.url.strip_prefix("http://").unwrap()).is_err());
    let mut left: Vec<_> = fs::read_dir(home.home.run_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["hive.lock", "queen.lock"]);
}

#[tokio::test]
async fn a_hive_that_stands_still_ends_with_its_queen_and_in_her_time() {
    let home = TestHome::new();
    let mut queen = queen_with_hive(&home, "shutdown_timeout_seconds = 8\n").await;
    let hive = online_hive(&queen, &home).await;
    signal(hive, Signal::STOP);
    let begun = Instant::now();
    queen.signal(Signal::TERM);
    assert_eq!(queen.ended().await.code(), Some(0), "{}", home.log());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(!is_there(hive), "the hive outlived the queen");
    assert!(!home.log().contains("is killed"), "{}", home.log());
}

#[tokio::test]
async fn a_hive_that_is_killed_is_replaced_and_leaves_no_zombie() {
    let home = TestHome::new();
    let queen = queen_with_hive(&home, "").await;
    let first = online_hive(&queen, &home).await;
    kill(first);
    let second = eventually("another hive is online", async || {
        Some(online_hive(&queen, &home).await).filter(|pid| *pid != first)
    })
    .await;
    assert!(is_there(second));
    assert!(!is_there(first), "the first one was not waited for");
}

#[tokio::test]
async fn the_next_queen_takes_over_the_hive_of_one_that_was_killed_and_stops_it() {
    let home = TestHome::new();
    let mut first = queen_with_hive(&home, "").await;
    let hive = online_hive(&first, &home).await;
    kill(first.pid());
    first.ended().await;
    assert!(is_there(hive));
    let mut second = queen_with_hive(&home, "").await;
    assert_eq!(online_hive(&second, &home).await, hive, "it was not started anew");
    second.signal(Signal::TERM);
    assert_eq!(second.ended().await.code(), Some(0));
    assert!(!home.home.is_running(Daemon::Hive).unwrap(), "it was started by a queen");
}

#[tokio::test]
async fn a_hive_is_believed_whatever_its_clock_says() {
    /// What tells the reports of another process apart.
    const CORES: u32 = 77_777;
    let home = TestHome::new();
    let queen = queen_with_hive(&home, "heartbeat_interval_seconds = 1\n").await;
    let token = Arc::new(Secret::from_bytes(home.hive_token().as_bytes(), "test").unwrap());
    let as_hive = HopClient::new(&queen.url, token).unwrap();
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
    let epoch = u64::try_from(tomorrow.duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
    // What a hive has reported that was started before the clock was set back.
    let report = async |sequence| {
        let snapshot = HiveSnapshot {
            epoch,
            sequence,
            draining: false,
            plain_http_on_network: false,
            resources: Resources { cores: CORES, ..Resources::default() },
            models: Vec::new(),
            workers: Vec::new(),
        };
        let deadline = Deadline::after(Duration::from_secs(10));
        let path = "/api/v1/hives/local/heartbeat";
        let reply: SnapshotReply = as_hive.post(path, &snapshot, deadline).await.unwrap();
        reply.epoch
    };
    let listed = async || queen.get_json("/api/v1/hives").await["hives"][0].clone();
    assert_eq!(report(1).await, epoch);
    let is_itself = async || {
        let hive = listed().await;
        (hive["state"] == "online" && hive["resources"]["cores"] != CORES).then_some(())
    };
    eventually("the hive is believed", is_itself).await;
    assert!(report(2).await > epoch, "it comes too late");
    assert_eq!(is_itself().await, Some(()));
}
