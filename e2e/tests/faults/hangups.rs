//! SIGHUP, which asks a daemon to read its tokens again, a thousand times a second: nobody
//! ends by it, neither when it starts nor at work nor when it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use e2e::{holds_within, wait_until};
use rustix::process::Signal;

use crate::nemesis::StopAtEnd;
use crate::site::{Daemon, LIMIT, Site, signal_to};
use crate::volume;

const BURST: u64 = 10;

/// Sends bursts of SIGHUP until told to stop, a hundred bursts a second.
fn storm(pid: u32, is_over: &AtomicBool, sent: &AtomicU64) {
    while !is_over.load(Ordering::Relaxed) {
        (0..BURST).for_each(|_| signal_to(pid, Signal::HUP));
        sent.fetch_add(BURST, Ordering::Relaxed);
        holds_within(Duration::ZERO, || is_over.load(Ordering::Relaxed));
        holds_within(Duration::from_millis(1), || false);
    }
}

/// Starts a daemon on a home that is not there yet, and sends it SIGHUP without a pause
/// from the moment on that it has touched anything.
fn started_in_a_storm(site: &Site, program: &str, name: &str) -> Daemon {
    let home = site.cluster.home();
    let mut daemon = site.launch(program, &[]);
    let start = SystemTime::now();
    while !home.exists() {
        std::hint::spin_loop();
        assert!(start.elapsed().is_ok_and(|passed| passed < LIMIT), "{program} does nothing");
    }
    while !site.serves(name, daemon.pid()) {
        signal_to(daemon.pid(), Signal::HUP);
        let ended = daemon.ended();
        assert_eq!(ended, None, "{program} ended: {}", site.log(program));
        assert!(start.elapsed().is_ok_and(|passed| passed < LIMIT), "{program} does not serve");
    }
    daemon
}

fn survives(program: &str, name: &str) {
    for _ in 1..volume::of(6, 60) {
        let site = Site::new();
        let mut daemon = started_in_a_storm(&site, program, name);
        daemon.signal(Signal::TERM);
        assert!(daemon.wait("it ends", LIMIT).success());
        site.cluster.wait_until_empty(LIMIT);
    }
    let site = Site::new();
    let mut daemon = started_in_a_storm(&site, program, name);
    let (is_over, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let stop = StopAtEnd(&is_over);
        scope.spawn(|| storm(daemon.pid(), &is_over, &sent));
        site.cluster.import_tiny("tiny");
        let start = SystemTime::now();
        let long = Duration::from_secs(volume::of(1, 20));
        while start.elapsed().is_ok_and(|passed| passed < long) {
            let said = site.cluster.rbee(&["infer", "-m", "tiny", "-p", "still here"]);
            assert_eq!(said.ok().trim(), "still here");
        }
        signal_to(daemon.pid(), Signal::TERM);
        wait_until("it ends", LIMIT, || crate::tracing::is_dead(daemon.pid()));
        drop(stop);
    });
    let status = daemon.wait("it ends", LIMIT);
    assert!(status.success(), "{program}: {status}");
    volume::figure(&format!("SIGHUP to {program}"), sent.into_inner());
    site.assert_no_panic(program);
}

#[test]
fn a_storm_of_hangups_ends_no_hive() {
    survives("rbee-hive", "hive");
}

#[test]
fn a_storm_of_hangups_ends_no_queen() {
    survives("queen-rbee", "queen");
}
