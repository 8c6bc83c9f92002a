//! What the audit log is told of workers: that one is to be started, which must not happen unwritten, that it was, and
//! how it ended.

use std::path::PathBuf;

use audit_logging::{AuditSettings, Auditor, Event, Kind, Outcome, SubjectKind};
use input_validation::WorkerId;
use rbee_api::worker_exit::WorkerExit;
use secrets_management::Secret;

use super::process::SpawnError;
use super::{Order, Supervisor};
use crate::ledger::Ending;

/// The log of the hive, and what its workers need for theirs.
#[derive(Debug)]
pub(crate) struct AuditOfWorkers {
    pub(crate) auditor: Auditor,
    pub(crate) settings: AuditSettings,
    /// The keys of the workers' logs are made of it; `None` where there are none.
    pub(crate) key: Option<Secret>,
    /// Where their logs lie, one directory each.
    pub(crate) directory: PathBuf,
}

impl Supervisor {
    /// Writes down that a worker is to be started.
    pub(super) async fn record_spawn(&self, order: &Order) -> Result<(), SpawnError> {
        let event = self.spawn_event(order, Outcome::Requested);
        Ok(self.launcher.audit.auditor.record(event).await?)
    }

    /// Writes down that a worker's process runs, or that there is none.
    pub(super) fn note_spawn(&self, order: &Order, outcome: Outcome, pid: Option<u32>) {
        let event = with_pid(self.spawn_event(order, outcome), pid);
        self.launcher.audit.auditor.note(event);
    }

    fn spawn_event(&self, order: &Order, outcome: Outcome) -> Event {
        let reason = match self.registry.restarted_after(&order.id) {
            Some(cause) => format!("restart after {}", cause.as_str()),
            None => "a request or a command".to_owned(),
        };
        Event::new(Kind::WorkerSpawn, outcome)
            .on(SubjectKind::Worker, &order.id)
            .with("model", &order.model.reference)
            .with("backend", backend(self))
            .with("reason", reason)
    }

    /// Writes down that a former hive's worker is this one's now.
    pub(super) fn note_adoption(&self, id: &WorkerId, pid: Option<u32>) {
        let event = self.of_worker(Kind::WorkerSpawn, Outcome::Success, id);
        self.launcher.audit.auditor.note(with_pid(event.with("reason", "adopted"), pid));
    }

    /// Writes down that a worker that was told to end has, or was killed.
    pub(super) fn note_ending(
        &self,
        id: &WorkerId,
        pid: Option<u32>,
        ending: Ending,
        reason: &'static str,
    ) {
        let kind = match ending {
            Ending::Graceful => Kind::WorkerStop,
            Ending::Forced => Kind::WorkerKill,
        };
        let event = self.of_worker(kind, Outcome::Success, id).with("reason", reason);
        self.launcher.audit.auditor.note(with_pid(event, pid));
    }

    /// Writes down that a worker ended unasked.
    pub(super) fn note_exit(&self, id: &WorkerId, pid: Option<u32>, exit: &WorkerExit) {
        let event = self.of_worker(Kind::WorkerExit, Outcome::Failure, id);
        let event = event.with("reason", exit.cause.as_str());
        self.launcher.audit.auditor.note(with_pid(event, pid));
    }

    fn of_worker(&self, kind: Kind, outcome: Outcome, id: &WorkerId) -> Event {
        let event = Event::new(kind, outcome).on(SubjectKind::Worker, id);
        match self.registry.get(id) {
            Some(worker) => event
                .with("model", &worker.model_ref)
                .with("backend", backend(self))
                .with("device", &worker.device),
            None => event,
        }
    }
}

fn backend(supervisor: &Supervisor) -> &'static str {
    supervisor.launcher.engine_name()
}

fn with_pid(event: Event, pid: Option<u32>) -> Event {
    match pid {
        Some(pid) => event.with_number("pid", pid.into()),
        None => event,
    }
}
