//! A queen or a keeper killed at any point: the hive and its workers go on, the next
//! queen finds them, and there is never a second one of anything.

use e2e::{Reply, holds_within};
use rustix::process::Signal;
use serde_json::json;

use crate::agreement::assert_agreement;
use crate::crash_points::{Attempt, Quota, kill_at_points};
use crate::requests::CHAT;
use crate::site::{Daemon, LIMIT, Site};
use crate::tracing::{Trace, Tracer};

/// What a queen does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Starts on a machine where nothing runs.
    Start,
    /// Starts where a hive and a worker run.
    FindHive,
    /// Serves a request for which a worker has to be started.
    Serve,
    /// Ends.
    Shutdown,
}

pub(crate) struct Stage {
    pub(crate) site: Site,
    pub(crate) queen: Option<Daemon>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let site = Site::new();
        let queen = site.queen();
        // A command waits until the queen is ready.
        site.cluster.import_tiny("tiny");
        Self { site, queen: Some(queen) }
    }

    pub(crate) fn running(&mut self) -> &mut Daemon {
        self.queen.get_or_insert_with(|| self.site.queen())
    }

    pub(crate) fn prepare(&mut self, operation: Operation) {
        match operation {
            Operation::Start => self.end(),
            Operation::FindHive => {
                self.assert_serves("before");
                self.queen.take().expect("a queen").kill();
            }
            Operation::Serve => {
                self.assert_serves("before");
                drop(self.site.cluster.rbee(&["stop", "--all"]).ok());
            }
            Operation::Shutdown => self.assert_serves("before"),
        }
    }

    /// Begins the operation traced; `None` where this user may not trace. Returns what she answered with it.
    pub(crate) fn begin(
        &mut self,
        operation: Operation,
        trace: &Trace,
    ) -> Option<(Option<Tracer>, Option<Reply>)> {
        let tracer = match operation {
            Operation::Start | Operation::FindHive => {
                self.queen = Some(self.site.launch("queen-rbee", &trace.wrapper()));
                None
            }
            Operation::Serve | Operation::Shutdown => Some(trace.attach(self.running().pid())?),
        };
        let reply = match operation {
            Operation::Start | Operation::FindHive => None,
            Operation::Serve => {
                let body = json!({
                    "model": "tiny", "messages": [{"role": "user", "content": "hello"}],
                });
                self.site.to_queen().try_call("POST", CHAT, Some(&body))
            }
            Operation::Shutdown => {
                self.running().signal(Signal::TERM);
                None
            }
        };
        Some((tracer, reply))
    }

    fn perform(&mut self, operation: Operation, trace: &Trace) -> Attempt {
        let Some((tracer, _)) = self.begin(operation, trace) else { return Attempt::Refused };
        let Self { site, queen } = self;
        let queen = queen.as_mut().expect("a queen");
        let pid = queen.pid();
        let over = holds_within(LIMIT, || {
            let done = match operation {
                Operation::Start | Operation::FindHive => is_ready(site, pid),
                Operation::Serve => true,
                Operation::Shutdown => false,
            };
            done || queen.is_over()
        });
        assert!(over, "{operation:?} does not end: {}", site.log("queen-rbee"));
        drop(tracer);
        if queen.was_killed() { Attempt::Hit } else { Attempt::Missed }
    }

    /// Starts the next queen, and looks that there is one of each program, and the same
    /// hive and worker as before where they were not being stopped.
    fn recover(&mut self, operation: Operation, context: &str) {
        if let Some(mut queen) = self.queen.take() {
            queen.kill();
        }
        let pids = |site: &Site| {
            ["rbee-hive", "llm-worker-rbee"].map(|program| {
                site.living(program).iter().map(|process| process.pid).collect::<Vec<_>>()
            })
        };
        let before = pids(&self.site);
        self.running();
        self.assert_serves(context);
        if operation == Operation::FindHive {
            assert_eq!(pids(&self.site), before, "{context}: a dead queen takes nobody with her");
        }
        assert_agreement(&self.site, context);
    }

    pub(crate) fn assert_serves(&mut self, context: &str) {
        self.running();
        let said = self.site.cluster.rbee(&["infer", "-m", "tiny", "-p", "still here"]);
        let log = || self.site.log("queen-rbee");
        assert_eq!(said.stdout.trim(), "still here", "{context}: {said:?}\n{}", log());
        for program in ["queen-rbee", "rbee-hive", "llm-worker-rbee"] {
            let living = self.site.living(program);
            assert_eq!(living.len(), 1, "{context}: {living:?}");
        }
    }

    pub(crate) fn end(&mut self) {
        if let Some(mut queen) = self.queen.take() {
            queen.signal(Signal::TERM);
            queen.wait("the queen ends", LIMIT);
        }
        self.site.cluster.wait_until_empty(LIMIT);
    }
}

pub(crate) fn is_ready(site: &Site, pid: u32) -> bool {
    site.serves("queen", pid)
        && site.to_queen().try_call("GET", "/readyz", None).is_some_and(|reply| reply.status == 200)
}

fn run(operation: Operation, quota: Quota) {
    let mut stage = Stage::new();
    kill_at_points(&format!("queen: {operation:?}"), quota, |trace, context| {
        stage.prepare(operation);
        let attempt = stage.perform(operation, trace);
        stage.recover(operation, context);
        attempt
    });
    stage.end();
}

#[test]
fn a_queen_killed_while_she_starts_leaves_one_hive_at_most() {
    run(Operation::Start, Quota { short: 3, full: 30 });
}

#[test]
fn a_queen_killed_while_she_finds_her_hive_takes_nobody_with_her() {
    run(Operation::FindHive, Quota { short: 3, full: 28 });
}

#[test]
fn a_queen_killed_while_she_serves_leaves_no_orphan() {
    run(Operation::Serve, Quota { short: 3, full: 6 });
}

#[test]
fn a_queen_killed_while_she_ends_leaves_no_orphan() {
    run(Operation::Shutdown, Quota { short: 3, full: 8 });
}

#[test]
fn a_keeper_killed_while_she_starts_a_queen_leaves_nothing_half_done() {
    let site = Site::new();
    site.cluster.import_tiny("tiny");
    let quota = Quota { short: 3, full: 25 };
    kill_at_points("keeper: queen start", quota, |trace, context| {
        drop(site.cluster.rbee(&["queen", "stop"]));
        site.cluster.wait_until_empty(LIMIT);
        let mut keeper = site.launch_with("rbee", &["queen", "start"], &trace.wrapper());
        let ended = holds_within(LIMIT, || keeper.is_over());
        assert!(ended, "{context}: the keeper does not end");
        let attempt = if keeper.was_killed() { Attempt::Hit } else { Attempt::Missed };
        let said = site.cluster.rbee(&["infer", "-m", "tiny", "-p", "once"]);
        assert_eq!(said.stdout.trim(), "once", "{context}: {said:?}");
        for program in ["queen-rbee", "rbee-hive", "llm-worker-rbee"] {
            let living = site.living(program);
            assert_eq!(living.len(), 1, "{context}: {living:?}");
        }
        assert_agreement(&site, context);
        attempt
    });
}
