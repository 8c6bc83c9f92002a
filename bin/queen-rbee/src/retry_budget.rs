//! How much the queen may add to the load by trying requests again: a share of
//! the requests of the last seconds, and a few where there are few. Counts;
//! never tries anything itself.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long a request counts. Long enough to even out, short enough that quiet
/// hours pay for no storm.
const WINDOW: Duration = Duration::from_secs(10);
/// Requests are counted together for this long.
const PART: Duration = Duration::from_secs(1);
/// Retries that are always allowed in a window, so that a machine with one user
/// survives the end of a worker.
const RETRIES_MIN: u64 = 10;

/// Requests and retries of the last seconds.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    /// Retries to a hundred requests.
    percent: u64,
    parts: Mutex<VecDeque<Part>>,
}

/// A second of them.
#[derive(Debug)]
struct Part {
    since: Instant,
    requests: u64,
    retries: u64,
}

impl RetryBudget {
    pub(crate) const fn new(percent: u64) -> Self {
        Self { percent, parts: Mutex::new(VecDeque::new()) }
    }

    /// Counts a request that has come.
    pub(crate) fn request(&self, now: Instant) {
        self.with_parts(now, |parts| {
            if let Some(part) = parts.back_mut() {
                part.requests += 1;
            }
        });
    }

    /// Says whether something may be tried again now, and counts it if so.
    pub(crate) fn allows_retry(&self, now: Instant) -> bool {
        self.with_parts(now, |parts| {
            let requests: u64 = parts.iter().map(|part| part.requests).sum();
            let retries: u64 = parts.iter().map(|part| part.retries).sum();
            let allowed = (requests.saturating_mul(self.percent) / 100).max(RETRIES_MIN);
            match parts.back_mut() {
                Some(part) if retries < allowed => {
                    part.retries += 1;
                    true
                }
                Some(_) | None => false,
            }
        })
    }

    /// Forgets what is too old and hands out the rest, the present part at its end.
    fn with_parts<T>(&self, now: Instant, with: impl FnOnce(&mut VecDeque<Part>) -> T) -> T {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |part: &Part| part.since + WINDOW <= now;
        while parts.front().is_some_and(is_old) {
            parts.pop_front();
        }
        if parts.back().is_none_or(|part| part.since + PART <= now) {
            parts.push_back(Part { since: now, requests: 0, retries: 0 });
        }
        with(&mut parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(budget: &RetryBudget, tried: usize, now: Instant) -> usize {
        (0..tried).filter(|_| budget.allows_retry(now)).count()
    }

    #[test]
    fn retries_are_a_share_of_the_requests_of_the_last_seconds() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let budget = RetryBudget::new(20);
        assert_eq!(retries(&budget, 50, at(0)), 10, "a few are allowed without any requests");
        for second in 0..10 {
            (0..100).for_each(|_| budget.request(at(second)));
        }
        assert_eq!(retries(&budget, 1000, at(9)), 200 - 10);
        assert_eq!(retries(&budget, 1000, at(9)), 0);
        // The first seconds' requests and retries count no more.
        (0..100).for_each(|_| budget.request(at(11)));
        assert_eq!(retries(&budget, 1000, at(11)), 0, "190 of the last 900 were tried again");
        assert_eq!(retries(&budget, 1000, at(40)), 10, "all of it is long ago");
    }

    #[test]
    fn every_failing_request_adds_a_fifth_at_most() {
        let budget = RetryBudget::new(20);
        let begin = Instant::now();
        let mut tried_again = 0;
        for n in 0..5000_u64 {
            let now = begin + Duration::from_millis(n);
            budget.request(now);
            tried_again += retries(&budget, 2, now);
        }
        assert_eq!(tried_again, 1000);
    }
}
