//! One request, as placement sees it: what it asks for and what became of it so
//! far. Decides only whether it is still worth a try.

use std::time::Duration;

use input_validation::{ModelRef, NodeName, Sha256Hex, WorkerId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::{ModelInfo, ModelKind};
use rbee_api::worker::{WorkerInfo, WorkerState};
use tokio::time::Instant;

use crate::cluster::HiveView;

/// How often a request is tried again after it failed before the first byte of
/// a reply: enough for one lost worker and its replacement, too few to let a
/// request that kills workers go through a cluster.
pub(super) const RETRIES_MAX: usize = 2;
/// How often a request may find its worker full and wait for another turn. Turns
/// are given by what the queen knows of the workers, so this is rare; it ends
/// one that a worker never has the memory for.
const FOUND_FULL_MAX: usize = 8;
/// How many workers may end while they compute a request: the second one makes it
/// likely that it is the request, and a third one would be lost to everybody.
const SUSPICIONS_MAX: usize = 2;
/// How long a request that may have ended its worker is computed beside no other of
/// that kind: at least the time that the end of a process takes to be noticed, and not
/// so long that all who were there wait for each other.
const APART_MIN: Duration = Duration::from_millis(250);
const APART_MAX: Duration = Duration::from_secs(2);
/// How many may end while it waits there. It has no part in that, so this only
/// ends a request in a cluster whose workers do nothing but end.
const BYSTOOD_MAX: usize = 8;

/// What a request had to do with its failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Nobody can say, or no worker ended.
    Unknown,
    /// Its worker ended before it was computed there.
    Bystander,
    /// It was being computed when its worker ended, since so long.
    Suspect { computed_for: Duration },
}

/// One request and what became of it so far.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    /// The model, as the client named it.
    pub(super) model: ModelRef,
    /// The kind of model that can answer it.
    pub(super) asks: ModelKind,
    /// Workers it waits for, because they were starting.
    pub(super) awaited: Vec<WorkerId>,
    /// Workers that it was sent to, and since when they ran, in milliseconds since the epoch.
    tried: Vec<(WorkerId, u64)>,
    /// Workers that failed it, and when.
    pub(super) broken: Vec<(WorkerId, Instant)>,
    /// The file that its reply was begun with, which no other can go on with.
    file: Option<Sha256Hex>,
    /// Whether a worker may be started for it.
    pub(super) may_start: bool,
    /// Machines that refused to start a worker for it.
    pub(super) refused_by: Vec<NodeName>,
    attempts_failed: usize,
    /// Workers that ended while they computed it.
    suspicions: usize,
    /// How long the last of them had computed it.
    computed_for: Duration,
    /// Workers that ended while it waited there.
    bystood: usize,
    found_full: usize,
    pub(super) starts: usize,
    pub(super) last_error: Option<ErrorDetail>,
}

impl Want {
    /// A fresh request for `model` that a model of kind `asks` can answer.
    pub(crate) fn new(model: ModelRef, asks: ModelKind) -> Self {
        Self {
            model,
            asks,
            awaited: Vec::new(),
            tried: Vec::new(),
            broken: Vec::new(),
            file: None,
            may_start: true,
            refused_by: Vec::new(),
            attempts_failed: 0,
            suspicions: 0,
            computed_for: Duration::ZERO,
            bystood: 0,
            found_full: 0,
            starts: 0,
            last_error: None,
        }
    }

    /// Returns the model, as the client named it.
    pub(crate) fn model(&self) -> &ModelRef {
        &self.model
    }

    /// Notes that it waits for `worker`: if that one fails to load, so does the request.
    pub(crate) fn awaits(&mut self, worker: WorkerId) {
        if !self.awaited.contains(&worker) {
            self.awaited.push(worker);
        }
    }

    /// Notes that it is sent to `worker`.
    pub(crate) fn tries(&mut self, worker: &WorkerInfo) {
        if !self.is_broken(worker) {
            self.broken.retain(|(id, _)| *id != worker.id);
        }
        self.tried.retain(|(id, _)| *id != worker.id);
        self.tried.push((worker.id.clone(), worker.started_at_ms));
    }

    /// Notes that its reply was begun with this file.
    pub(crate) fn keeps_to(&mut self, file: Sha256Hex) {
        self.file = Some(file);
    }

    /// Notes that its worker was told to stop: others may go on with it, but
    /// none is started in its place.
    pub(crate) fn starts_nothing(&mut self) {
        self.may_start = false;
    }

    /// Notes that its client got something new, so that failures before it do
    /// not count any more.
    pub(crate) fn progressed(&mut self) {
        self.attempts_failed = 0;
        self.suspicions = 0;
        self.bystood = 0;
        self.starts = 0;
    }

    /// Says whether it failed too often to be tried again.
    pub(crate) fn is_given_up(&self) -> bool {
        self.attempts_failed + self.suspicions > RETRIES_MAX
            || self.bystood > BYSTOOD_MAX
            || self.is_convicted()
    }

    /// Returns how long it is to be computed beside no other that a worker may
    /// have ended of: until it is past the point; nothing for one that is no suspect.
    pub(crate) fn time_apart(&self) -> Option<Duration> {
        (self.suspicions > 0).then(|| (self.computed_for * 2).clamp(APART_MIN, APART_MAX))
    }

    /// Says whether too many workers ended while they computed it.
    pub(super) fn is_convicted(&self) -> bool {
        self.suspicions >= SUSPICIONS_MAX
    }

    /// Notes that a start was asked for.
    pub(crate) fn started(&mut self) {
        self.starts += 1;
    }

    /// Notes that a machine refused to start a worker.
    pub(crate) fn refused(&mut self, hive: NodeName, reason: ErrorDetail) {
        self.refused_by.push(hive);
        self.last_error = Some(reason);
    }

    /// Notes that forwarding failed, or that the reply broke off; `worker` is the
    /// one to blame, where it is not the way to it.
    pub(crate) fn failed(
        &mut self,
        worker: Option<WorkerId>,
        reason: ErrorDetail,
        part: Part,
        now: Instant,
    ) {
        match part {
            Part::Unknown => self.attempts_failed += 1,
            Part::Bystander => self.bystood += 1,
            Part::Suspect { computed_for } => {
                self.suspicions += 1;
                self.computed_for = computed_for;
            }
        }
        self.broken.extend(worker.map(|worker| (worker, now)));
        // The code is true between queen and hive, but a client named no worker.
        self.last_error = Some(if reason.code == ErrorCode::WorkerNotFound {
            let message = "the worker ended before it could take the request";
            ErrorDetail::new(ErrorCode::WorkerFailed, message)
        } else {
            reason
        });
    }

    /// Notes that a worker had no room for it; says whether it may wait for
    /// another turn.
    pub(crate) fn found_full(&mut self) -> bool {
        self.found_full += 1;
        self.found_full <= FOUND_FULL_MAX
    }

    /// Says whether `worker` has failed this request. One that was started
    /// anew since under the same id has not.
    pub(crate) fn is_broken(&self, worker: &WorkerInfo) -> bool {
        let is_another =
            |(id, since): &(WorkerId, u64)| *id == worker.id && *since < worker.started_at_ms;
        self.broken.iter().any(|(id, _)| *id == worker.id) && !self.tried.iter().any(is_another)
    }

    pub(super) fn can_use(&self, worker: &WorkerInfo) -> bool {
        worker.state == WorkerState::Ready && !self.is_broken(worker)
    }

    /// Says whether a model of a machine is the one that can answer it.
    pub(super) fn suits(&self, model: &ModelInfo) -> bool {
        self.file.as_ref().is_none_or(|file| model.sha256 == *file)
    }

    /// As `suits`, for a worker of a machine.
    pub(super) fn suits_worker(&self, hive: &HiveView, worker: &WorkerInfo) -> bool {
        self.file.is_none() || hive.model(&worker.model_ref).is_some_and(|model| self.suits(model))
    }

    /// Says whether every ready worker of its model can be used for it.
    pub(crate) fn takes_any(&self) -> bool {
        self.broken.is_empty() && self.file.is_none() && self.suspicions == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPUTED: Part = Part::Suspect { computed_for: Duration::from_millis(300) };

    fn failed(parts: &[Part]) -> Want {
        let mut want = Want::new("smollm2:135m".parse().unwrap(), ModelKind::Generate);
        for part in parts {
            want.failed(
                None,
                ErrorDetail::new(ErrorCode::WorkerFailed, "gone"),
                *part,
                Instant::now(),
            );
        }
        want
    }

    #[test]
    fn who_was_computed_when_two_workers_ended_is_given_up_and_who_waited_is_not() {
        use Part::{Bystander, Unknown};
        for (parts, is_given_up) in [
            (&[COMPUTED][..], false),
            (&[COMPUTED, COMPUTED], true),
            (&[COMPUTED, Bystander, Bystander], false),
            (&[Bystander; 8], false),
            (&[Bystander; 9], true),
            (&[Unknown, COMPUTED], false),
            (&[Unknown, Unknown, COMPUTED], true),
        ] {
            let mut want = failed(parts);
            assert_eq!(want.is_given_up(), is_given_up, "{parts:?}");
            want.progressed();
            assert!(!want.is_given_up() && want.time_apart().is_none(), "{parts:?}");
        }
    }

    #[test]
    fn a_suspect_is_kept_apart_until_it_is_past_the_point() {
        let ms = Duration::from_millis;
        for (computed_for, apart) in [(ms(0), ms(250)), (ms(300), ms(600)), (ms(90_000), ms(2000))]
        {
            let want = failed(&[Part::Suspect { computed_for }]);
            assert_eq!(want.time_apart(), Some(apart));
            assert!(!want.takes_any(), "that it finds no worker says nothing about others");
        }
        assert_eq!(failed(&[Part::Bystander]).time_apart(), None);
    }
}
