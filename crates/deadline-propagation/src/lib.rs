//! The time a request has left. Owns the instant at which a request ends and its form in headers; never cancels
//! anything itself.

mod headers;

use std::time::Duration;

use tokio::time::Instant;

pub use headers::{DeadlineError, TIMEOUT_HEADER, WALL_CLOCK_HEADER};

/// Time a request has without a header: what OpenAI's own clients wait.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(600);

/// Most time a header may ask for: bounds how long one request can hold a slot.
pub const DEADLINE_CAP: Duration = Duration::from_secs(3600);

/// Stands for "never" where an addition would overflow: about thirty years.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Holds the monotonic instant at which a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deadline {
    at: Instant,
}

impl Deadline {
    /// Ends `budget` from now.
    #[must_use]
    pub fn after(budget: Duration) -> Self {
        Self { at: Instant::now() + budget.min(FAR) }
    }

    /// Returns the instant, for `tokio::time::timeout_at` and `sleep_until`.
    #[must_use]
    pub const fn instant(&self) -> Instant {
        self.at
    }

    /// Returns the time left, zero once expired.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Answers whether no time is left.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.remaining().is_zero()
    }

    /// Returns whichever ends first.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Ord::min(self, other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_runs_down_to_zero_and_stays_there() {
        let deadline = Deadline::after(Duration::from_millis(100));
        assert_eq!(deadline.remaining(), Duration::from_millis(100));
        tokio::time::advance(Duration::from_millis(99)).await;
        assert!(!deadline.is_expired());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(deadline.is_expired());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_wins_and_no_budget_overflows() {
        let soon = Deadline::after(Duration::from_secs(1));
        let never = Deadline::after(Duration::MAX);
        assert_eq!(soon.min(never), soon);
        assert_eq!(never.min(soon), soon);
        assert!(never.remaining() > DEADLINE_CAP);
    }
}
