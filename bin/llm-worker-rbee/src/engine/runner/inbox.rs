//! Takes commands in, and waits for them while there is nothing to compute.

use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use tokio::time::Instant;

use super::super::{Command, Job};
use super::Runner;
use super::active::Active;

/// How often jobs are looked at when none can be computed: all of their readers
/// lag, or what they begin with is still being read.
const LAG_POLL: Duration = Duration::from_millis(5);

impl Runner {
    /// Takes in what has come; waits for something while there is nothing to compute.
    pub(super) fn take_commands(&mut self) {
        let wait = if self.jobs.is_empty() {
            self.time_to_keep()
        } else if self.entries.is_empty() {
            Some(LAG_POLL)
        } else {
            Some(Duration::ZERO)
        };
        let received = match wait {
            None => self.control.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(Duration::ZERO) => Err(RecvTimeoutError::Timeout),
            Some(wait) => self.control.inbox.recv_timeout(wait),
        };
        match received {
            Ok(command) => self.take(command),
            Err(RecvTimeoutError::Timeout) if self.jobs.is_empty() => self.keep_one(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                self.control.stopping.store(true, Ordering::Relaxed);
            }
        }
        while let Ok(command) = self.control.inbox.try_recv() {
            self.take(command);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(job) => {
                let Job { id, deadline, .. } = *job;
                self.scheduler.add(id, Instant::now(), deadline.instant());
                self.jobs.insert(id, Active::new(*job));
            }
            Command::Embed(job) => {
                // Nobody gets an input to embed past the model's kind.
                tracing::error!(job = job.id.0, "inputs to embed reached a text model");
            }
            // What it is for is in `stopping`.
            Command::Stop => {}
        }
    }
}
