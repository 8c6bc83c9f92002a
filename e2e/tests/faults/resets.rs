//! Connections that are reset in the middle of a stream: it goes on at the same worker, which
//! lives, and ends whole; its slot is free afterwards.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use e2e::{address_of, asks, told, wait_until};
use serde_json::{Value, json};

use crate::figures::Spread;
use crate::requests::{CHAT, CONTINUED, metric, under_way};
use crate::site::{LIMIT, QUEEN, Site};
use crate::volume;

const ROW: &str = "connections reset under a stream";
/// Heartbeats are rare: the connections of a hive are the stream's.
const HIVE: &str = "idle_stop_seconds = 0\n[worker]\ncache_ram_mib = 0\n";

/// Has the kernel reset all connections to an address, at both ends; `None` where it cannot.
#[expect(clippy::disallowed_methods, reason = "tests start the injector")]
fn reset(address: SocketAddr) -> Option<usize> {
    let port = address.port().to_string();
    let killed = Command::new("ss")
        .args(["--no-header", "--kill", "--tcp", "--numeric", "state", "established"])
        .args(["dst", "127.0.0.1", "dport", "=", &port])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&killed.stdout).lines().count();
    killed.status.success().then_some(said)
}

/// Reads a stream and calls `disturb` at its `at`-th event.
fn disturbed(site: &Site, body: &Value, at: usize, mut disturb: impl FnMut()) -> Vec<String> {
    let mut events = Vec::new();
    for event in site.to_queen().stream(CHAT, body) {
        events.push(event);
        if events.len() == at {
            disturb();
        }
    }
    events
}

#[test]
fn a_stream_whose_connections_are_reset_ends_whole() {
    if !volume::is_root(ROW) {
        return;
    }
    // Nobody else has the model: a stream whose worker were given up would wait in vain.
    let site = Site::with(HIVE, &format!("continuation_wait_seconds = 1\n{QUEEN}"));
    let _queen = site.queen();
    site.cluster.import_tiny("tiny");
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    let worker = site.cluster.workers()[0]["url"].as_str().expect("a URL").to_owned();
    let hops =
        [("the hive", address_of(&site.cluster.url("hive"))), ("the worker", address_of(&worker))];
    let words: Vec<String> = (0..30).map(|word| format!("w{word}")).collect();
    let body = asks("tiny", &format!("[[tokens=60 delay_ms=4]] {}", words.join(" ")), &json!({}));
    let whole = told(&disturbed(&site, &body, 0, || {}));
    assert!(whole.is_ok(), "{whole:?}");
    let mut random = fastrand::Rng::with_seed(5);
    let mut pauses = Vec::new();
    for round in 0..volume::of(6, 200) {
        let (hop, address) = hops[round % 2];
        let (mut count, mut since) = (None, None);
        let events = disturbed(&site, &body, random.usize(1..50), || {
            count = reset(address);
            since = Some(SystemTime::now());
        });
        if count.unwrap_or(0) == 0 {
            volume::not_run(ROW, "this kernel resets no connections (CONFIG_INET_DIAG_DESTROY)");
            return;
        }
        pauses.push(since.and_then(|since| since.elapsed().ok()).unwrap_or_default());
        assert!(told(&events) == whole, "{hop}, round {round}: {events:?}");
        let mut last = None;
        let is_free = || {
            last = under_way(&site);
            last.is_none()
        };
        assert!(e2e::holds_within(LIMIT, is_free), "{hop}, round {round}: {last:?}");
    }
    let went_on = metric(&site.to_queen().get("/metrics").body, CONTINUED);
    assert!(went_on > 0.5, "streams were hit");
    volume::figure(ROW, format!("{went_on} of {} were hit and went on", pauses.len()));
    volume::figure("from the reset to the end, p50 / p95 / max", Spread::of(&pauses, 95).in_ms());
    let panics = site.to_hive().get("/metrics").body;
    assert!(metric(&panics, "rbee_hive_panics_total") == 0.0);
    wait_until("all is as before", Duration::from_secs(5), || {
        site.cluster.rbee(&["infer", "-m", "tiny", "-p", "two"]).code == 0
    });
}
