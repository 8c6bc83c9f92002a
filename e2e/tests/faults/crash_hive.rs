//! A hive killed at any point of what it does: the next one owns every worker that
//! lives, and goes on with what was begun.

use std::time::Duration;

use e2e::{holds_within, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::agreement::{assert_agreement, assert_nothing_left};
use crate::crash_points::{Attempt, Quota, kill_at_points};
use crate::ledger;
use crate::site::{Daemon, LIMIT, Site, is_ready, pid_of, signal_to};
use crate::tracing::Trace;
use crate::volume;

/// What a hive does when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// Starts on a home that is not there yet.
    FirstStart,
    Start,
    Adopt,
    Spawn,
    Stop,
    Shutdown,
    LoseWorker,
}

/// A site and the hive that runs there between two attempts.
struct Stage {
    site: Site,
    hive: Option<Daemon>,
}

impl Stage {
    fn new() -> Self {
        let site = Site::new();
        let hive = site.hive();
        site.import("tiny", 1);
        Self { site, hive: Some(hive) }
    }

    fn running(&mut self) -> &mut Daemon {
        self.hive.get_or_insert_with(|| self.site.hive())
    }

    /// Brings about what the operation begins with.
    fn prepare(&mut self, operation: Operation) {
        match operation {
            Operation::FirstStart => {
                self.end();
                std::fs::remove_dir_all(self.site.cluster.home()).expect("a home to remove");
            }
            Operation::Start => self.end(),
            Operation::Adopt => {
                self.running();
                self.site.ready_worker("tiny");
                self.hive.take().expect("a hive").kill();
            }
            Operation::Spawn => {
                self.running();
                for worker in self.site.listed().expect("a list") {
                    let path = format!("/api/v1/workers/{}", worker["id"].as_str().expect("an id"));
                    assert_eq!(self.site.to_hive().call("DELETE", &path, None).status, 200);
                }
            }
            Operation::Stop | Operation::Shutdown | Operation::LoseWorker => {
                self.running();
                self.site.ready_worker("tiny");
            }
        }
    }

    /// Ends the hive as a user does, and looks that nothing is left.
    fn end(&mut self) {
        if let Some(mut hive) = self.hive.take() {
            hive.signal(Signal::TERM);
            let status = hive.wait("the hive ends", LIMIT);
            assert!(status.success(), "{status}: {}", self.site.log("rbee-hive"));
        }
        assert_nothing_left(&self.site, "after an orderly end");
    }

    /// Performs the operation traced, until it is done or the hive is gone.
    fn perform(&mut self, operation: Operation, trace: &Trace) -> Attempt {
        let mut tracer = None;
        match operation {
            Operation::FirstStart | Operation::Start | Operation::Adopt => {
                self.hive = Some(self.site.launch("rbee-hive", &trace.wrapper()));
            }
            _ => {
                let Some(attached) = trace.attach(self.running().pid()) else {
                    return Attempt::Refused;
                };
                tracer = Some(attached);
            }
        }
        let worker = self.site.living("llm-worker-rbee").first().map(|worker| worker.pid);
        match operation {
            Operation::FirstStart | Operation::Start | Operation::Adopt => {}
            Operation::Spawn => drop(self.site.ask_for_worker("tiny")),
            Operation::Stop => {
                if let Some(worker) = self.site.listed().unwrap_or_default().first() {
                    let path = format!("/api/v1/workers/{}", worker["id"].as_str().expect("an id"));
                    drop(self.site.to_hive().try_call("DELETE", &path, None));
                }
            }
            Operation::Shutdown => self.running().signal(Signal::TERM),
            Operation::LoseWorker => signal_to(worker.expect("a worker"), Signal::KILL),
        }
        let Self { site, hive } = self;
        let hive = hive.as_mut().expect("a hive");
        let over = holds_within(LIMIT, || hive.is_over() || is_done(site, operation, hive, worker));
        assert!(over, "{operation:?} does not end: {}", site.log("rbee-hive"));
        drop(tracer);
        if hive.was_killed() { Attempt::Killed } else { Attempt::Missed }
    }

    /// Takes over from the hive that was killed, and looks at what is left.
    fn recover(&mut self, context: &str) {
        // One that lives still is killed here: the rest has to hold in any case.
        if let Some(mut hive) = self.hive.take() {
            hive.kill();
        }
        let stopping: Vec<u32> = ledger::rows(&self.site.cluster.home())
            .into_iter()
            .filter_map(|row| row.pid.filter(|_| row.is_stopping))
            .collect();
        self.running();
        if self.site.to_hive().get("/api/v1/models").json()["models"] == json!([]) {
            self.site.import("tiny", 1);
        }
        assert_agreement(&self.site, context);
        let living = self.site.living("llm-worker-rbee");
        let revived = living.iter().find(|worker| stopping.contains(&worker.pid));
        assert!(revived.is_none(), "{context}: {revived:?} was being stopped and goes on");
        let worker = self.site.ready_worker("tiny");
        let id = worker["id"].as_str().expect("an id");
        let path = format!("/api/v1/workers/{id}/v1/chat/completions");
        let body = json!({
            "model": "tiny", "messages": [{"role": "user", "content": "still here"}],
        });
        let reply = self.site.to_hive().post(&path, &body);
        assert_eq!(reply.status, 200, "{context}: {}", reply.body);
    }
}

/// Says whether there is nothing more to wait for.
fn is_done(site: &Site, operation: Operation, hive: &Daemon, worker: Option<u32>) -> bool {
    let has_row = || ledger::rows(&site.cluster.home()).iter().any(|row| row.pid == worker);
    match operation {
        Operation::FirstStart | Operation::Start => site.serves("hive", hive.pid()),
        Operation::Adopt => site.serves("hive", hive.pid()) && all_are_ready(site),
        Operation::Spawn => all_are_ready(site),
        Operation::Stop | Operation::LoseWorker => !has_row(),
        Operation::Shutdown => false,
    }
}

fn all_are_ready(site: &Site) -> bool {
    let listed = site.listed().unwrap_or_default();
    !listed.is_empty() && listed.iter().all(is_ready)
}

fn run(operation: Operation, quota: Quota) {
    let mut stage = Stage::new();
    kill_at_points(&format!("hive: {operation:?}"), quota, |trace, context| {
        stage.prepare(operation);
        let attempt = stage.perform(operation, trace);
        stage.recover(context);
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
        stage.recover(&format!("between fork and exec, attempt {attempt}"));
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
