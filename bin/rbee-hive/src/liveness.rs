//! Decides from a worker's signs of life whether it is still at work. Pure: takes what is known and the time, asks and
//! kills nobody.
//!
//! A worker reports beside its engine, so one that computes for long is not silent, and one that is silent may be asked
//! before it is given up. What hangs is a step of the engine that does not end.

use std::time::Duration;

use rbee_api::worker::WorkerState;
use rbee_api::worker_exit::ExitCause;
use tokio::time::Instant;

/// Heartbeats that may be missing, one of them on its way.
const SILENT_INTERVALS: u32 = 2;
/// A disk that is slower than this many bytes a second is not waited for.
const LOAD_BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;
/// What comes so much later than it was planned shows that this process was halted or starved itself.
pub(crate) const LATE: Duration = Duration::from_secs(1);
/// How long it may take to look at a worker again when nothing is known to be due.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Returns the time that a load may take more than a small one, by the size of its file.
pub(crate) const fn load_allowance(size_bytes: u64) -> Duration {
    Duration::from_secs(size_bytes / LOAD_BYTES_PER_SECOND)
}

/// Why a worker is killed that does nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condemned {
    /// It has fallen silent.
    Stale,
    /// One step of its engine does not end.
    Hung,
    /// Its load does not come on.
    LoadStalled,
}

impl Condemned {
    pub(crate) const fn cause(self) -> ExitCause {
        match self {
            Self::Stale => ExitCause::Stale,
            Self::Hung => ExitCause::Hung,
            Self::LoadStalled => ExitCause::LoadStalled,
        }
    }
}

/// How long workers may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LivenessLimits {
    /// For one step of the engine.
    pub(crate) hang: Duration,
    /// For a load to come on, besides what its size allows.
    pub(crate) load_stall: Duration,
}

/// The signs of life of one worker.
#[derive(Debug, Clone)]
pub(crate) struct Watched {
    /// How often it reports.
    pub(crate) interval: Duration,
    /// Whether it is known to have loaded its model, though it has not said so to this hive.
    pub(crate) has_loaded: bool,
    /// What the size of its model adds to the time of its load.
    load_allowance: Duration,
    /// Whether it is being asked about itself at this moment.
    pub(crate) is_being_asked: bool,
    heard_at: Instant,
    load_at: Instant,
    /// The step it computes, by the number of those before, and since when it is known to.
    step: Option<(u64, Instant)>,
}

impl Watched {
    /// Nothing was heard of it yet.
    pub(crate) const fn new(now: Instant, interval: Duration, load_allowance: Duration) -> Self {
        Self {
            interval,
            has_loaded: false,
            load_allowance,
            is_being_asked: false,
            heard_at: now,
            load_at: now,
            step: None,
        }
    }

    /// It has said or answered something.
    pub(crate) const fn heard(&mut self, now: Instant) {
        self.heard_at = now;
    }

    /// Says whether it has reported nothing for longer than it may.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard_at) >= self.silence_max()
    }

    const fn silence_max(&self) -> Duration {
        self.interval.saturating_mul(SILENT_INTERVALS)
    }

    /// Its load has come on.
    pub(crate) const fn load_came_on(&mut self, now: Instant) {
        self.load_at = now;
    }

    /// It has reported whether it computes a step, and how many it has computed.
    pub(crate) fn beat(&mut self, now: Instant, is_stepping: bool, steps: u64) {
        self.heard_at = now;
        self.step = match self.step {
            Some((same, since)) if is_stepping && same == steps => Some((same, since)),
            _ => is_stepping.then_some((steps, now)),
        };
    }
}

/// What a worker's signs of life mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is at work, and nothing else can be said before then.
    Alive(Instant),
    /// It is silent; unless it answers when asked, it is stale.
    Silent,
    /// It does nothing any more.
    Condemned(Condemned),
}

/// Judges a worker. Silence before `deaf_until` does not count, because nobody listened then.
pub(crate) fn judge(
    state: WorkerState,
    watched: &Watched,
    limits: LivenessLimits,
    deaf_until: Instant,
    now: Instant,
) -> Verdict {
    let later = |since: Instant, limit: Duration| {
        since.checked_add(limit).unwrap_or_else(|| now + LOOK_AGAIN)
    };
    match state {
        WorkerState::Starting if !watched.has_loaded => {
            let limit = limits.load_stall.saturating_add(watched.load_allowance);
            let due = later(watched.load_at.max(deaf_until), limit);
            if due <= now {
                Verdict::Condemned(Condemned::LoadStalled)
            } else {
                Verdict::Alive(due)
            }
        }
        WorkerState::Starting | WorkerState::Ready => {
            let hangs = watched.step.map(|(_, since)| later(since, limits.hang));
            if hangs.is_some_and(|due| due <= now) && heard_since_hang(watched, limits) {
                return Verdict::Condemned(Condemned::Hung);
            }
            let silent = later(watched.heard_at.max(deaf_until), watched.silence_max());
            if silent > now {
                // A hang is found out by a heartbeat, which wakes whoever looks.
                Verdict::Alive(silent)
            } else if watched.is_being_asked {
                Verdict::Alive(now + LOOK_AGAIN)
            } else {
                Verdict::Silent
            }
        }
        WorkerState::Stopping | WorkerState::Failed => Verdict::Alive(now + LOOK_AGAIN),
    }
}

/// Whether the worker itself has said, after the limit, that the step still runs: otherwise it may have ended since.
fn heard_since_hang(watched: &Watched, limits: LivenessLimits) -> bool {
    watched.step.is_some_and(|(_, since)| watched.heard_at >= since + limits.hang)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LivenessLimits =
        LivenessLimits { hang: Duration::from_secs(300), load_stall: Duration::from_secs(30) };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn watched(now: Instant) -> Watched {
        Watched::new(now, seconds(30), seconds(10))
    }

    fn ready(watched: &Watched, deaf_until: Instant, now: Instant) -> Verdict {
        judge(WorkerState::Ready, watched, LIMITS, deaf_until, now)
    }

    #[test]
    fn a_worker_is_silent_after_two_intervals_and_is_asked_once() {
        let begin = Instant::now();
        let mut watched = watched(begin);
        watched.beat(begin + seconds(5), false, 1);
        let due = begin + seconds(65);
        assert_eq!(ready(&watched, begin, due - seconds(1)), Verdict::Alive(due));
        assert_eq!(ready(&watched, begin, due), Verdict::Silent);
        watched.is_being_asked = true;
        assert!(matches!(ready(&watched, begin, due), Verdict::Alive(_)));
        watched.heard(due);
        assert_eq!(ready(&watched, begin, due), Verdict::Alive(due + seconds(60)));
    }

    #[test]
    fn silence_while_nobody_listened_does_not_count() {
        let begin = Instant::now();
        let watched = watched(begin);
        let woken = begin + seconds(1000);
        assert_eq!(ready(&watched, woken, woken), Verdict::Alive(woken + seconds(60)));
        let loading = judge(WorkerState::Starting, &watched, LIMITS, woken, woken);
        assert_eq!(loading, Verdict::Alive(woken + seconds(40)));
    }

    #[test]
    fn a_step_hangs_when_each_heartbeat_says_that_it_still_runs() {
        let begin = Instant::now();
        let mut watched = watched(begin);
        for beat in 0..10 {
            watched.beat(begin + seconds(30 * beat), true, 7);
            let now = begin + seconds(30 * beat);
            assert!(matches!(ready(&watched, begin, now), Verdict::Alive(_)), "{beat}");
        }
        // The time is over, but whether the step still runs is not known before the next heartbeat.
        let over = begin + seconds(301);
        assert!(matches!(ready(&watched, begin, over), Verdict::Alive(_)));
        let mut goes_on = watched.clone();
        goes_on.beat(over, true, 8);
        assert!(matches!(ready(&goes_on, begin, over), Verdict::Alive(_)));
        let mut idle = watched.clone();
        idle.beat(over, false, 7);
        assert!(matches!(ready(&idle, begin, over), Verdict::Alive(_)));
        watched.beat(over, true, 7);
        assert_eq!(ready(&watched, begin, over), Verdict::Condemned(Condemned::Hung));
    }

    #[test]
    fn a_load_may_take_as_long_as_it_comes_on_and_more_for_a_large_file() {
        let begin = Instant::now();
        let mut watched = watched(begin);
        let look =
            |watched: &Watched, now| judge(WorkerState::Starting, watched, LIMITS, begin, now);
        assert_eq!(look(&watched, begin + seconds(39)), Verdict::Alive(begin + seconds(40)));
        watched.load_came_on(begin + seconds(39));
        assert_eq!(look(&watched, begin + seconds(78)), Verdict::Alive(begin + seconds(79)));
        let stalled = Verdict::Condemned(Condemned::LoadStalled);
        assert_eq!(look(&watched, begin + seconds(79)), stalled);
        assert_eq!((load_allowance(1), load_allowance(64 << 30)), (seconds(0), seconds(1024)));
    }

    #[test]
    fn one_that_loaded_under_a_former_hive_is_watched_like_one_that_serves() {
        let begin = Instant::now();
        let mut watched = watched(begin);
        watched.has_loaded = true;
        let look = |now| judge(WorkerState::Starting, &watched, LIMITS, begin, now);
        assert_eq!(look(begin + seconds(59)), Verdict::Alive(begin + seconds(60)));
        assert_eq!(look(begin + seconds(60)), Verdict::Silent);
    }

    #[test]
    fn one_that_ends_is_not_watched() {
        let begin = Instant::now();
        for state in [WorkerState::Stopping, WorkerState::Failed] {
            let verdict = judge(state, &watched(begin), LIMITS, begin, begin + seconds(9999));
            assert!(matches!(verdict, Verdict::Alive(_)), "{state:?}");
        }
    }
}
