//! The life of one worker, from its start to its last moment. The task that runs this owns the process: it alone waits
//! for it, and it signals it only while it has not been waited for.

use std::future::pending;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use audit_logging::Outcome;
use input_validation::WorkerId;
use metrics::counter;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::worker_exit::{Breaker, ExitCause, WorkerExit};
use rbee_http::{ApiError, HopClient};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::cause::{MemoryWas, exit_by, exit_of};
use super::failure::{self, Phase};
use super::owned::OwnedProcess;
use super::process::SpawnError;
use super::{Order, Supervisor};
use crate::ledger::Entry;
use crate::liveness::{Condemned, LATE, load_allowance};
use crate::registry::{Failure, Serving, WorkerSignals};
use crate::restart::Jitter;

/// A worker whose process runs, in the hands of its owner.
pub(super) struct Life {
    pub(super) id: WorkerId,
    pub(super) process: OwnedProcess,
    pub(super) client: HopClient,
    pub(super) signals: WorkerSignals,
    /// How long it may take to load in all.
    pub(super) load_limit: Duration,
    /// Whether it had loaded under a former hive, as the ledger knows.
    pub(super) has_loaded: bool,
}

/// How a process ended.
pub(super) enum End {
    /// By itself.
    Unasked(io::Result<Option<ExitStatus>>),
    /// Because it was asked to.
    Stopped,
    /// It was killed because it did not load in time.
    SlowLoad,
    /// It was killed because it did nothing any more.
    Condemned(Condemned),
}

impl Supervisor {
    /// Starts a worker, tells `started` whether that worked, and stays with it to its end. It is written down before
    /// there is a process, and the process is before it has the secrets without which it ends at once: wherever this
    /// hive is cut off, the next one knows every worker that lives.
    pub(super) async fn live(
        self: Arc<Self>,
        order: Order,
        started: oneshot::Sender<Result<(), ApiError>>,
    ) {
        let spawned = match self.write_down(&order).await {
            Ok(()) => self.spawn_if_there_is_room(&order).await,
            Err(error) => Err(error),
        };
        let (process, client) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                self.note_spawn(&order, Outcome::Failure, None);
                let detail = describe(&order, &error);
                self.strike_out(&order.id).await;
                match error.cause() {
                    ExitCause::NotStarted => self.put_off(&order.id, detail.clone()),
                    cause => self.end(&order.id, exit_of(cause), Some(detail.clone())),
                }
                // The caller may have left; the registry has the reason.
                started.send(Err(detail.into())).ok();
                return;
            }
        };
        let pid = process.pid();
        self.note_spawn(&order, Outcome::Success, pid);
        let Order { id, signals, model, .. } = order;
        let load_limit = self.rules.load_timeout + load_allowance(model.size_bytes);
        tracing::info!(worker_id = %id, pid, url = client.base_url(), "worker started");
        counter!("rbee_hive_worker_spawns_total").increment(1);
        if let Some(cause) = self.registry.restarted_after(&id) {
            counter!("rbee_hive_worker_restarts_total", "cause" => cause.as_str()).increment(1);
        }
        self.registry.spawned(&id, pid, client.clone());
        started.send(Ok(())).ok();
        let has_loaded = false;
        self.live_on(Life { id, process, client, signals, load_limit, has_loaded }).await;
    }

    /// Starts the process, unless something else has taken meanwhile what the worker was promised.
    async fn spawn_if_there_is_room(
        &self,
        order: &Order,
    ) -> Result<(OwnedProcess, HopClient), SpawnError> {
        self.reservations.look_again(&order.id).await.map_err(SpawnError::NoRoom)?;
        self.record_spawn(order).await?;
        self.launcher.spawn(order, &self.ledger).await
    }

    async fn write_down(&self, order: &Order) -> Result<(), SpawnError> {
        let entry = Entry {
            id: order.id.clone(),
            model_ref: order.model.reference.clone(),
            alias: order.model.alias.clone(),
            backend: self.launcher.engine,
            memory_bytes: order.size.memory_bytes,
            started_at_ms: order.started_at_ms,
            heartbeat_seconds: self.launcher.heartbeat_seconds,
            is_stopping: false,
            serving: None,
            process: None,
        };
        Ok(self.ledger.begin(entry).await?)
    }

    /// Writes down that a worker has loaded its model, so that the next hive need not find that out.
    async fn note_ready(&self, id: &WorkerId) {
        let Some(worker) = self.registry.get(id) else { return };
        let serving = Serving { slots_total: worker.slots_total, device: worker.device };
        if let Err(error) = self.ledger.ready(id, serving).await {
            tracing::warn!(worker_id = %id, %error, "the ledger of workers cannot be written");
        }
    }

    /// Takes a worker out of the ledger whose process is gone. If that fails the next hive finds it gone.
    pub(super) async fn strike_out(&self, id: &WorkerId) {
        if let Err(error) = self.ledger.ended(id).await {
            tracing::warn!(worker_id = %id, %error, "the ledger of workers cannot be written");
        }
    }

    /// Stays with a worker to its end.
    pub(super) async fn live_on(&self, mut life: Life) {
        let pid = life.process.pid();
        let end = self.watch(&mut life).await;
        let Life { id, process, signals, load_limit, .. } = life;
        let is_out_of_memory = process.has_run_out_of_memory();
        process.clear(&id).await;
        let phase = if signals.ready.is_cancelled() { Phase::Serving } else { Phase::Loading };
        let was_told = !matches!(end, End::Unasked(_));
        let (exit, failure) = match end {
            End::Stopped => (exit_of(ExitCause::Stopped), None),
            End::SlowLoad => {
                (exit_of(ExitCause::LoadTimeout), Some(failure::of_slow_load(load_limit)))
            }
            End::Condemned(why) => (exit_of(why.cause()), Some(failure::of_condemned(&id, why))),
            End::Unasked(Ok(_)) if is_out_of_memory == Some(true) => {
                (exit_of(ExitCause::OutOfMemory), Some(failure::of_memory(&id, phase)))
            }
            End::Unasked(Ok(status)) => {
                match (status.or_else(|| self.registry.farewell(&id)), phase) {
                    (Some(status), _) => {
                        let memory_was = match is_out_of_memory {
                            Some(_) => MemoryWas::Enough,
                            None => self.memory_was(),
                        };
                        let exit = exit_by(status, memory_was);
                        (exit, Some(failure::of_exit(&id, phase, status)))
                    }
                    // It was dying when it was adopted, or has told this hive nothing: who waits for it gets another.
                    (None, Phase::Loading) => (exit_of(ExitCause::Unknown), None),
                    (None, Phase::Serving) => {
                        (exit_of(ExitCause::Unknown), Some(failure::of_adopted(&id)))
                    }
                }
            }
            End::Unasked(Err(error)) => {
                tracing::error!(worker_id = %id, pid, error = %error, "cannot wait for a worker");
                let message = "the worker's process was lost";
                let failure = ErrorDetail::new(ErrorCode::WorkerFailed, message);
                (exit_of(ExitCause::Lost), Some(failure))
            }
        };
        signals.cause.send_replace(Some(exit.cause));
        if !was_told {
            self.note_exit(&id, pid, &exit);
        }
        match &failure {
            None => tracing::info!(worker_id = %id, pid, cause = %exit.cause, "worker ended"),
            Some(detail) => {
                tracing::warn!(worker_id = %id, pid, cause = %exit.cause, code = %detail.code, error = %detail.message, "worker failed");
            }
        }
        self.strike_out(&id).await;
        self.end(&id, exit, failure);
        self.remove_old_logs().await;
    }

    /// Tells the registry that a worker could not be started for a reason that is not its own, and the log what comes of it.
    fn put_off(&self, id: &WorkerId, detail: ErrorDetail) {
        let cause = ExitCause::NotStarted.as_str();
        counter!("rbee_hive_worker_exits_total", "cause" => cause).increment(1);
        let jitter = Jitter::new(fastrand::f64());
        if let Some(pause) = self.registry.not_started(id, detail, jitter) {
            tracing::warn!(worker_id = %id, pause_ms = pause.as_millis(), "worker will be started later");
        }
    }

    /// Tells the registry of an end, and the log and the metrics what comes of it.
    fn end(&self, id: &WorkerId, exit: WorkerExit, failure: Option<ErrorDetail>) {
        let cause = exit.cause;
        counter!("rbee_hive_worker_exits_total", "cause" => cause.as_str()).increment(1);
        let jitter = Jitter::new(fastrand::f64());
        let failure = failure.map(|detail| Failure { detail, exit, jitter });
        let Some(planned) = self.registry.ended(id, failure) else { return };
        if planned.was_restart {
            counter!("rbee_hive_worker_restart_failures_total", "cause" => cause.as_str())
                .increment(1);
        }
        match planned.breaker {
            Breaker::Closed | Breaker::HalfOpen => {
                tracing::warn!(worker_id = %id, %cause, pause_ms = planned.pause.as_millis(), "worker will be started again");
            }
            Breaker::Open => {
                counter!("rbee_hive_breaker_opened_total", "cause" => cause.as_str()).increment(1);
                tracing::error!(worker_id = %id, %cause, pause_ms = planned.pause.as_millis(), "workers keep failing; the breaker is open");
            }
        }
    }

    /// Waits for whatever ends the process first, and carries the end out.
    pub(super) async fn watch(&self, life: &mut Life) -> End {
        let Life { id, process, client, signals, load_limit, has_loaded } = life;
        let pid = process.pid();
        let too_slow = async {
            if *has_loaded {
                pending::<()>().await;
            }
            if loads_within(*load_limit, &signals.ready).await {
                self.note_ready(id).await;
                pending::<()>().await;
            }
        };
        tokio::select! {
            // A process that is gone is waited for, and not signalled, even if it was asked to end meanwhile.
            biased;
            status = process.wait() => {
                if !signals.stop.is_cancelled() {
                    return End::Unasked(status);
                }
                self.note_ended_meanwhile(id, pid).await;
                return End::Stopped;
            }
            () = signals.stop.cancelled() => {}
            () = signals.condemned.cancelled() => {
                // The verdict is set before it is told.
                let why = signals.verdict.get().copied().unwrap_or(Condemned::Stale);
                self.kill_at_once(id, process, why.cause()).await;
                return End::Condemned(why);
            }
            () = too_slow => {
                self.kill_at_once(id, process, ExitCause::LoadTimeout).await;
                return End::SlowLoad;
            }
        }
        self.force_kill_worker(id, process, signals, client).await;
        End::Stopped
    }
}

/// Says whether a worker loads in time. Where this hive was halted meanwhile, the worker could not tell that it has, and gets
/// its time once more.
async fn loads_within(limit: Duration, ready: &CancellationToken) -> bool {
    loop {
        let due = Instant::now() + limit;
        if timeout_at(due, ready.cancelled()).await.is_ok() {
            return true;
        }
        if Instant::now() <= due + LATE {
            return false;
        }
    }
}

/// Turns the reason why a process could not be started into one for other machines, without this one's paths.
fn describe(order: &Order, error: &SpawnError) -> ErrorDetail {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::error!(worker_id = %order.id, error = %error, cause, "worker could not be started");
    let message = match error {
        SpawnError::NoRoom(detail) => return (**detail).clone(),
        SpawnError::Audit(_) => {
            let message = "this cannot be written into the audit log, so no worker is started; see the room on the disk of that machine";
            return ErrorDetail::new(ErrorCode::AuditUnavailable, message);
        }
        SpawnError::Run { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "the worker program is missing; install llm-worker-rbee beside rbee-hive, or set worker_path"
        }
        SpawnError::Run { .. } => "the worker program cannot be run; the hive's log says why",
        SpawnError::Port(_) if error.cause() == ExitCause::NotStarted => {
            "the worker's port cannot be opened; the hive's log says why"
        }
        SpawnError::Port(_) => {
            "no port is free for the worker; set worker_port_first to another range, or to 0"
        }
        SpawnError::Ledger(_) => {
            "the worker cannot be written down, so it is not started; look at the room on the disk, and at the hive's log"
        }
        SpawnError::Log(_) | SpawnError::LogHandle(_) => {
            "the worker's log file cannot be written; the hive's log says why"
        }
        SpawnError::Listener(_)
        | SpawnError::Identity(_)
        | SpawnError::Secrets(_)
        | SpawnError::AuditKey(_)
        | SpawnError::Client(_) => "the worker cannot be set up; the hive's log says why",
    };
    ErrorDetail::new(ErrorCode::WorkerStartFailed, message)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_in_which_this_hive_stood_still_does_not_count_against_a_load() {
        let limit = Duration::from_secs(300);
        let ready = CancellationToken::new();
        let begun = Instant::now();
        assert!(!loads_within(limit, &ready).await);
        assert!(begun.elapsed() <= limit + LATE);
        let halted = async {
            tokio::task::yield_now().await;
            advance(limit * 2).await;
            ready.cancel();
        };
        let (loads, ()) = tokio::join!(loads_within(limit, &ready), halted);
        assert!(loads, "it could not tell this hive");
    }
}
