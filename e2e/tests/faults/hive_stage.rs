//! A site with one hive, and what that does while a test breaks something: brings about
//! what each operation begins with, and begins it traced. Breaks and expects nothing itself.

use e2e::Reply;
use rustix::process::Signal;
use serde_json::json;

use crate::agreement::assert_nothing_left;
use crate::ledger;
use crate::site::{Daemon, LIMIT, Site, is_ready, signal_to};
use crate::tracing::{Trace, Tracer};

/// What a hive does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
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
pub(crate) struct Stage {
    pub(crate) site: Site,
    pub(crate) hive: Option<Daemon>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let site = Site::new();
        let hive = site.hive();
        site.import("tiny", 1);
        Self { site, hive: Some(hive) }
    }

    pub(crate) fn running(&mut self) -> &mut Daemon {
        self.hive.get_or_insert_with(|| self.site.hive())
    }

    /// Brings about what the operation begins with.
    pub(crate) fn prepare(&mut self, operation: Operation) {
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
    pub(crate) fn end(&mut self) {
        if let Some(mut hive) = self.hive.take() {
            hive.signal(Signal::TERM);
            let status = hive.wait("the hive ends", LIMIT);
            assert!(status.success(), "{status}: {}", self.site.log("rbee-hive"));
        }
        assert_nothing_left(&self.site, "after an orderly end");
    }

    /// Begins the operation traced; `None` where this user may not trace.
    pub(crate) fn begin(&mut self, operation: Operation, trace: &Trace) -> Option<Begun> {
        let tracer = match operation {
            Operation::FirstStart | Operation::Start | Operation::Adopt => {
                self.hive = Some(self.site.launch("rbee-hive", &trace.wrapper()));
                None
            }
            _ => Some(trace.attach(self.running().pid())?),
        };
        let worker = self.site.living("llm-worker-rbee").first().map(|worker| worker.pid);
        let reply = match operation {
            Operation::FirstStart | Operation::Start | Operation::Adopt => None,
            Operation::Spawn => self.site.try_for_worker("tiny"),
            Operation::Stop => self.site.listed().unwrap_or_default().first().and_then(|worker| {
                let path = format!("/api/v1/workers/{}", worker["id"].as_str().expect("an id"));
                self.site.to_hive().try_call("DELETE", &path, None)
            }),
            Operation::Shutdown => {
                self.running().signal(Signal::TERM);
                None
            }
            Operation::LoseWorker => {
                signal_to(worker.expect("a worker"), Signal::KILL);
                None
            }
        };
        Some(Begun { tracer, worker, reply })
    }

    /// Imports the model into a home that has lost it, or never had it.
    pub(crate) fn import_where_missing(&self) {
        if self.site.to_hive().get("/api/v1/models").json()["models"] == json!([]) {
            self.site.import("tiny", 1);
        }
    }

    /// Has the worker answer a request; there is one in the end.
    pub(crate) fn assert_serves(&self, context: &str) {
        let asked = self.site.try_for_worker("tiny").expect("a reply");
        let log = || self.site.log("rbee-hive");
        assert_eq!(asked.status, 200, "{context}: {}\n{}", asked.body, log());
        let worker = self.site.ready_worker("tiny");
        let path = format!(
            "/api/v1/workers/{}/v1/chat/completions",
            worker["id"].as_str().expect("an id")
        );
        let body = json!({
            "model": "tiny", "messages": [{"role": "user", "content": "still here"}],
        });
        let reply = self.site.to_hive().post(&path, &body);
        assert_eq!(reply.status, 200, "{context}: {}", reply.body);
    }
}

/// An operation that has begun.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Lets go when dropped; `None` where the hive was started traced.
    pub(crate) tracer: Option<Tracer>,
    /// The worker that there was.
    pub(crate) worker: Option<u32>,
    /// What was answered; `None` where nothing was asked, or nobody answered.
    pub(crate) reply: Option<Reply>,
}

/// Says whether there is nothing more to wait for.
pub(crate) fn is_done(
    site: &Site,
    operation: Operation,
    hive: &Daemon,
    worker: Option<u32>,
) -> bool {
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
