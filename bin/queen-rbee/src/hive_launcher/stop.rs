//! The end of the local hive with its queen: told how much time is left of hers, hastened when she is, and killed when
//! it does not end. Where one was killed, another is started that ends the workers it has left. Stops no hive that
//! somebody else has started. By when each of that is done stands in `steps.rs`.

use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_http::CallError;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::error::LaunchError;
use super::steps::{Round, Steps, there_by};
use super::{HiveLauncher, POLL, PROBE_LIMIT, SIGCONT, SIGTERM, look};

impl HiveLauncher {
    /// Stops the hive if this queen or an earlier one started it, and returns
    /// when its process is gone, by `end` at the latest: by force if it does not
    /// behave and is our own. `hurried` ends the patience early.
    pub(crate) async fn stop_local_hive(mut self, end: Instant, hurried: &CancellationToken) {
        self.reap();
        for round in [Round::First, Round::Last] {
            if self.options.url.is_some() || !self.is_managed {
                return;
            }
            if let Err(error) = self.ensure_one_to_end(there_by(end, Instant::now())).await {
                tracing::error!(
                    hive = %self.options.name, error = %error,
                    "no hive could be told to end; workers that one has left end with their lease"
                );
                return self.kill_by(end).await;
            }
            let steps = Steps::until(end, Instant::now(), round);
            self.end_this_one(steps, hurried).await;
        }
    }

    /// Makes sure that there is a hive that can be told to end: the one that runs, the one that is starting, or, where
    /// one was killed, another that takes over its workers.
    async fn ensure_one_to_end(&mut self, limit: Instant) -> Result<(), LaunchError> {
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
            timeout_at(limit, self.launch()).await.map_err(|_| LaunchError::Silent)??
        } else {
            return Err(LaunchError::NotRunning);
        };
        self.options.registry.answered(&self.options.name, found.0, None);
        Ok(())
    }

    async fn end_this_one(&mut self, steps: Steps, hurried: &CancellationToken) {
        let name = self.options.name.clone();
        let limit_ms = u64::try_from(steps.told.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(hive = %name, limit_ms, "the local hive is told to end");
        let in_peace = async {
            self.tell_to_end(steps.told, steps.hasten_at).await;
            self.is_gone().await;
        };
        tokio::select! {
            () = in_peace => return,
            () = sleep_until(steps.hasten_at) => {}
            () = hurried.cancelled() => {}
        }
        tracing::warn!(hive = %name, hurried = hurried.is_cancelled(), "the local hive is told to end at once");
        let kill_at = steps.hastened(Instant::now()).kill_at;
        let at_once = async {
            self.tell_to_end(Duration::ZERO, kill_at).await;
            self.is_gone().await;
        };
        if timeout_at(kill_at, at_once).await.is_err() {
            tracing::error!(hive = %name, "the hive does not end and is killed");
            self.kill_by(kill_at + PROBE_LIMIT).await;
        }
    }

    /// Tells the hive to end within a time; none at all ends it at once. One that does not answer may stand still: it is
    /// woken up, and asked once more before `limit`.
    async fn tell_to_end(&self, within: Duration, limit: Instant) {
        let patience = limit.saturating_duration_since(Instant::now()) / 4;
        if let Err(error) = self.ask_to_end(within, patience).await {
            tracing::warn!(hive = %self.options.name, error = %error, "the hive was not told to stop");
            self.signal(SIGTERM);
            self.signal(SIGCONT);
            if let Err(error) = self.ask_to_end(within, patience).await {
                tracing::debug!(hive = %self.options.name, error = %error, "nor was it after a signal");
            }
        }
    }

    async fn ask_to_end(&self, within: Duration, patience: Duration) -> Result<(), CallError> {
        let Some(client) = self.options.registry.client(&self.options.name) else {
            return Err(CallError::TimedOut);
        };
        let deadline = Deadline::after(patience.min(PROBE_LIMIT));
        let path = format!("/api/v1/shutdown?timeout_ms={}", within.as_millis());
        client.post_stream(&path, &(), deadline).await.map(drop)
    }

    /// Kills the hive, and waits until `limit` for its process to be gone: one that hangs in the kernel may stay.
    async fn kill_by(&mut self, limit: Instant) {
        if timeout_at(limit, self.kill()).await.is_err() {
            tracing::error!(hive = %self.options.name, "the hive cannot be killed");
        }
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
