//! Looks at the signs of life of all workers when one may have fallen silent, and asks those that have. What the signs
//! mean, `liveness.rs` decides; whoever owns a process kills it.

use std::sync::Arc;
use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_api::worker::WorkerStatus;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::hive::Hive;
use crate::liveness::LivenessLimits;
use crate::registry::Silent;
use crate::waiting::{Woken, woken};

/// How long a silent worker has to answer: one that is halted never does, one that is short of processor time does.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// A look that comes so much later than it was planned shows that this process was halted or starved itself.
const LATE: Duration = Duration::from_secs(1);
/// Least time between two looks at what the kernel has killed: workers that died together are all told of it.
const MEMORY_INTERVAL: Duration = Duration::from_secs(10);

/// Watches until `stop`.
pub(crate) async fn keep(hive: Arc<Hive>, limits: LivenessLimits, stop: CancellationToken) {
    let mut changes = hive.registry.changes();
    let mut deaf_until = Instant::now();
    let mut memory_looked_at = Instant::now();
    loop {
        changes.mark_unchanged();
        if memory_looked_at.elapsed() >= MEMORY_INTERVAL {
            memory_looked_at = Instant::now();
            hive.supervisor.look_at_memory();
        }
        let (silent, next) = hive.registry.look_after(limits, deaf_until, Instant::now());
        for worker in silent {
            hive.tasks.spawn(ask(Arc::clone(&hive), worker, stop.clone()));
        }
        match woken(&stop, &mut changes, next).await {
            Woken::Stopped => return,
            Woken::Changed => {}
            Woken::Due => {
                let now = Instant::now();
                if next.is_some_and(|next| now > next + LATE) {
                    tracing::warn!(
                        "this hive was halted or starved; silence of workers meanwhile does not count"
                    );
                    deaf_until = now;
                }
            }
        }
    }
}

async fn ask(hive: Arc<Hive>, worker: Silent, stop: CancellationToken) {
    let Silent { id, client } = worker;
    let question = client.get::<WorkerStatus>("/api/v1/status", Deadline::after(ASK_LIMIT));
    let Some(answer) = stop.run_until_cancelled(question).await else { return };
    match &answer {
        Ok(_) => tracing::warn!(worker_id = %id, "worker answers but does not report"),
        Err(error) => {
            tracing::warn!(worker_id = %id, %error, "worker neither reports nor answers");
        }
    }
    hive.registry.asked(&id, answer.is_ok());
}
