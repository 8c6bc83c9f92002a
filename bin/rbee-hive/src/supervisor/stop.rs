//! The end of one worker that is told to end: asked over HTTP, then by signal, and at last killed with all it has
//! started. Every step goes through the handle of whoever owns the process, is logged, and is counted at the end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deadline_propagation::Deadline;
use input_validation::WorkerId;
use metrics::counter;
use rbee_api::worker_exit::ExitCause;
use rbee_http::HopClient;
use rbee_sqlite::DatabaseError;
use rustix::process::Signal;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Supervisor;
use super::owned::OwnedProcess;
use crate::ledger::Ending;
use crate::registry::WorkerSignals;

/// A worker answers the request to end at once, or does not answer at all.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// What a worker takes to end after the last of its requests is done or cut off.
const EXIT_MARGIN: Duration = Duration::from_millis(500);

/// Workers of this hive that were told to end and have.
#[derive(Debug, Default)]
pub(super) struct EndingCounts {
    graceful: AtomicU64,
    forced: AtomicU64,
}

/// What [`EndingCounts`] were at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Endings {
    pub(crate) graceful: u64,
    pub(crate) forced: u64,
}

impl Supervisor {
    /// Returns how the workers have ended that were told to, since this hive began.
    pub(crate) fn endings(&self) -> Endings {
        Endings {
            graceful: self.endings.graceful.load(Ordering::Relaxed),
            forced: self.endings.forced.load(Ordering::Relaxed),
        }
    }

    /// Writes down how long the hive took to end.
    pub(crate) async fn note_shutdown(&self, took: Duration) -> Result<(), DatabaseError> {
        self.ledger.note_shutdown(took).await
    }

    /// Ends a worker and returns when its process is gone: asks it to finish its requests, then sends SIGTERM, and kills
    /// it when that does not help. `signals.kill` cuts the waiting short.
    pub(super) async fn force_kill_worker(
        &self,
        id: &WorkerId,
        process: &mut OwnedProcess,
        signals: &WorkerSignals,
        client: &HopClient,
    ) {
        if let Err(error) = self.ledger.stopping(id).await {
            tracing::warn!(worker_id = %id, %error, "the ledger of workers cannot be written");
        }
        let (begun, pid) = (Instant::now(), process.pid());
        tracing::info!(worker_id = %id, pid, "worker is asked to end");
        let grace = self.rules.stop_grace;
        let ending = match ends_when_asked(id, process, &signals.kill, client, grace).await {
            true => Ending::Graceful,
            false => {
                let hastened = signals.kill.is_cancelled();
                tracing::warn!(worker_id = %id, pid, hastened, "worker does not end when asked and is being killed");
                process.kill().await;
                Ending::Forced
            }
        };
        self.count_ending(id, pid, ending, begun, self.why_stopped()).await;
    }

    /// Takes note of a worker that was told to end and was gone before anybody asked it.
    pub(super) async fn note_ended_meanwhile(&self, id: &WorkerId, pid: Option<u32>) {
        self.count_ending(id, pid, Ending::Graceful, Instant::now(), self.why_stopped()).await;
    }

    fn why_stopped(&self) -> &'static str {
        match self.registry.is_draining() {
            true => "the hive ends",
            false => "told to stop",
        }
    }

    /// Kills a worker that is not worth asking, and returns when its process is gone.
    pub(super) async fn kill_at_once(
        &self,
        id: &WorkerId,
        process: &mut OwnedProcess,
        cause: ExitCause,
    ) {
        let (begun, pid) = (Instant::now(), process.pid());
        tracing::warn!(worker_id = %id, pid, "worker is being killed");
        process.kill().await;
        self.count_ending(id, pid, Ending::Forced, begun, cause.as_str()).await;
    }

    async fn count_ending(
        &self,
        id: &WorkerId,
        pid: Option<u32>,
        ending: Ending,
        begun: Instant,
        reason: &'static str,
    ) {
        self.note_ending(id, pid, ending, reason);
        let duration_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (name, count) = match ending {
            Ending::Graceful => {
                ("rbee_hive_workers_graceful_shutdown_total", &self.endings.graceful)
            }
            Ending::Forced => ("rbee_hive_workers_force_killed_total", &self.endings.forced),
        };
        counter!(name).increment(1);
        count.fetch_add(1, Ordering::Relaxed);
        tracing::info!(worker_id = %id, pid, ending = ending.as_str(), duration_ms, "worker is gone");
        if let Err(error) = self.ledger.count(ending).await {
            tracing::warn!(worker_id = %id, %error, "the ledger of workers cannot be written");
        }
    }
}

/// Asks a process to end, over HTTP and then by signal; says whether it did.
async fn ends_when_asked(
    id: &WorkerId,
    process: &mut OwnedProcess,
    hasten: &CancellationToken,
    client: &HopClient,
    grace: Duration,
) -> bool {
    let nothing = json!({});
    let ask =
        client.post::<_, IgnoredAny>("/api/v1/shutdown", &nothing, Deadline::after(ASK_LIMIT));
    let agreed = tokio::select! {
        biased;
        _ = process.wait() => return true,
        () = hasten.cancelled() => return false,
        answer = ask => answer,
    };
    match agreed {
        Ok(_) => {
            tracing::debug!(worker_id = %id, "worker finishes its requests");
            if ends_within(process, hasten, grace + EXIT_MARGIN).await {
                return true;
            }
        }
        Err(error) => {
            tracing::info!(worker_id = %id, %error, "worker does not answer the request to end");
        }
    }
    if hasten.is_cancelled() {
        return false;
    }
    tracing::info!(worker_id = %id, pid = process.pid(), "worker gets SIGTERM");
    process.signal(Signal::TERM);
    // A stopped process cannot end before it goes on.
    process.signal(Signal::CONT);
    ends_within(process, hasten, grace).await
}

async fn ends_within(
    process: &mut OwnedProcess,
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
