//! Work that a hive cannot do without: owning and watching workers, keeping the queen informed, serving.
//!
//! A panic in it would leave workers that nobody watches or owns, and nobody would notice. So it ends the hive, at once and
//! without its workers: a queen or a service manager starts the next one, which adopts them and knows their past from
//! the ledger. Starting the task again instead would go on with a state that may not be whole, and what a task owned, such
//! as a worker's process, is lost with it all the same.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use metrics::counter;
use tokio_util::sync::CancellationToken;

/// Whether all of it runs. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vital {
    broken: CancellationToken,
}

impl Vital {
    /// Does a piece of such work, and tells of its panic.
    pub(crate) async fn keep(self, task: &'static str, work: impl Future<Output = ()>) {
        // Nothing of the work is used after it has panicked.
        if AssertUnwindSafe(work).catch_unwind().await.is_err() {
            tracing::error!(
                task,
                "a task has panicked; the hive ends and leaves its workers to the next one"
            );
            counter!("rbee_hive_panics_total").increment(1);
            self.broken.cancel();
        }
    }

    /// Returns when some of it has panicked.
    pub(crate) async fn is_broken(&self) {
        self.broken.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_to_whoever_ends_the_hive_and_an_end_in_order_is_none() {
        let vital = Vital::default();
        vital.clone().keep("in order", async {}).await;
        assert!(!vital.broken.is_cancelled());
        let tasks = tokio_util::task::TaskTracker::new();
        tasks.spawn(vital.clone().keep("defect", async { panic!("a defect of this test") }));
        vital.is_broken().await;
    }
}
