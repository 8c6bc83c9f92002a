//! Decides when a worker that failed is started again. Pure: takes the time and a random share, starts nothing.
//!
//! Each failure doubles the pause before the next start. Several within a window, or one that a retry cannot cure, open
//! the breaker: from then on single tries are made, each after a longer pause. What has been healthy for long has no
//! past.

mod kept;

use std::collections::VecDeque;
use std::time::Duration;

use rbee_api::worker_exit::{Breaker, ExitCause};
use tokio::time::Instant;

pub(crate) use kept::{KeptRecord, Moment};

/// Most by which a pause is lengthened, so that workers that failed together do not start together.
const JITTER_MAX: f64 = 0.25;
/// Most doublings that are counted: more would overflow, and the longest pause is reached long before.
const DOUBLINGS_MAX: u32 = 31;

/// How failed workers are started again.
#[derive(Debug, Clone)]
pub(crate) struct RestartRules {
    /// Pause after the first failure.
    pub(crate) delay: Duration,
    /// Longest pause before the breaker opens.
    pub(crate) delay_max: Duration,
    /// Failures within the window that open the breaker; at least 1.
    pub(crate) failures_max: u32,
    /// How long a failure counts.
    pub(crate) window: Duration,
    /// How long a worker has to be ready for its past to be forgotten.
    pub(crate) healthy: Duration,
    /// Pauses before each try once the breaker is open; the last one repeats.
    pub(crate) probe_delays: Vec<Duration>,
}

impl RestartRules {
    /// The pause after a number of failures in a row, without jitter.
    fn pause(&self, in_a_row: u32) -> Duration {
        let doublings = in_a_row.saturating_sub(1).min(DOUBLINGS_MAX);
        self.delay.saturating_mul(1 << doublings).min(self.delay_max)
    }

    /// The pause before the next try of a breaker that has opened so often.
    fn probe_pause(&self, opened: u32) -> Duration {
        let index = usize::try_from(opened.saturating_sub(1)).unwrap_or(usize::MAX);
        let last = self.probe_delays.last();
        self.probe_delays.get(index).or(last).copied().unwrap_or(self.delay_max)
    }
}

/// A random share, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jitter(f64);

impl Jitter {
    /// Takes a share; what lies outside is the nearest that does not.
    pub(crate) const fn new(share: f64) -> Self {
        // A number that is none is no share either.
        Self(if share > 0.0 { share.min(1.0) } else { 0.0 })
    }

    /// Lengthens a pause.
    fn lengthen(self, pause: Duration) -> Duration {
        pause + pause.mul_f64(JITTER_MAX * self.0)
    }
}

/// Whether starting a worker again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cure {
    /// It can.
    Retry,
    /// Somebody has to mend something first.
    Hand,
}

impl Cure {
    /// Says what helps against an exit.
    pub(crate) const fn of(cause: ExitCause) -> Self {
        match cause {
            ExitCause::BadUsage
            | ExitCause::BadModel
            | ExitCause::ModelUnreadable
            | ExitCause::BadConfig
            | ExitCause::ProgramMissing
            | ExitCause::PortTaken => Self::Hand,
            ExitCause::Stopped
            | ExitCause::Exited
            | ExitCause::EngineFailed
            | ExitCause::NoResources
            | ExitCause::LeaseEnded
            | ExitCause::Panicked
            | ExitCause::ExitCode
            | ExitCause::Segfault
            | ExitCause::Aborted
            | ExitCause::Killed
            | ExitCause::Signalled
            | ExitCause::OutOfMemory
            | ExitCause::LoadTimeout
            | ExitCause::LoadStalled
            | ExitCause::Stale
            | ExitCause::Hung
            | ExitCause::NotStarted
            | ExitCause::Lost
            | ExitCause::Unknown => Self::Retry,
        }
    }
}

/// The past of a model's workers, as far as it bears on the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RestartRecord {
    /// Failures that count, oldest first; never more than open the breaker.
    failures: VecDeque<Instant>,
    in_a_row: u32,
    /// How often the breaker has opened since a worker was last healthy for long.
    opened: u32,
    ready_at: Option<Instant>,
    next: Next,
}

/// What stands between now and the next start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Next {
    /// Nothing: a worker runs, or none is wanted.
    #[default]
    Free,
    /// A pause.
    Pause(Instant),
    /// The open breaker.
    Open(Instant),
}

/// Whether a worker may start now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Yes.
    Open,
    /// From then on, after a pause.
    After(Instant),
    /// From then on, as the one try of an open breaker.
    Broken(Instant),
}

impl RestartRecord {
    /// Takes note of a failure and plans the next start.
    pub(crate) fn failed(
        &mut self,
        rules: &RestartRules,
        now: Instant,
        cure: Cure,
        jitter: Jitter,
    ) {
        if self.has_recovered(rules, now) {
            self.reset();
        }
        self.ready_at = None;
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.failures.push_back(now);
        self.failures.retain(|at| now.saturating_duration_since(*at) < rules.window);
        let most = usize::try_from(rules.failures_max).unwrap_or(usize::MAX).max(1);
        while self.failures.len() > most {
            self.failures.pop_front();
        }
        if self.opened > 0 || cure == Cure::Hand || self.failures.len() >= most {
            self.opened = self.opened.saturating_add(1);
        }
        self.plan(rules, now, jitter);
    }

    /// Plans the next start anew after one that had no room: that is nobody's failure.
    pub(crate) fn had_no_room(&mut self, rules: &RestartRules, now: Instant, jitter: Jitter) {
        self.plan(rules, now, jitter);
    }

    fn plan(&mut self, rules: &RestartRules, now: Instant, jitter: Jitter) {
        self.next = match self.opened {
            0 => Next::Pause(now + jitter.lengthen(rules.pause(self.in_a_row))),
            opened => Next::Open(now + jitter.lengthen(rules.probe_pause(opened))),
        };
    }

    /// Takes note that a worker is being started.
    pub(crate) fn starts(&mut self) {
        self.next = Next::Free;
        self.ready_at = None;
    }

    /// Takes note that the worker is ready.
    pub(crate) fn is_ready(&mut self, now: Instant) {
        self.ready_at = Some(now);
    }

    /// Takes note that the worker ended as it was asked to: none is started in its place.
    pub(crate) fn stopped(&mut self, rules: &RestartRules, now: Instant) {
        if self.has_recovered(rules, now) {
            self.reset();
        }
        self.starts();
    }

    /// Forgets the past.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Says whether a worker has been healthy for so long that its past does not count.
    pub(crate) fn has_recovered(&self, rules: &RestartRules, now: Instant) -> bool {
        self.ready_at.is_some_and(|at| now.saturating_duration_since(at) >= rules.healthy)
    }

    /// Returns when it will have been healthy for so long, unless it fails before.
    pub(crate) fn recovers_at(&self, rules: &RestartRules) -> Option<Instant> {
        self.ready_at?.checked_add(rules.healthy)
    }

    /// Says whether a worker may start.
    pub(crate) fn gate(&self, now: Instant) -> Gate {
        match self.next {
            Next::Pause(until) if until > now => Gate::After(until),
            Next::Open(until) if until > now => Gate::Broken(until),
            Next::Free | Next::Pause(_) | Next::Open(_) => Gate::Open,
        }
    }

    /// Returns when the next start is planned.
    pub(crate) const fn next_try(&self) -> Option<Instant> {
        match self.next {
            Next::Free => None,
            Next::Pause(until) | Next::Open(until) => Some(until),
        }
    }

    /// Returns how many workers in a row have failed. One that starts then is started again for that many times.
    pub(crate) const fn failures(&self) -> u32 {
        self.in_a_row
    }

    pub(crate) const fn breaker(&self) -> Breaker {
        match (self.next, self.opened) {
            (Next::Open(_), _) => Breaker::Open,
            (Next::Free | Next::Pause(_), 0) => Breaker::Closed,
            (Next::Free | Next::Pause(_), _) => Breaker::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests;
