//! How loops in the background wait: for a moment that may never come, for a change, or for their end. Decides nothing.

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// What a loop was woken by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Its moment has come.
    Due,
    /// Something has changed.
    Changed,
    /// It is to end.
    Stopped,
}

/// Waits for the end, for a change, or until `due` where there is such a moment. Cancel safe.
pub(crate) async fn woken(
    stop: &CancellationToken,
    changes: &mut watch::Receiver<u64>,
    due: Option<Instant>,
) -> Woken {
    tokio::select! {
        () = stop.cancelled() => Woken::Stopped,
        () = until(due) => Woken::Due,
        changed = changes.changed() => match changed {
            Ok(()) => Woken::Changed,
            // Nothing changes any more once whoever tells of it is gone.
            Err(_) => Woken::Stopped,
        },
    }
}

/// Returns at a moment; never, where there is none. Cancel safe.
pub(crate) async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
