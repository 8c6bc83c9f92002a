//! The life of one worker, from its start to its last moment. The task that runs this owns the process: it alone waits
//! for it, and it signals it only while it has not been waited for.

use std::future::pending;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;

use input_validation::WorkerId;
use metrics::counter;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::{ApiError, HopClient};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::failure::{self, Phase};
use super::owned::OwnedProcess;
use super::process::SpawnError;
use super::{Order, Supervisor};
use crate::ledger::Entry;
use crate::registry::WorkerSignals;

/// A worker whose process runs, in the hands of its owner.
pub(super) struct Life {
    pub(super) id: WorkerId,
    pub(super) process: OwnedProcess,
    pub(super) client: HopClient,
    pub(super) signals: WorkerSignals,
}

/// How a process ended.
enum End {
    /// By itself.
    Unasked(io::Result<Option<ExitStatus>>),
    /// Because it was asked to.
    Stopped,
    /// It was ended because it did not load in time.
    SlowLoad,
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
                let detail = describe(&order, &error);
                counter!("rbee_hive_worker_exits_total", "cause" => "not_started").increment(1);
                self.strike_out(&order.id).await;
                self.registry.ended(&order.id, Some(detail.clone()));
                // The caller may have left; the registry has the reason.
                started.send(Err(detail.into())).ok();
                return;
            }
        };
        let Order { id, signals, .. } = order;
        let pid = process.pid();
        tracing::info!(worker_id = %id, pid, url = client.base_url(), "worker started");
        counter!("rbee_hive_worker_spawns_total").increment(1);
        self.registry.spawned(&id, pid, client.clone());
        started.send(Ok(())).ok();
        self.live_on(Life { id, process, client, signals }).await;
    }

    /// Starts the process, unless something else has taken meanwhile what the worker was promised.
    async fn spawn_if_there_is_room(
        &self,
        order: &Order,
    ) -> Result<(OwnedProcess, HopClient), SpawnError> {
        self.reservations.look_again(&order.id).map_err(SpawnError::NoRoom)?;
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
            is_stopping: false,
            process: None,
        };
        Ok(self.ledger.begin(entry).await?)
    }

    /// Takes a worker out of the ledger whose process is gone. If that fails the next hive finds it gone.
    pub(super) async fn strike_out(&self, id: &WorkerId) {
        if let Err(error) = self.ledger.ended(id).await {
            tracing::warn!(worker_id = %id, %error, "the ledger of workers cannot be written");
        }
    }

    /// Stays with a worker to its end.
    pub(super) async fn live_on(&self, life: Life) {
        let Life { id, mut process, client, signals } = life;
        let pid = process.pid();
        let end = self.watch(&id, &mut process, &signals, &client).await;
        let is_out_of_memory = process.has_run_out_of_memory();
        process.clear(&id).await;
        let phase = if signals.ready.is_cancelled() { Phase::Serving } else { Phase::Loading };
        let (cause, failure) = match end {
            End::Stopped => ("stopped", None),
            End::SlowLoad => ("load_timeout", Some(failure::of_slow_load(self.rules.load_timeout))),
            End::Unasked(Ok(_)) if is_out_of_memory => {
                ("oom", Some(failure::of_memory(&id, phase)))
            }
            End::Unasked(Ok(None)) => match phase {
                // It was dying when it was adopted, or has told this hive nothing: who waits for it gets another.
                Phase::Loading => ("unknown", None),
                Phase::Serving => ("unknown", Some(failure::of_adopted(&id))),
            },
            End::Unasked(Ok(Some(status))) => {
                let cause = if status.code().is_some() { "exited" } else { "signalled" };
                (cause, Some(failure::of_exit(&id, phase, status)))
            }
            End::Unasked(Err(error)) => {
                tracing::error!(worker_id = %id, pid, error = %error, "cannot wait for a worker");
                let message = "the worker's process was lost";
                ("lost", Some(ErrorDetail::new(ErrorCode::WorkerFailed, message)))
            }
        };
        counter!("rbee_hive_worker_exits_total", "cause" => cause).increment(1);
        match &failure {
            None if signals.stop.is_cancelled() => {
                tracing::info!(worker_id = %id, pid, "worker ended as asked");
            }
            None => {
                tracing::warn!(worker_id = %id, pid, "an adopted worker ended before it answered")
            }
            Some(detail) => {
                tracing::warn!(worker_id = %id, pid, cause, code = %detail.code, error = %detail.message, "worker failed");
            }
        }
        self.strike_out(&id).await;
        self.registry.ended(&id, failure);
    }

    /// Waits for whatever ends the process first, and carries the end out.
    async fn watch(
        &self,
        id: &WorkerId,
        process: &mut OwnedProcess,
        signals: &WorkerSignals,
        client: &HopClient,
    ) -> End {
        let too_slow = async {
            if timeout(self.rules.load_timeout, signals.ready.cancelled()).await.is_ok() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            // A process that is gone is waited for, and not signalled, even if it was asked to end meanwhile.
            biased;
            status = process.wait() => return match signals.stop.is_cancelled() {
                true => End::Stopped,
                false => End::Unasked(status),
            },
            () = signals.stop.cancelled() => {}
            () = too_slow => {
                self.kill_at_once(id, process).await;
                return End::SlowLoad;
            }
        }
        self.force_kill_worker(id, process, signals, client).await;
        End::Stopped
    }
}

/// Turns the reason why a process could not be started into one for other machines, without this one's paths.
fn describe(order: &Order, error: &SpawnError) -> ErrorDetail {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::error!(worker_id = %order.id, error = %error, cause, "worker could not be started");
    let message = match error {
        SpawnError::NoRoom(detail) => return (**detail).clone(),
        SpawnError::Run { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "the worker program is missing; install llm-worker-rbee beside rbee-hive, or set worker_path"
        }
        SpawnError::Run { .. } => "the worker program cannot be run; the hive's log says why",
        SpawnError::Port(_) => {
            "no port is free for the worker; set worker_port_first to another range, or to 0"
        }
        SpawnError::Ledger(_) => {
            "the worker cannot be written down, so it is not started; look at the room on the disk, and at the hive's log"
        }
        SpawnError::Log(_) => "the worker's log file cannot be written; the hive's log says why",
        SpawnError::Listener(_) | SpawnError::Secrets(_) | SpawnError::Client(_) => {
            "the worker cannot be set up; the hive's log says why"
        }
    };
    ErrorDetail::new(ErrorCode::WorkerStartFailed, message)
}
