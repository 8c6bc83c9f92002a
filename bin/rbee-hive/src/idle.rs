//! Stops workers that nobody has asked anything for a while, so that their memory is there for others.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::registry::Registry;

/// Stops idle workers until `stop`.
pub(crate) async fn keep(registry: Arc<Registry>, idle: Duration, stop: CancellationToken) {
    let mut changes = registry.changes();
    loop {
        changes.mark_unchanged();
        let next = registry.stop_idle(Instant::now(), idle);
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep_until(next) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}
