//! The signs of life of all workers at once: who is to be asked, who is to be killed, and when to look again. Asks
//! `liveness.rs` what they mean.

use input_validation::WorkerId;
use rbee_http::HopClient;
use tokio::time::Instant;

use super::Registry;
use crate::clock::wall_clock_ms;
use crate::liveness::{Condemned, LivenessLimits, Verdict, judge};

/// A worker that is silent, and how to ask it.
#[derive(Debug)]
pub(crate) struct Silent {
    pub(crate) id: WorkerId,
    pub(crate) client: HopClient,
}

/// What came of asking a silent worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Given,
    Missing,
    /// This hive itself stood still while it waited, so nobody knows.
    Unheard,
}

impl Registry {
    /// Looks at the signs of life of all workers: condemns those that do nothing any more, and returns those that are
    /// to be asked, and when to look again; `None` while there is nobody to look at.
    pub(crate) fn look_after(
        &self,
        limits: LivenessLimits,
        deaf_until: Instant,
        now: Instant,
    ) -> (Vec<Silent>, Option<Instant>) {
        let mut state = self.lock();
        let mut silent = Vec::new();
        let mut next: Option<Instant> = None;
        let mut has_changed = false;
        for worker in &mut state.workers {
            match judge(worker.info.state, &worker.watched, limits, deaf_until, now) {
                Verdict::Alive(until) => next = Some(next.map_or(until, |next| next.min(until))),
                Verdict::Condemned(why) => has_changed |= worker.condemn(why),
                Verdict::Silent => match worker.client.clone() {
                    Some(client) => {
                        worker.watched.is_being_asked = true;
                        silent.push(Silent { id: worker.info.id.clone(), client });
                    }
                    None => has_changed |= worker.condemn(Condemned::Stale),
                },
            }
        }
        drop(state);
        if has_changed {
            self.touch();
        }
        (silent, next)
    }

    /// Takes note of what came of asking a silent worker.
    pub(crate) fn asked(&self, id: &WorkerId, answer: Answer) {
        let mut state = self.lock();
        let Some(worker) = state.find(id) else { return };
        worker.watched.is_being_asked = false;
        let now = Instant::now();
        match answer {
            Answer::Given => {
                worker.watched.heard(now);
                worker.info.last_heartbeat_ms = Some(wall_clock_ms());
            }
            Answer::Missing if worker.watched.is_silent(now) => {
                worker.condemn(Condemned::Stale);
            }
            // It has reported meanwhile, or is asked again.
            Answer::Missing | Answer::Unheard => {}
        }
        drop(state);
        self.touch();
    }
}
