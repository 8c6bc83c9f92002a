//! What the jobs of one request have in common. A reply with several choices is
//! several jobs, and one request in the metrics.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::stats::Outcome;

/// How far a request has come, over all of its jobs.
#[derive(Debug)]
pub(crate) struct RequestProgress {
    submitted_at: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Jobs that have not ended.
    jobs_left: u32,
    is_admitted: bool,
    has_token: bool,
    /// The worst one so far.
    outcome: Option<Outcome>,
}

impl RequestProgress {
    /// Begins with a request of so many jobs, none of which is in the engine.
    pub(crate) fn new(submitted_at: Instant, jobs: u32) -> Self {
        let state = State { jobs_left: jobs, is_admitted: false, has_token: false, outcome: None };
        Self { submitted_at, state: Mutex::new(state) }
    }

    /// Notes that a job got a slot. For the first one, returns how long that took.
    pub(super) fn admitted(&self) -> Option<Duration> {
        let is_first = !std::mem::replace(&mut self.lock().is_admitted, true);
        is_first.then(|| self.submitted_at.elapsed())
    }

    /// Notes that a job has its first token. For the first one, returns how
    /// long that took.
    pub(super) fn has_token(&self) -> Option<Duration> {
        let is_first = !std::mem::replace(&mut self.lock().has_token, true);
        is_first.then(|| self.submitted_at.elapsed())
    }

    /// Notes that a job ended. For the last one, returns how the request ended
    /// and how long it took.
    pub(super) fn ended(&self, outcome: Outcome) -> Option<(Outcome, Duration)> {
        let mut state = self.lock();
        state.jobs_left = state.jobs_left.saturating_sub(1);
        let worst = state.outcome.map_or(outcome, |worst| worst.max(outcome));
        state.outcome = Some(worst);
        (state.jobs_left == 0).then(|| (worst, self.submitted_at.elapsed()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_once_and_as_its_worst_choice() {
        let request = RequestProgress::new(Instant::now(), 3);
        assert!(request.admitted().is_some());
        assert!(request.admitted().is_none());
        assert!(request.has_token().is_some());
        assert!(request.has_token().is_none());
        assert!(request.ended(Outcome::Stop).is_none());
        assert!(request.ended(Outcome::Length).is_none());
        let (outcome, _) = request.ended(Outcome::Stop).unwrap();
        assert_eq!(outcome, Outcome::Length);
    }

    #[test]
    fn a_failure_is_worse_than_the_choices_cancelled_for_it() {
        let request = RequestProgress::new(Instant::now(), 2);
        assert!(request.ended(Outcome::Failed).is_none());
        assert_eq!(request.ended(Outcome::Cancelled).unwrap().0, Outcome::Failed);
    }
}
