//! By when each step towards the end of a hive is taken, so that all of them fit into one time. Takes the time, never
//! asks for it.

use std::time::Duration;

use tokio::time::Instant;

/// How long a hive has that was told to end at once; it needs one second.
const HASTE: Duration = Duration::from_secs(2);
/// What is kept for the case that a hive has to be killed: another one starts and ends the workers that it has left.
const RESCUE: Duration = Duration::from_secs(4);
/// What a hive takes beyond its time to be seen gone.
const MARGIN: Duration = Duration::from_secs(1);

/// Hives that are ended, one after the other: the one there was, and one more where that was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    First,
    Last,
}

/// The steps towards the end of one hive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steps {
    /// What the hive is told that it has.
    pub(super) told: Duration,
    /// When it is told to end at once.
    pub(super) hasten_at: Instant,
    /// When it is killed.
    pub(super) kill_at: Instant,
}

impl Steps {
    /// Divides the time from `now` to `end`. Where it is short, each step has a share of it.
    pub(super) fn until(end: Instant, now: Instant, round: Round) -> Self {
        let whole = end.saturating_duration_since(now);
        let rescue = match round {
            Round::First => RESCUE.min(whole / 3),
            Round::Last => Duration::ZERO,
        };
        let haste = HASTE.min(whole / 4);
        let peace = whole - rescue - haste;
        Self {
            told: peace - MARGIN.min(peace / 4),
            hasten_at: now + peace,
            kill_at: now + peace + haste,
        }
    }

    /// The same for a hive that is not waited for: it is told to end at once, now.
    pub(super) fn hastened(self, now: Instant) -> Self {
        Self { hasten_at: now.min(self.hasten_at), kill_at: self.kill_at.min(now + HASTE), ..self }
    }
}

/// Returns by when a hive has to be there that is told to end by `end`: the end itself takes the shorter part.
pub(super) fn there_by(end: Instant, now: Instant) -> Instant {
    now + end.saturating_duration_since(now) / 4 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_steps_fit_into_the_time_and_leave_some_for_a_hive_that_ends_what_a_killed_one_has_left()
    {
        let now = Instant::now();
        for (whole_ms, round, told_ms, hasten_ms, kill_ms) in [
            (29_000, Round::First, 22_000, 23_000, 25_000),
            (18_000, Round::First, 11_000, 12_000, 14_000),
            (4_800, Round::First, 1_500, 2_000, 3_200),
            (4_000, Round::Last, 2_250, 3_000, 4_000),
            (0, Round::First, 0, 0, 0),
        ] {
            let ms = Duration::from_millis;
            let steps = Steps::until(now + ms(whole_ms), now, round);
            let expected = Steps {
                told: ms(told_ms),
                hasten_at: now + ms(hasten_ms),
                kill_at: now + ms(kill_ms),
            };
            assert_eq!(steps, expected, "{whole_ms} {round:?}");
            assert!(steps.hastened(now).kill_at <= now + HASTE);
        }
    }
}
