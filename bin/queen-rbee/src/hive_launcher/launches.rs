//! When a hive may be started again: at once if the last one was healthy, later
//! and later if not. Takes the time, never asks for it.

use std::time::Duration;

use tokio::time::Instant;

/// Longest time between two starts of a hive that ends again and again.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A hive that ran this long was healthy: its next end counts as a first one.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// The starts so far, as far as they count.
#[derive(Debug, Default)]
pub(super) struct Launches {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Launches {
    pub(super) fn begin(&mut self, now: Instant) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last = Some(now);
    }

    pub(super) fn ended(&mut self, now: Instant) {
        if self.last.is_some_and(|last| now >= last + HEALTHY_AFTER) {
            self.in_a_row = 0;
        }
    }

    /// 1, 2, 4 … 60 s after the last start, the first one at once.
    pub(super) fn next_due(&self, now: Instant) -> Instant {
        match self.last {
            Some(last) if self.in_a_row > 0 => {
                let seconds = 1_u64.checked_shl(self.in_a_row - 1).unwrap_or(u64::MAX);
                (last + Duration::from_secs(seconds).min(BACKOFF_MAX)).max(now)
            }
            Some(_) | None => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_put_off_longer_and_longer_until_one_was_healthy() {
        let mut launches = Launches::default();
        let mut now = Instant::now();
        assert_eq!(launches.next_due(now), now);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            launches.begin(now);
            launches.ended(now);
            let due = launches.next_due(now);
            pauses.push((due - now).as_secs());
            now = due;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        launches.begin(now);
        now += HEALTHY_AFTER;
        launches.ended(now);
        assert_eq!(launches.next_due(now), now);
    }

    #[test]
    fn a_hive_that_lived_longer_than_the_pause_is_started_again_at_once() {
        let mut launches = Launches::default();
        let start = Instant::now();
        launches.begin(start);
        let end = start + Duration::from_secs(30);
        launches.ended(end);
        assert_eq!(launches.next_due(end), end);
    }
}
