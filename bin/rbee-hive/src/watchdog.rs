//! Looks at the signs of life of all workers when one may have fallen silent, and asks those that have. What the signs
//! mean, `liveness.rs` decides; whoever owns a process kills it.

use std::sync::Arc;
use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_api::worker::WorkerStatus;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::hive::Hive;
use crate::liveness::{LATE, LivenessLimits};
use crate::registry::{Answer, Silent};
use crate::waiting::{Woken, woken};

/// How long a silent worker has to answer: one that is halted never does, one that is short of processor time does.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Time between two looks at what the kernel has killed. A worker is buried within it, and what was killed before the last
/// two has nothing to do with one that dies now.
const MEMORY_INTERVAL: Duration = Duration::from_secs(10);

/// Watches until `stop`.
pub(crate) async fn keep(hive: Arc<Hive>, limits: LivenessLimits, stop: CancellationToken) {
    let mut changes = hive.registry.changes();
    let mut ears = Ears { deaf_until: Instant::now() };
    let mut memory_due = Instant::now() + MEMORY_INTERVAL;
    loop {
        changes.mark_unchanged();
        if memory_due <= Instant::now() {
            memory_due = Instant::now() + MEMORY_INTERVAL;
            hive.supervisor.look_at_memory();
        }
        let (silent, next) = hive.registry.look_after(limits, ears.deaf_until, Instant::now());
        for worker in silent {
            let asked = ask(Arc::clone(&hive), worker, stop.clone());
            hive.tasks.spawn(hive.supervisor.vital().keep("question to a worker", asked));
        }
        let planned = next.map_or(memory_due, |next| next.min(memory_due));
        if !ears.listen(&stop, &mut changes, planned).await {
            return;
        }
    }
}

/// Whether this process could hear its workers.
#[derive(Debug)]
struct Ears {
    /// It could not, before then.
    deaf_until: Instant,
}

impl Ears {
    /// Waits for a change, or until `planned`, and takes note of whether that comes late, whatever it is that wakes: after a
    /// halt, the moment that was planned and changes of the meantime are there at once. Returns `false` at the end.
    async fn listen(
        &mut self,
        stop: &CancellationToken,
        changes: &mut watch::Receiver<u64>,
        planned: Instant,
    ) -> bool {
        let goes_on = match woken(stop, changes, Some(planned)).await {
            Woken::Stopped => false,
            Woken::Due | Woken::Changed => true,
        };
        let now = Instant::now();
        if now > planned + LATE {
            tracing::warn!(
                "this hive was halted or starved; silence of workers meanwhile does not count"
            );
            self.deaf_until = now;
        }
        goes_on
    }
}

async fn ask(hive: Arc<Hive>, worker: Silent, stop: CancellationToken) {
    let Silent { id, client } = worker;
    let begun = Instant::now();
    let question = client.get::<WorkerStatus>("/api/v1/status", Deadline::after(ASK_LIMIT));
    let Some(reply) = stop.run_until_cancelled(question).await else { return };
    let answer = match &reply {
        Ok(_) => Answer::Given,
        Err(_) if begun.elapsed() > ASK_LIMIT + LATE => Answer::Unheard,
        Err(_) => Answer::Missing,
    };
    match &reply {
        Ok(_) => tracing::warn!(worker_id = %id, "worker answers but does not report"),
        Err(error) => {
            tracing::warn!(worker_id = %id, %error, "worker neither reports nor answers");
        }
    }
    hive.registry.asked(&id, answer);
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wake_that_comes_late_is_noticed_whatever_it_is_that_wakes() {
        let (told, mut changes) = watch::channel(0);
        let stop = CancellationToken::new();
        // Which of two that are there wakes is a matter of chance.
        for round in 0..64 {
            let mut ears = Ears { deaf_until: Instant::now() };
            let planned = Instant::now() + Duration::from_secs(2);
            advance(Duration::from_secs(60)).await;
            told.send_replace(round);
            assert!(ears.listen(&stop, &mut changes, planned).await);
            assert_eq!(ears.deaf_until, Instant::now(), "{round}");
            changes.mark_unchanged();
        }
        let begun = Instant::now();
        let mut ears = Ears { deaf_until: begun };
        assert!(ears.listen(&stop, &mut changes, begun + Duration::from_secs(2)).await);
        assert_eq!(ears.deaf_until, begun, "one that comes in time");
        stop.cancel();
        assert!(!ears.listen(&stop, &mut changes, Instant::now() + LATE).await);
    }
}
