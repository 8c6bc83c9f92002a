//! A machine that lets nobody start a process or a thread: a worker is refused with a code,
//! nothing is half-started, and it works again once the machine does.

use std::time::Duration;

use e2e::{holds_within, wait_until};

use crate::agreement::assert_agreement;
use crate::failing_calls::Failing;
use crate::figures::Holds;
use crate::ledger;
use crate::requests::metric;
use crate::site::{Daemon, HIVE, LIMIT, QUEEN, Site};
use crate::tracing::Trace;
use crate::volume;

/// All that make a process or a thread.
const CALLS: &str = "clone,clone3,fork,vfork";
const ERRORS: [&str; 2] = ["EAGAIN", "ENOMEM"];
/// How long a hive rests: longer than tokio keeps threads that have nothing to do.
const REST: Duration = Duration::from_secs(12);

#[test]
fn a_machine_without_room_for_a_process_refuses_a_worker_and_recovers() {
    // Contacts are rare: nothing wakes the threads of a hive that rests.
    let site = Site::with(&HIVE.replace("interval_seconds = 1", "interval_seconds = 60"), QUEEN);
    let mut hive = site.hive();
    site.import("tiny", 1);
    for round in 0..volume::of(2, 20) {
        refuse_and_recover(&site, &mut hive, ERRORS[round % 2]);
    }
    // One that gave up its threads while it rests would need new ones now.
    let busy = Holds::of(hive.pid()).expect("a hive").threads;
    holds_within(REST, || Holds::of(hive.pid()).is_some_and(|holds| holds.threads < busy));
    ERRORS.iter().for_each(|error| refuse_and_recover(&site, &mut hive, error));
}

fn refuse_and_recover(site: &Site, hive: &mut Daemon, error: &'static str) {
    let failing = Failing::all(CALLS, error);
    let trace = Trace::Fail { failing, log: "/dev/null".to_owned() };
    let Some(tracer) = trace.attach(hive.pid()) else {
        volume::not_run("no processes", "this user may not trace processes");
        return;
    };
    let reply = site.try_for_worker("tiny").expect("a hive that lives");
    assert!(
        reply.status >= 500 && reply.code() != "internal_error",
        "{error}: {} {}",
        reply.status,
        reply.body
    );
    assert_eq!(ledger::rows(&site.cluster.home()), [], "{error}");
    assert_eq!(site.living("llm-worker-rbee"), [], "{error}");
    drop(tracer);
    assert!(hive.ended().is_none(), "{error}: {}", site.log("rbee-hive"));
    assert!(
        metric(&site.to_hive().get("/metrics").body, "rbee_hive_panics_total") == 0.0,
        "{error}"
    );
    let worker = site.ready_worker("tiny");
    assert_agreement(site, error);
    let path = format!("/api/v1/workers/{}", worker["id"].as_str().expect("an id"));
    assert_eq!(site.to_hive().call("DELETE", &path, None).status, 200);
    wait_until("the worker is gone", LIMIT, || site.living("llm-worker-rbee").is_empty());
    site.assert_no_panic(error);
}
