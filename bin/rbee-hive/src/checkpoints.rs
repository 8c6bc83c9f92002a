//! Takes the newest checkpoint of this hive's audit log to the queen, and keeps hers here: either machine finds out when
//! the other's log has lost its end.

use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_api::audit::AuditExchange;
use rbee_http::HopClient;
use tokio::time::Instant;

use crate::hive::Hive;

/// A checkpoint is a few hundred bytes.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// How often the queen is asked for hers while this hive has nothing new.
const EVERY: Duration = Duration::from_secs(60);
/// What the queen's are kept under.
const QUEEN: &str = "queen";

/// What has been exchanged so far.
#[derive(Debug)]
pub(crate) struct Exchange {
    told: Option<u64>,
    due: Instant,
}

impl Exchange {
    pub(crate) fn new() -> Self {
        Self { told: None, due: Instant::now() }
    }

    /// Exchanges checkpoints with a queen that has just answered, where there is a new one or it is time. What fails
    /// is tried again at the next contact.
    pub(crate) async fn with(&mut self, hive: &Hive, queen: &HopClient) {
        let checkpoint = hive.audit.checkpoint();
        let newest = checkpoint.as_ref().map(|checkpoint| checkpoint.sequence);
        if newest == self.told && Instant::now() < self.due {
            return;
        }
        let path = format!("/api/v1/hives/{}/audit", hive.config.name);
        let mine = AuditExchange { checkpoint };
        let answer = queen.post(&path, &mine, Deadline::after(CALL_LIMIT)).await;
        let theirs: AuditExchange = match answer {
            Ok(theirs) => theirs,
            Err(error) => {
                tracing::debug!(%error, "the queen did not take a checkpoint");
                return;
            }
        };
        (self.told, self.due) = (newest, Instant::now() + EVERY);
        if let Some(theirs) = theirs.checkpoint
            && let Err(error) = hive.audit.hold(&hive.home.audit_dir(), QUEEN, theirs).await
        {
            tracing::warn!(%error, "the queen's checkpoint is not kept");
        }
    }
}
