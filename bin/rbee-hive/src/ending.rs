//! The order in which a hive ends: no new work, all workers at once, the port, the background tasks, and the figures of
//! it written down. Decides on no worker by itself; each is ended by the task that owns it.

use std::time::Duration;

use metrics::{counter, gauge};
use rbee_api::worker::WorkerState;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::hive::Hive;
use crate::ledger::Tally;

/// Time that killed workers have to be gone, and each further step has to be done.
pub(crate) const LAST_LIMIT: Duration = Duration::from_secs(1);
/// Time that killed workers have to be gone where the hive is to end at once; a large one frees its memory meanwhile.
const HASTENED_KILL_LIMIT: Duration = Duration::from_millis(500);
/// Time that each further step has then, so that the hive is gone within a second.
const HASTENED_LIMIT: Duration = Duration::from_millis(150);

/// Shows what former hives have counted, so that the counters go on where those ended.
pub(crate) fn show_tally(tally: Tally) {
    counter!("rbee_hive_workers_graceful_shutdown_total").absolute(tally.graceful);
    counter!("rbee_hive_workers_force_killed_total").absolute(tally.forced);
    if let Some(took) = tally.last_shutdown {
        gauge!("rbee_hive_shutdown_duration_seconds").set(took.as_secs_f64());
    }
}

/// What of a hive is to be ended besides its workers.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) server: JoinHandle<()>,
    pub(crate) stop_serving: CancellationToken,
    pub(crate) stop_tasks: CancellationToken,
}

/// Ends a hive that was told to end.
pub(crate) async fn end(hive: &Hive, running: Running) {
    let begun = Instant::now();
    let before = hive.supervisor.endings();
    end_workers(hive).await;
    let Running { mut server, stop_serving, stop_tasks } = running;
    stop_serving.cancel();
    match hive.shutdown.wait_for(&mut server, LAST_LIMIT * 2, HASTENED_LIMIT).await {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::error!(error = %error, "the server ended badly"),
        None => {
            tracing::warn!("connections were cut off");
            server.abort();
        }
    }
    stop_tasks.cancel();
    hive.tasks.close();
    if hive.shutdown.wait_for(hive.tasks.wait(), LAST_LIMIT, HASTENED_LIMIT).await.is_none() {
        tracing::warn!("background tasks were cut off");
    }
    let took = begun.elapsed();
    if let Err(error) = hive.supervisor.note_shutdown(took).await {
        tracing::warn!(%error, "the ledger of workers cannot be written");
    }
    let after = hive.supervisor.endings();
    tracing::info!(
        duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        graceful = after.graceful - before.graceful,
        forced = after.forced - before.forced,
        hastened = hive.shutdown.is_hastened(),
        "hive ended"
    );
}

/// Ends all workers in parallel: in peace, then, when that takes too long or is hastened, by force.
async fn end_workers(hive: &Hive) {
    let begun = Instant::now();
    hive.registry.begin_draining();
    tracing::info!(workers = living(hive), "hive stops its workers");
    let is_over = tokio::select! {
        () = hive.supervisor.all_gone() => true,
        () = hive.shutdown.patience_is_over() => false,
        () = tell_progress(hive) => false,
    };
    if !is_over {
        tracing::warn!(
            workers = living(hive),
            hastened = hive.shutdown.is_hastened(),
            "workers are being killed"
        );
        hive.registry.hasten();
        let gone = hive.supervisor.all_gone();
        if hive.shutdown.wait_for(gone, LAST_LIMIT, HASTENED_KILL_LIMIT).await.is_none() {
            tracing::error!(workers = living(hive), "a worker cannot be killed and is left behind");
        }
    }
    gauge!("rbee_hive_shutdown_duration_seconds").set(begun.elapsed().as_secs_f64());
}

/// Logs how many workers are left, each time that one has gone. Never returns while the hive lives.
async fn tell_progress(hive: &Hive) {
    let mut changes = hive.registry.changes();
    let all = living(hive);
    let mut left = all;
    while changes.changed().await.is_ok() {
        let now = living(hive);
        if now < left {
            left = now;
            tracing::info!(ended = all.saturating_sub(left), of = all, "workers end");
        }
    }
}

fn living(hive: &Hive) -> usize {
    let workers = hive.registry.snapshot();
    workers.iter().filter(|worker| worker.state != WorkerState::Failed).count()
}
