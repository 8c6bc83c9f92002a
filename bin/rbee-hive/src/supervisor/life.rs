//! The life of one worker, from its start to its last moment. The task that runs this owns the process: it alone waits
//! for it, and it signals it only while it has not been waited for.

use std::future::pending;
use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use deadline_propagation::Deadline;
use metrics::counter;
use process_wrap::tokio::ChildWrapper;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::{ApiError, HopClient};
use rustix::process::Signal;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::failure::{self, Phase};
use super::process::{SpawnError, Spawned};
use super::{Order, Supervisor};
use crate::registry::WorkerSignals;

/// A worker answers the request to end at once, or does not answer at all.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// What a worker takes to end after the last of its requests is done or cut off.
const EXIT_MARGIN: Duration = Duration::from_millis(500);

/// How a process ended.
enum End {
    /// By itself.
    Unasked(io::Result<ExitStatus>),
    /// Because it was asked to.
    Stopped,
    /// It was ended because it did not load in time.
    SlowLoad,
}

impl Supervisor {
    /// Starts a worker, tells `started` whether that worked, and stays with it to its end.
    pub(super) async fn live(
        self: Arc<Self>,
        order: Order,
        started: oneshot::Sender<Result<(), ApiError>>,
    ) {
        let Spawned { mut process, client } = match self.launcher.spawn(&order).await {
            Ok(spawned) => spawned,
            Err(error) => {
                let detail = describe(&order, &error);
                counter!("rbee_hive_worker_exits_total", "cause" => "not_started").increment(1);
                self.registry.ended(&order.id, Some(detail.clone()));
                // The caller may have left; the registry has the reason.
                started.send(Err(detail.into())).ok();
                return;
            }
        };
        let Order { id, signals, .. } = order;
        let pid = process.id();
        tracing::info!(worker_id = %id, pid, url = client.base_url(), "worker started");
        counter!("rbee_hive_worker_spawns_total").increment(1);
        self.registry.spawned(&id, pid, client.clone());
        started.send(Ok(())).ok();

        let end = self.watch(process.as_mut(), &signals, &client).await;
        let phase = if signals.ready.is_cancelled() { Phase::Serving } else { Phase::Loading };
        let (cause, failure) = match end {
            End::Stopped => ("stopped", None),
            End::SlowLoad => ("load_timeout", Some(failure::of_slow_load(self.rules.load_timeout))),
            End::Unasked(Ok(status)) => {
                let cause = if status.code().is_some() { "exited" } else { "signalled" };
                (cause, Some(failure::of_exit(phase, status)))
            }
            End::Unasked(Err(error)) => {
                tracing::error!(worker_id = %id, pid, error = %error, "cannot wait for a worker");
                let message = "the worker's process was lost";
                ("lost", Some(ErrorDetail::new(ErrorCode::WorkerFailed, message)))
            }
        };
        counter!("rbee_hive_worker_exits_total", "cause" => cause).increment(1);
        match &failure {
            None => tracing::info!(worker_id = %id, pid, "worker ended as asked"),
            Some(detail) => {
                tracing::warn!(worker_id = %id, pid, cause, code = %detail.code, error = %detail.message, "worker failed");
            }
        }
        self.registry.ended(&id, failure);
    }

    /// Waits for whatever ends the process first, and carries the end out.
    async fn watch(
        &self,
        process: &mut dyn ChildWrapper,
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
                kill(process).await;
                return End::SlowLoad;
            }
        }
        stop(process, &signals.kill, client, self.rules.stop_grace).await;
        End::Stopped
    }
}

/// Ends a process: asks it over HTTP, then by signal, and at last without asking. `hasten` cuts the waiting short.
async fn stop(
    process: &mut dyn ChildWrapper,
    hasten: &CancellationToken,
    client: &HopClient,
    grace: Duration,
) {
    let nothing = json!({});
    let ask =
        client.post::<_, IgnoredAny>("/api/v1/shutdown", &nothing, Deadline::after(ASK_LIMIT));
    let has_agreed = tokio::select! {
        biased;
        _ = process.wait() => return,
        () = hasten.cancelled() => false,
        answer = ask => answer.is_ok(),
    };
    if has_agreed && ends_within(process, hasten, grace + EXIT_MARGIN).await {
        return;
    }
    signal(process, Signal::TERM);
    // A stopped process cannot end before it goes on.
    signal(process, Signal::CONT);
    if ends_within(process, hasten, grace).await {
        return;
    }
    tracing::warn!(pid = process.id(), "worker does not end when asked and is being killed");
    kill(process).await;
}

async fn ends_within(
    process: &mut dyn ChildWrapper,
    hasten: &CancellationToken,
    limit: Duration,
) -> bool {
    let end = Instant::now() + limit;
    tokio::select! {
        biased;
        _ = process.wait() => true,
        () = hasten.cancelled() => false,
        () = sleep_until(end) => false,
    }
}

/// Sends a signal to the process and all it has started.
fn signal(process: &dyn ChildWrapper, signal: Signal) {
    if let Err(error) = process.signal(signal.as_raw()) {
        tracing::warn!(pid = process.id(), error = %error, "cannot signal a worker");
    }
}

async fn kill(process: &mut dyn ChildWrapper) {
    if let Err(error) = process.start_kill() {
        tracing::warn!(pid = process.id(), error = %error, "cannot kill a worker");
    }
    if let Err(error) = process.wait().await {
        tracing::error!(error = %error, "cannot wait for a worker");
    }
}

/// Turns the reason why a process could not be started into one for other machines, without this one's paths.
fn describe(order: &Order, error: &SpawnError) -> ErrorDetail {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::error!(worker_id = %order.id, error = %error, cause, "worker could not be started");
    let message = match error {
        SpawnError::Run { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            "the worker program is missing; install llm-worker-rbee beside rbee-hive, or set worker_path"
        }
        SpawnError::Run { .. } => "the worker program cannot be run; the hive's log says why",
        SpawnError::Port(_) => {
            "no port is free for the worker; set worker_port_first to another range, or to 0"
        }
        SpawnError::Log(_) => "the worker's log file cannot be written; the hive's log says why",
        SpawnError::Listener(_) | SpawnError::Secrets(_) | SpawnError::Client(_) => {
            "the worker cannot be set up; the hive's log says why"
        }
    };
    ErrorDetail::new(ErrorCode::WorkerStartFailed, message)
}
