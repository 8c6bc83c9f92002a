//! Stops workers that nobody has asked anything for a while, so that their memory is there for others.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::registry::Registry;
use crate::waiting::{Woken, woken};

/// Stops idle workers until `stop`.
pub(crate) async fn keep(registry: Arc<Registry>, idle: Duration, stop: CancellationToken) {
    let mut changes = registry.changes();
    loop {
        changes.mark_unchanged();
        let next = registry.stop_idle(Instant::now(), idle);
        match woken(&stop, &mut changes, Some(next)).await {
            Woken::Stopped => return,
            Woken::Due | Woken::Changed => {}
        }
    }
}
