//! The closed list of what the queen does in the background: the keeper of the
//! local hive, the dealing out of turns to requests that wait, the starts of
//! workers, which go on when the client that caused one leaves, the writing down
//! of what was used, and the telling of which machines fall silent. (The listener for signals lives in `shutdown.rs` and the
//! server in `lib.rs`.) Owns the tasks: each is awaited at the end.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::QueenError;
use crate::hive_launcher::HiveLauncher;

/// Shortest time between two looks for a hive that was not found.
const RETRY_GAP: Duration = Duration::from_secs(1);

/// Owns tasks that end by themselves or with the queen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Runs `work` until it ends or the queen does.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move { stop.run_until_cancelled(work).await });
    }

    /// Ends all tasks and waits for them.
    pub(crate) async fn finish(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Keeps a hive running on this machine until released.
#[derive(Debug)]
pub(crate) struct HiveKeeper {
    task: JoinHandle<HiveLauncher>,
    stop: CancellationToken,
}

impl HiveKeeper {
    /// Starts with `launcher`: looks for a hive now, when its process ends, from
    /// time to time, and when a request finds it gone; starts one where none is.
    pub(crate) fn start(mut launcher: HiveLauncher) -> Self {
        let stop = CancellationToken::new();
        let until = stop.clone();
        let task = tokio::spawn(async move {
            until.run_until_cancelled(keep(&mut launcher)).await;
            launcher
        });
        Self { task, stop }
    }

    /// Ends the keeping and gives the launcher back, with the hive as it is.
    ///
    /// # Errors
    /// Fails if the task panicked.
    pub(crate) async fn release(self) -> Result<HiveLauncher, QueenError> {
        self.stop.cancel();
        self.task.await.map_err(QueenError::setup("the end of the local hive"))
    }
}

async fn keep(launcher: &mut HiveLauncher) {
    loop {
        match launcher.ensure_local_hive().await {
            Ok(()) => launcher.until_a_look_is_due().await,
            Err(error) => {
                launcher.report(&error);
                sleep(RETRY_GAP).await;
            }
        }
    }
}
