//! The end of the local hive with its queen: told how much time is left of hers, hastened when she is, and killed when
//! it does not end. Stops no hive that somebody else has started.

use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_http::CallError;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{HiveLauncher, POLL, PROBE_LIMIT, SIGTERM, look};

/// What a hive takes beyond its time to be seen gone.
const MARGIN: Duration = Duration::from_secs(1);
/// How long a hive has that was told to end at once; it needs one second.
const KILL_AFTER: Duration = Duration::from_secs(3);

impl HiveLauncher {
    /// Stops the hive if this queen or an earlier one started it, and returns
    /// when its process is gone: within `limit` if it behaves, by force if it
    /// does not and is our own. `hurried` ends the patience early.
    pub(crate) async fn stop_local_hive(mut self, limit: Duration, hurried: &CancellationToken) {
        self.reap();
        let runs = self.child.is_some()
            || look(&self.options.home).await.is_ok_and(|(is_running, _)| is_running);
        if !runs || self.options.url.is_some() || !self.is_managed {
            return;
        }
        let name = self.options.name.clone();
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(hive = %name, limit_ms, "the local hive is told to end");
        let told = tokio::select! {
            told = self.ask_to_end(limit) => told,
            () = hurried.cancelled() => Ok(()),
        };
        if let Err(error) = told {
            tracing::warn!(hive = %name, error = %error, "the hive was not told to stop");
            self.signal(SIGTERM);
        }
        tokio::select! {
            () = self.is_gone() => return,
            () = sleep(limit + MARGIN) => {}
            () = hurried.cancelled() => {}
        }
        tracing::warn!(hive = %name, hurried = hurried.is_cancelled(), "the local hive is told to end at once");
        self.force().await;
    }

    /// Asks the hive to end within a time; none at all ends it at once.
    async fn ask_to_end(&self, within: Duration) -> Result<(), CallError> {
        let Some(client) = self.options.registry.client(&self.options.name) else {
            return Err(CallError::TimedOut);
        };
        let deadline = Deadline::after(PROBE_LIMIT);
        let path = format!("/api/v1/shutdown?timeout_ms={}", within.as_millis());
        client.post_stream(&path, &(), deadline).await.map(drop)
    }

    async fn force(&mut self) {
        let end = async {
            if let Err(error) = self.ask_to_end(Duration::ZERO).await {
                tracing::debug!(hive = %self.options.name, error = %error, "the hive was not hastened");
                self.signal(SIGTERM);
            }
            self.is_gone().await;
        };
        if timeout(KILL_AFTER, end).await.is_ok() {
            return;
        }
        tracing::error!(hive = %self.options.name, "the hive does not end; its workers end with their lease");
        self.kill().await;
    }

    /// Returns when the process of the hive is gone.
    async fn is_gone(&mut self) {
        if self.child.is_some() {
            return self.child_ends().await;
        }
        while look(&self.options.home).await.is_ok_and(|(is_running, _)| is_running) {
            sleep(POLL).await;
        }
    }
}
