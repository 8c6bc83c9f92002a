//! A hive killed at any point of what it does: the next one owns every worker that
//! lives, and goes on with what was begun.

use std::time::Duration;

use e2e::{holds_within, wait_until};
use rustix::process::Signal;

use crate::agreement::assert_agreement;
use crate::crash_points::{Attempt, Quota, kill_at_points};
use crate::hive_stage::{Operation, Stage, is_done};
use crate::ledger;
use crate::site::{LIMIT, Site, pid_of, signal_to};
use crate::tracing::Trace;
use crate::volume;

/// Performs the operation traced, until it is done or the hive is gone.
fn perform(stage: &mut Stage, operation: Operation, trace: &Trace) -> Attempt {
    let Some(begun) = stage.begin(operation, trace) else { return Attempt::Refused };
    if let Some(reply) = begun.reply.filter(|_| operation == Operation::Spawn) {
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
    let Stage { site, hive } = stage;
    let hive = hive.as_mut().expect("a hive");
    let over =
        holds_within(LIMIT, || hive.is_over() || is_done(site, operation, hive, begun.worker));
    assert!(over, "{operation:?} does not end: {}", site.log("rbee-hive"));
    drop(begun.tracer);
    if hive.was_killed() { Attempt::Hit } else { Attempt::Missed }
}

/// Takes over from the hive that was killed, and looks at what is left.
fn recover(stage: &mut Stage, context: &str) {
    // One that lives still is killed here: the rest has to hold in any case.
    if let Some(mut hive) = stage.hive.take() {
        hive.kill();
    }
    let stopping: Vec<u32> = ledger::rows(&stage.site.cluster.home())
        .into_iter()
        .filter_map(|row| row.pid.filter(|_| row.is_stopping))
        .collect();
    stage.running();
    stage.import_where_missing();
    assert_agreement(&stage.site, context);
    let living = stage.site.living("llm-worker-rbee");
    let revived = living.iter().find(|worker| stopping.contains(&worker.pid));
    assert!(revived.is_none(), "{context}: {revived:?} was being stopped and goes on");
    stage.assert_serves(context);
}

fn run(operation: Operation, quota: Quota) {
    let mut stage = Stage::new();
    kill_at_points(&format!("hive: {operation:?}"), quota, |trace, context| {
        stage.prepare(operation);
        let attempt = perform(&mut stage, operation, trace);
        recover(&mut stage, context);
        attempt
    });
    stage.end();
}

#[test]
fn a_hive_killed_in_its_first_moments_leaves_a_home_that_can_be_used() {
    run(Operation::FirstStart, Quota { short: 4, full: 80 });
}

#[test]
fn a_hive_killed_while_it_starts_leaves_no_orphan() {
    run(Operation::Start, Quota { short: 5, full: 55 });
}

#[test]
fn a_hive_killed_while_it_adopts_leaves_no_orphan() {
    run(Operation::Adopt, Quota { short: 9, full: 65 });
}

#[test]
fn a_hive_killed_while_it_starts_a_worker_leaves_no_orphan() {
    run(Operation::Spawn, Quota { short: 14, full: 35 });
}

#[test]
fn a_hive_killed_while_it_stops_a_worker_leaves_no_orphan() {
    run(Operation::Stop, Quota { short: 8, full: 12 });
}

#[test]
fn a_hive_killed_while_it_ends_leaves_no_orphan() {
    run(Operation::Shutdown, Quota { short: 6, full: 12 });
}

#[test]
fn a_hive_killed_while_a_worker_dies_leaves_no_orphan() {
    run(Operation::LoseWorker, Quota { short: 3, full: 7 });
}

#[test]
fn a_hive_killed_between_fork_and_exec_leaves_no_orphan() {
    let mut stage = Stage::new();
    for attempt in 0..volume::of(1, 20) {
        stage.prepare(Operation::Spawn);
        let pid = stage.running().pid();
        let delay = Duration::from_millis(300);
        let Some(tracer) = Trace::DelayExec(delay).attach(pid) else {
            volume::not_run("killed between fork and exec", "this user may not trace processes");
            return;
        };
        let site = &stage.site;
        std::thread::scope(|scope| {
            scope.spawn(|| site.ask_for_worker("tiny"));
            wait_until("the hive has forked", LIMIT, || site.living("rbee-hive").len() == 2);
            signal_to(pid, Signal::KILL);
        });
        drop(tracer);
        recover(&mut stage, &format!("between fork and exec, attempt {attempt}"));
    }
    stage.end();
}

#[test]
fn a_worker_that_was_ready_is_the_same_after_the_hive_was_killed() {
    let site = Site::new();
    let mut hive = site.hive();
    site.import("tiny", 1);
    let worker = site.ready_worker("tiny");
    for _ in 0..volume::of(3, 50) {
        hive.kill();
        hive = site.hive();
        assert_agreement(&site, "a hive killed while nothing happens");
        let again = site.listed().expect("a list");
        assert_eq!(again.len(), 1);
        assert_eq!((&again[0]["id"], pid_of(&again[0])), (&worker["id"], pid_of(&worker)));
    }
}
