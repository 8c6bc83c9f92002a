//! The past of a model's workers as it is written down, for the next hive: by the wall clock, because a process counts
//! its moments from a point of its own. Pure; a wall clock that was set meanwhile lengthens no pause beyond its rule.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Jitter, Next, RestartRecord, RestartRules};
use crate::clock::wall_clock_ms;

/// One moment by both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: Instant,
    /// Milliseconds since 1970.
    pub(crate) wall_ms: u64,
}

impl Moment {
    /// Looks at both clocks.
    pub(crate) fn now() -> Self {
        Self { now: Instant::now(), wall_ms: wall_clock_ms() }
    }

    /// Returns the wall clock's time at another moment.
    pub(crate) fn wall_at(self, at: Instant) -> u64 {
        let to_come = millis(at.saturating_duration_since(self.now));
        let gone_by = millis(self.now.saturating_duration_since(at));
        self.wall_ms.saturating_add(to_come).saturating_sub(gone_by)
    }

    /// Returns the moment in the past at which the wall clock showed `wall_ms`; `None` for one that the other clock
    /// cannot tell.
    fn past_at(self, wall_ms: u64) -> Option<Instant> {
        self.now.checked_sub(Duration::from_millis(self.wall_ms.saturating_sub(wall_ms)))
    }

    fn to_come_at(self, wall_ms: u64, most: Duration) -> Instant {
        let pause = Duration::from_millis(wall_ms.saturating_sub(self.wall_ms));
        self.now + pause.min(most)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A [`RestartRecord`] on paper. That a worker was ready is left out: the next hive finds out by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeptRecord {
    failures_at_ms: Vec<u64>,
    in_a_row: u32,
    opened: u32,
    next: KeptNext,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeptNext {
    Free,
    Pause { at_ms: u64 },
    Open { at_ms: u64 },
}

impl RestartRecord {
    /// Returns what is to be written down of it.
    pub(crate) fn kept(&self, moment: Moment) -> KeptRecord {
        KeptRecord {
            failures_at_ms: self.failures.iter().map(|at| moment.wall_at(*at)).collect(),
            in_a_row: self.in_a_row,
            opened: self.opened,
            next: match self.next {
                Next::Free => KeptNext::Free,
                Next::Pause(until) => KeptNext::Pause { at_ms: moment.wall_at(until) },
                Next::Open(until) => KeptNext::Open { at_ms: moment.wall_at(until) },
            },
        }
    }
}

impl KeptRecord {
    /// Returns the record that was written down, under the rules of now.
    pub(crate) fn restored(&self, rules: &RestartRules, moment: Moment) -> RestartRecord {
        let most = Jitter::new(1.0);
        RestartRecord {
            failures: self.failures_at_ms.iter().filter_map(|at| moment.past_at(*at)).collect(),
            in_a_row: self.in_a_row,
            opened: self.opened,
            ready_at: None,
            next: match self.next {
                KeptNext::Free => Next::Free,
                KeptNext::Pause { at_ms } => {
                    let longest = most.lengthen(rules.pause(self.in_a_row));
                    Next::Pause(moment.to_come_at(at_ms, longest))
                }
                KeptNext::Open { at_ms } => {
                    let longest = most.lengthen(rules.probe_pause(self.opened));
                    Next::Open(moment.to_come_at(at_ms, longest))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use rbee_api::worker_exit::Breaker;

    use super::super::tests::{rules, seconds};
    use super::super::{Cure, Gate};
    use super::*;

    fn failed(times: usize, now: Instant) -> RestartRecord {
        let mut record = RestartRecord::default();
        (0..times).for_each(|_| record.failed(&rules(), now, Cure::Retry, Jitter::new(0.0)));
        record
    }

    #[test]
    fn the_next_hive_goes_on_with_the_same_past() {
        let begin = Moment { now: Instant::now() + seconds(5000), wall_ms: 10_000_000 };
        // As long after by one clock as by the other, though these count from elsewhere.
        let later = Moment { now: begin.now + seconds(7), wall_ms: begin.wall_ms + 7_000 };
        for times in 0..6 {
            let record = failed(times, begin.now);
            let kept = serde_json::to_string(&record.kept(begin)).unwrap();
            let kept: KeptRecord = serde_json::from_str(&kept).unwrap();
            let restored = kept.restored(&rules(), later);
            assert_eq!(restored.gate(later.now), record.gate(later.now), "{times}");
            assert_eq!(restored.breaker(), record.breaker(), "{times}");
            if record.gate(later.now) != Gate::Open {
                assert_eq!(restored, record, "{times}");
            }
        }
    }

    #[test]
    fn a_clock_that_was_set_back_lengthens_no_pause_beyond_its_rule() {
        let begin = Moment { now: Instant::now(), wall_ms: 10_000_000 };
        let set_back = Moment { now: begin.now, wall_ms: 1_000 };
        let open = failed(3, begin.now).kept(begin).restored(&rules(), set_back);
        assert_eq!(open.next_try(), Some(begin.now + seconds(75)));
        let pause = failed(2, begin.now).kept(begin).restored(&rules(), set_back);
        assert_eq!(pause.next_try(), Some(begin.now + Duration::from_millis(2500)));
    }

    #[test]
    fn failures_of_long_ago_are_counted_no_more_than_without_a_restart() {
        let begin = Moment { now: Instant::now(), wall_ms: 10_000_000 };
        for (age_s, breaker) in [(599, Breaker::Open), (601, Breaker::Closed)] {
            let kept = KeptRecord {
                failures_at_ms: vec![begin.wall_ms - age_s * 1000, begin.wall_ms],
                in_a_row: 2,
                opened: 0,
                next: KeptNext::Free,
            };
            let mut restored = kept.restored(&rules(), begin);
            restored.failed(&rules(), begin.now, Cure::Retry, Jitter::new(0.0));
            assert_eq!((restored.breaker(), restored.failures()), (breaker, 3), "{age_s}");
        }
    }
}
