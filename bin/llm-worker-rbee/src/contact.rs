//! Keeps in touch with the hive: says how far the model is loaded, once that it
//! is, then sends heartbeats. Decides when the worker is nobody's any more; ends nothing
//! itself.

use std::path::PathBuf;
use std::time::Duration;

use deadline_propagation::Deadline;
use input_validation::WorkerId;
use rbee_api::error::ErrorCode;
use rbee_api::hive::HeartbeatReply;
use rbee_api::queen::RunFile;
use rbee_api::worker::{WorkerEnding, WorkerHeartbeat, WorkerLoading, WorkerReady};
use rbee_http::{CallError, HopClient};
use tokio::time::Instant;

/// Time between attempts while the hive cannot be reached.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time the hive has for an answer; it is on the same machine.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Time the hive has to take note of an end, which waits for that.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// Shortest time between two heartbeats, whatever a hive asks for.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Least time between two reports of how far the load is: enough for a bar that
/// moves.
const LOADING_INTERVAL: Duration = Duration::from_millis(250);

/// Why a worker has no hive any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphaned {
    /// The hive does not know this worker.
    Disowned,
    /// The hive has not answered for the time of the lease.
    LeaseOver,
}

/// The worker's side of the contact.
#[derive(Debug, Clone)]
pub(crate) struct Contact {
    pub(crate) hive: HopClient,
    /// Where a hive on this machine writes down its address.
    pub(crate) hive_run_file: Option<PathBuf>,
    pub(crate) worker_id: WorkerId,
    pub(crate) interval: Duration,
    pub(crate) lease: Duration,
    pub(crate) heard: Heard,
}

/// What was said last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    /// What the hive was last told of the load, and when.
    told: Option<(f32, Instant)>,
    /// When the hive last answered; the lease runs from then on.
    answered_at: Instant,
}

impl Default for Heard {
    fn default() -> Self {
        Self { told: None, answered_at: Instant::now() }
    }
}

/// What one attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    Unknown,
    Failed,
}

/// What to do after an attempt.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Wait(Duration),
    End(Orphaned),
}

impl Contact {
    /// Says how far the load is, where that is news. Returns whether the worker
    /// is still its hive's; one that does not answer may do so later.
    ///
    /// # Errors
    /// The hive does not know this worker, or has been silent for too long.
    pub(crate) async fn tell_loading(&mut self, load_progress: f32) -> Result<(), Orphaned> {
        let now = Instant::now();
        if !self.is_news(load_progress, now) {
            return Ok(());
        }
        self.heard.told = Some((load_progress, now));
        let sent = self.send("loading", &WorkerLoading { load_progress }).await;
        let outcome = outcome_of(&sent);
        match outcome {
            Outcome::Answered => self.heard.answered_at = Instant::now(),
            Outcome::Failed => self.look_for_hive(),
            Outcome::Unknown => {}
        }
        match self.next(outcome, self.heard.answered_at.elapsed()) {
            Next::Wait(_) => Ok(()),
            Next::End(orphaned) => Err(orphaned),
        }
    }

    fn is_news(&self, load_progress: f32, now: Instant) -> bool {
        let (last, at) = self.heard.told.unwrap_or((0.0, now));
        let is_due = self.heard.told.is_none() || now >= at + LOADING_INTERVAL;
        is_due && load_progress > last
    }

    /// Runs until the worker is orphaned; drop it to end it before.
    pub(crate) async fn keep(
        &mut self,
        ready: &WorkerReady,
        heartbeat: impl Fn(u64) -> WorkerHeartbeat,
    ) -> Orphaned {
        let mut sequence = 0;
        let mut reached = true;
        loop {
            let sent = if sequence == 0 {
                self.send("ready", ready).await
            } else {
                self.send("heartbeat", &heartbeat(sequence)).await
            };
            let outcome = outcome_of(&sent);
            log_change(reached, &sent);
            reached = outcome != Outcome::Failed;
            match outcome {
                Outcome::Answered => {
                    self.heard.answered_at = Instant::now();
                    sequence += 1;
                    self.obey(&sent);
                }
                Outcome::Failed => self.look_for_hive(),
                Outcome::Unknown => {}
            }
            match self.next(outcome, self.heard.answered_at.elapsed()) {
                Next::Wait(pause) => tokio::time::sleep(pause).await,
                Next::End(orphaned) => return orphaned,
            }
        }
    }

    /// Tells the hive with which code the worker is about to end, if it listens.
    pub(crate) async fn tell_ending(&mut self, exit_code: u8) {
        self.look_for_hive();
        let path = format!("/api/v1/workers/{}/ending", self.worker_id);
        let (body, limit) = (WorkerEnding { exit_code }, Deadline::after(FAREWELL_TIME));
        let sent: Result<HeartbeatReply, _> = self.hive.post(&path, &body, limit).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "the hive was not told of the end");
        }
    }

    /// Takes over the interval that the hive asks for: another one than the
    /// worker was started with, when the hive is another.
    fn obey(&mut self, sent: &Result<HeartbeatReply, CallError>) {
        if let Ok(HeartbeatReply { interval_ms: asked @ 1.. }) = sent {
            self.interval = Duration::from_millis(*asked).max(INTERVAL_MIN);
        }
    }

    /// Turns to the address of the hive that took the place of a silent one. It
    /// tells this worker whether it is still wanted.
    fn look_for_hive(&mut self) {
        let written = self.hive_run_file.as_ref().and_then(|path| std::fs::read(path).ok());
        let run = written.and_then(|json| serde_json::from_slice::<RunFile>(&json).ok());
        let url = run.map(|run| run.worker_url.unwrap_or(run.url));
        if let Some(url) = url.filter(|url| url != self.hive.base_url()) {
            tracing::info!("the hive has another address");
            self.hive = self.hive.moved_to(&url);
        }
    }

    fn next(&self, outcome: Outcome, silence: Duration) -> Next {
        match outcome {
            Outcome::Answered => Next::Wait(self.interval),
            Outcome::Unknown => Next::End(Orphaned::Disowned),
            Outcome::Failed if silence >= self.lease => Next::End(Orphaned::LeaseOver),
            Outcome::Failed => Next::Wait(RETRY_INTERVAL.min(self.lease.saturating_sub(silence))),
        }
    }

    async fn send<T: serde::Serialize + Sync>(
        &self,
        what: &str,
        body: &T,
    ) -> Result<HeartbeatReply, CallError> {
        let path = format!("/api/v1/workers/{}/{what}", self.worker_id);
        self.hive.post(&path, body, Deadline::after(ANSWER_TIME)).await
    }
}

/// Logs when the hive falls silent and when it answers again: a line for each
/// attempt would fill the log.
fn log_change(reached: bool, sent: &Result<HeartbeatReply, CallError>) {
    match sent {
        Err(error) if reached => tracing::warn!(%error, "the hive is not reached; trying on"),
        Ok(_) if !reached => tracing::info!("the hive is reached again"),
        Ok(_) | Err(_) => {}
    }
}

fn outcome_of(sent: &Result<HeartbeatReply, CallError>) -> Outcome {
    match sent {
        Ok(_) => Outcome::Answered,
        Err(CallError::Refused(detail)) if means_disowned(detail.code) => Outcome::Unknown,
        Err(_) => Outcome::Failed,
    }
}

/// Says whether the hive has answered that this worker is not its own. A hive
/// that took the place of the one that started the worker does not know the
/// worker's secret, and answers so before it looks at the worker's name.
fn means_disowned(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::WorkerNotFound | ErrorCode::Unauthorized)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use secrets_management::Secret;

    use super::*;

    fn contact() -> Contact {
        let token = Arc::new(Secret::from_bytes(b"token", "test").unwrap());
        Contact {
            hive: HopClient::new("http://127.0.0.1:1", token).unwrap(),
            hive_run_file: None,
            worker_id: "w-1".parse().unwrap(),
            interval: Duration::from_secs(30),
            lease: Duration::from_secs(900),
            heard: Heard::default(),
        }
    }

    #[test]
    fn a_load_is_told_when_it_has_come_on_and_not_too_often() {
        let mut contact = contact();
        let now = Instant::now();
        assert!(!contact.is_news(0.0, now) && contact.is_news(0.001, now));
        contact.heard.told = Some((0.5, now));
        let later = now + LOADING_INTERVAL;
        for (share, at, is_news) in
            [(0.9, now, false), (0.5, later, false), (0.501, later, true), (0.1, later, false)]
        {
            assert_eq!(contact.is_news(share, at), is_news, "{share}");
        }
    }

    #[tokio::test]
    async fn a_load_is_told_to_the_hive_that_took_the_place_of_a_silent_one() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("hive.json");
        std::fs::write(&file, r#"{"url": "http://127.0.0.1:2", "pid": 1}"#).unwrap();
        let mut contact = Contact { hive_run_file: Some(file), ..contact() };
        contact.tell_loading(0.1).await.unwrap();
        assert_eq!(contact.hive.base_url(), "http://127.0.0.1:2");
    }

    #[tokio::test]
    async fn a_load_whose_hive_is_silent_for_the_time_of_the_lease_is_nobodys() {
        let mut contact = Contact { lease: Duration::from_millis(1), ..contact() };
        contact.heard.answered_at -= contact.lease;
        assert_eq!(contact.tell_loading(0.1).await, Err(Orphaned::LeaseOver));
    }

    #[test]
    fn only_an_unknown_worker_and_a_lease_that_is_over_end_the_contact() {
        let contact = contact();
        let seconds = Duration::from_secs;
        for (outcome, silence, next) in [
            (Outcome::Answered, 0, Next::Wait(seconds(30))),
            (Outcome::Failed, 0, Next::Wait(seconds(1))),
            (Outcome::Failed, 899, Next::Wait(seconds(1))),
            (Outcome::Failed, 900, Next::End(Orphaned::LeaseOver)),
            (Outcome::Unknown, 0, Next::End(Orphaned::Disowned)),
        ] {
            assert_eq!(contact.next(outcome, seconds(silence)), next, "{outcome:?} {silence}");
        }
    }

    #[test]
    fn a_hive_that_does_not_know_the_worker_or_its_secret_has_disowned_it() {
        for code in ErrorCode::ALL {
            let disowned = matches!(code.as_str(), "worker_not_found" | "unauthorized");
            assert_eq!(means_disowned(*code), disowned, "{code}");
        }
    }
}
