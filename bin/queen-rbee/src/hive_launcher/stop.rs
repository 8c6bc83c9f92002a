//! The end of the local hive with its queen: told how much time is left of hers, hastened when she is, and killed when
//! it does not end. Where one was killed, another is started that ends the workers it has left. Stops no hive that
//! somebody else has started.

use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_http::CallError;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::error::LaunchError;
use super::{HiveLauncher, POLL, PROBE_LIMIT, SIGTERM, look};

/// What a hive takes beyond its time to be seen gone.
const MARGIN: Duration = Duration::from_secs(1);
/// How long a hive has that was told to end at once; it needs one second.
const KILL_AFTER: Duration = Duration::from_secs(3);
/// Hives that are ended, one after the other: the one there was, and one more where that was killed meanwhile.
const ROUNDS_MAX: usize = 2;

impl HiveLauncher {
    /// Stops the hive if this queen or an earlier one started it, and returns
    /// when its process is gone: within `limit` if it behaves, by force if it
    /// does not and is our own. `hurried` ends the patience early.
    pub(crate) async fn stop_local_hive(mut self, limit: Duration, hurried: &CancellationToken) {
        let end = Instant::now() + limit;
        self.reap();
        for _ in 0..ROUNDS_MAX {
            if self.options.url.is_some() || !self.is_managed {
                return;
            }
            let left = end.saturating_duration_since(Instant::now()).max(MARGIN);
            if let Err(error) = self.ensure_one_to_end(left).await {
                tracing::error!(
                    hive = %self.options.name, error = %error,
                    "no hive could be told to end; workers that one has left end with their lease"
                );
                return self.kill().await;
            }
            let left = end.saturating_duration_since(Instant::now()).max(MARGIN);
            self.end_this_one(left, hurried).await;
        }
    }

    /// Makes sure that there is a hive that can be told to end: the one that runs, the one that is starting, or, where
    /// one was killed, another that takes over its workers.
    async fn ensure_one_to_end(&mut self, within: Duration) -> Result<(), LaunchError> {
        let limit = Instant::now() + within;
        let is_starting = self.options.registry.client(&self.options.name).is_none();
        let found = if self.child.is_some() {
            if !is_starting {
                return Ok(());
            }
            // Told before it listens to signals, it would end and leave what it was to take over.
            self.started(0, limit).await?
        } else if look(&self.options.home).await.is_ok_and(|(is_running, _)| is_running) {
            return Ok(());
        } else if self.options.may_start {
            tracing::warn!(hive = %self.options.name, "the local hive was killed; another one ends its workers");
            timeout(within, self.launch()).await.map_err(|_| LaunchError::Silent)??
        } else {
            return Err(LaunchError::NotRunning);
        };
        self.options.registry.answered(&self.options.name, found.0, None);
        Ok(())
    }

    async fn end_this_one(&mut self, limit: Duration, hurried: &CancellationToken) {
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
        tracing::error!(hive = %self.options.name, "the hive does not end and is killed");
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
        // How it ended is told to its parent alone, which is a queen that is gone.
        self.is_managed = false;
    }
}
