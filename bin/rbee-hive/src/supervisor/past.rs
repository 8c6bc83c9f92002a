//! Keeps the failures written down, so that a hive that is killed is followed by one that knows them. A hive that ends in
//! order forgets them: whoever restarts it may have mended the cause.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Supervisor;
use crate::registry::KeptPast;
use crate::restart::Moment;
use crate::waiting::{Woken, woken};

impl Supervisor {
    /// Writes the past down whenever it has changed, until `stop`, which comes at the end in order alone.
    pub(crate) async fn keep_past(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.registry.changes();
        let mut written = Some(Vec::new());
        loop {
            changes.mark_unchanged();
            let (pasts, forgiven) = self.registry.past(Instant::now());
            if written.as_ref() != Some(&pasts) {
                let moment = Moment::now();
                let kept = pasts.iter().map(|past| past.kept(moment)).collect();
                written = self.write_past(kept).await.then_some(pasts);
            }
            match woken(&stop, &mut changes, forgiven).await {
                Woken::Stopped => break,
                Woken::Due | Woken::Changed => {}
            }
        }
        if written.is_none_or(|written| !written.is_empty()) {
            self.write_past(Vec::new()).await;
        }
    }

    async fn write_past(&self, pasts: Vec<KeptPast>) -> bool {
        let written = self.ledger.keep_failing(pasts).await;
        if let Err(error) = &written {
            tracing::warn!(%error, "the ledger of workers cannot be written");
        }
        written.is_ok()
    }
}
