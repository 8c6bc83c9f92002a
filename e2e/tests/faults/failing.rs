//! System calls that fail, one at a time, under a hive or a queen at work: each copes or
//! says why not, nobody panics, nobody is left without an owner, and the next try works.

use e2e::{Reply, holds_within, wait_until};

use crate::agreement::{assert_agreement, assert_owned};
use crate::crash_points::{Attempt, Quota, fail_at_points};
use crate::crash_queen;
use crate::hive_stage::{Operation, Stage};
use crate::requests::metric;
use crate::site::{Daemon, LIMIT, Site, pid_of};
use crate::tracing::{Trace, release};

/// How a Rust program ends over a panic.
const PANICKED: i32 = 101;
/// Where a program that starts is refused a thread, tokio itself panics, before anything is served.
const SPARED_AT_START: &[&str] = &["clone3"];

/// What is not done is refused with a code.
fn assert_told(reply: &Reply, context: &str) {
    let is_told = reply.status == 200 || (reply.status >= 400 && !reply.code().is_empty());
    assert!(is_told, "{context}: {} {}", reply.status, reply.body);
}

/// One that has ended gave itself up in order.
fn assert_gave_up(mut daemon: Daemon, context: &str) {
    let status = daemon.wait("the daemon is reaped", LIMIT);
    assert!(status.code().is_some_and(|code| code != PANICKED), "{context}: {status}");
}

fn perform(stage: &mut Stage, operation: Operation, trace: &Trace, context: &str) -> Attempt {
    let Some(begun) = stage.begin(operation, trace) else { return Attempt::Refused };
    if let Some(reply) = &begun.reply {
        assert_told(reply, context);
    }
    let Stage { site, hive } = stage;
    let hive = hive.as_mut().expect("a hive");
    let over =
        holds_within(LIMIT, || hive.is_over() || is_settled(site, operation, hive, begun.worker));
    assert!(over, "{context} does not end: {}", site.log("rbee-hive"));
    drop(begun.tracer);
    release(hive.pid());
    Attempt::Hit
}

/// Says whether nothing is under way any more.
fn is_settled(site: &Site, operation: Operation, hive: &Daemon, worker: Option<u32>) -> bool {
    if operation == Operation::Shutdown || !site.serves("hive", hive.pid()) {
        return false;
    }
    site.listed().is_some_and(|listed| {
        listed.iter().all(|listed| {
            let is_dead = operation == Operation::LoseWorker && worker == Some(pid_of(listed));
            !is_dead && listed["state"] != "starting" && listed["state"] != "stopping"
        })
    })
}

/// The same hive works, where there is still one, and the next one does in any case.
fn recover(stage: &mut Stage, operation: Operation, context: &str) {
    let mut hive = stage.hive.take().expect("a hive");
    if hive.is_over() || operation == Operation::Shutdown {
        assert_gave_up(hive, context);
    } else {
        let panics = metric(&stage.site.to_hive().get("/metrics").body, "rbee_hive_panics_total");
        assert!(panics == 0.0, "{context}: {panics} panics");
        assert_owned(&stage.site, context);
        stage.import_where_missing();
        stage.assert_serves(context);
        hive.kill();
    }
    stage.site.assert_no_panic(context);
    stage.running();
    stage.import_where_missing();
    assert_agreement(&stage.site, context);
    stage.assert_serves(context);
}

fn run(operation: Operation, quota: Quota) {
    let mut stage = Stage::new();
    let spared = match operation {
        Operation::FirstStart | Operation::Start | Operation::Adopt => SPARED_AT_START,
        Operation::Spawn | Operation::Stop | Operation::Shutdown | Operation::LoseWorker => &[],
    };
    fail_at_points(&format!("hive: {operation:?}"), quota, spared, |trace, context| {
        stage.prepare(operation);
        let attempt = perform(&mut stage, operation, trace, context);
        if attempt != Attempt::Refused {
            recover(&mut stage, operation, context);
        }
        attempt
    });
    stage.end();
}

#[test]
fn a_call_that_fails_while_a_hive_starts_ends_it_with_a_code_or_not_at_all() {
    run(Operation::Start, Quota { short: 4, full: 60 });
}

#[test]
fn a_call_that_fails_while_a_hive_adopts_leaves_no_orphan() {
    run(Operation::Adopt, Quota { short: 3, full: 60 });
}

#[test]
fn a_call_that_fails_while_a_hive_starts_a_worker_leaves_none_without_an_owner() {
    run(Operation::Spawn, Quota { short: 6, full: 25 });
}

#[test]
fn a_call_that_fails_while_a_hive_stops_a_worker_leaves_none_without_an_owner() {
    run(Operation::Stop, Quota { short: 3, full: 15 });
}

#[test]
fn a_call_that_fails_while_a_worker_dies_leaves_a_hive_that_works() {
    run(Operation::LoseWorker, Quota { short: 2, full: 10 });
}

#[test]
fn a_call_that_fails_while_a_hive_ends_leaves_no_orphan() {
    run(Operation::Shutdown, Quota { short: 2, full: 10 });
}

fn run_queen(operation: crash_queen::Operation, quota: Quota) {
    let mut stage = crash_queen::Stage::new();
    let spared = match operation {
        crash_queen::Operation::Start | crash_queen::Operation::FindHive => SPARED_AT_START,
        crash_queen::Operation::Serve | crash_queen::Operation::Shutdown => &[],
    };
    fail_at_points(&format!("queen: {operation:?}"), quota, spared, |trace, context| {
        stage.prepare(operation);
        let Some((tracer, reply)) = stage.begin(operation, trace) else { return Attempt::Refused };
        if let Some(reply) = &reply {
            assert_told(reply, context);
        }
        let queen = stage.queen.as_mut().expect("a queen");
        let over = holds_within(LIMIT, || {
            queen.is_over() || crash_queen::is_ready(&stage.site, queen.pid())
        });
        assert!(over, "{context} does not end: {}", stage.site.log("queen-rbee"));
        drop(tracer);
        release(queen.pid());
        let mut queen = stage.queen.take().expect("a queen");
        if queen.is_over() {
            assert_gave_up(queen, context);
        } else {
            stage.queen = Some(queen);
            // A hive that could not be started is started again soon; until then she says so.
            wait_until(context, LIMIT, || {
                stage.site.cluster.rbee(&["infer", "-m", "tiny", "-p", "again"]).code == 0
            });
            stage.assert_serves(context);
            let panics =
                metric(&stage.site.to_queen().get("/metrics").body, "rbee_queen_panics_total");
            assert!(panics == 0.0, "{context}: {panics} panics");
            stage.queen.take().expect("a queen").kill();
        }
        stage.assert_serves(context);
        assert_agreement(&stage.site, context);
        stage.site.assert_no_panic(context);
        Attempt::Hit
    });
    stage.end();
}

#[test]
fn a_call_that_fails_while_a_queen_starts_ends_her_with_a_code_or_not_at_all() {
    run_queen(crash_queen::Operation::Start, Quota { short: 3, full: 30 });
}

#[test]
fn a_call_that_fails_while_a_queen_serves_is_told_or_made_up_for() {
    run_queen(crash_queen::Operation::Serve, Quota { short: 3, full: 4 });
}
