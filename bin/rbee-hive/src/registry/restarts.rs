//! The past of each model's workers, and what is planned in the place of a failed one. Asks `restart.rs` what is to be
//! done, and says it in the listing; starts nothing.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use input_validation::{ModelAlias, ModelRef, WorkerId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::worker::{WorkerInfo, WorkerState};
use rbee_api::worker_exit::{Breaker, ExitCause, WorkerExit};
use rbee_http::ApiError;
use serde_json::json;
use tokio::time::Instant;

use super::{Registry, State, Worker, no_such_worker};
use crate::clock::wall_clock_ms;
use crate::restart::{Cure, Gate, Jitter, RestartRecord, RestartRules};

/// Where the exit code stands in what the kernel tells of a process's end.
const EXIT_CODE_SHIFT: u32 = 8;

/// How a worker failed, and a random share by which the next start is put off.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    /// What is told to whoever waits for the worker.
    pub(crate) detail: ErrorDetail,
    pub(crate) exit: WorkerExit,
    pub(crate) jitter: Jitter,
}

/// What is planned in the place of a worker that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) breaker: Breaker,
    /// Time until the next start.
    pub(crate) pause: Duration,
    /// Whether the worker itself had been started again, and was not healthy for long.
    pub(crate) was_restart: bool,
}

/// Whether a worker of a model may be started for a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Turn {
    /// Now.
    Now,
    /// Not before then.
    At(Instant),
    /// Later than the request can wait.
    Refused(Box<ErrorDetail>),
}

/// The past of a model's workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lineage {
    pub(super) record: RestartRecord,
    /// How the last one ended.
    pub(super) last_exit: WorkerExit,
    pub(super) alias: Option<ModelAlias>,
}

/// What a reset has forgotten.
#[derive(Debug)]
pub(crate) struct Forgotten {
    /// The worker as it stands there now.
    pub(crate) worker: WorkerInfo,
    /// Failures in a row that counted.
    pub(crate) failures: u32,
    /// What they had brought the breaker to.
    pub(crate) breaker: Breaker,
}

impl Registry {
    /// Says whether a worker of a model may be started for a request that can wait until `patience`.
    pub(crate) fn turn(&self, model: &ModelRef, now: Instant, patience: Instant) -> Turn {
        let state = self.lock();
        let workers = || state.workers.iter().filter(|worker| worker.info.model_ref == *model);
        let has_worker = workers().any(Worker::is_usable);
        if !has_worker && now < patience && workers().any(Worker::is_condemned) {
            // It fails within moments, and what follows from that is known then.
            return Turn::At(patience);
        }
        let Some(lineage) = state.lineages.get(model).filter(|_| !has_worker) else {
            return Turn::Now;
        };
        match lineage.record.gate(now) {
            Gate::Open => Turn::Now,
            Gate::After(until) if until <= patience => Turn::At(until),
            Gate::After(until) | Gate::Broken(until) => Turn::Refused(Box::new(
                lineage.refusal(model, until.saturating_duration_since(now)),
            )),
        }
    }

    /// Takes out the models whose next start is due, and says when the next one will be.
    pub(crate) fn due_restarts(&self, now: Instant) -> (Vec<ModelRef>, Option<Instant>) {
        let mut state = self.lock();
        if state.is_draining {
            return (Vec::new(), None);
        }
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for (model, lineage) in &mut state.lineages {
            match lineage.record.next_try() {
                Some(at) if at <= now => {
                    lineage.record.starts();
                    due.push(model.clone());
                }
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        (due, next)
    }

    /// Takes note that a worker that was entered has no process, for a reason that is not its own. Nothing counts against its
    /// model; the row stays to show why. Returns the pause before the next try, where one is planned: whoever asked for
    /// the first worker of a model has the answer and may ask again.
    pub(crate) fn not_started(
        &self,
        id: &WorkerId,
        detail: ErrorDetail,
        jitter: Jitter,
    ) -> Option<Duration> {
        let now = Instant::now();
        let mut state = self.lock();
        let State { workers, lineages, .. } = &mut *state;
        let worker = workers.iter_mut().find(|worker| worker.info.id == *id)?;
        let gone = worker.signals.gone.clone();
        worker.failed(detail);
        let lineage = lineages.get_mut(&worker.info.model_ref);
        let planned = lineage.filter(|lineage| lineage.record.failures() > 0).and_then(|lineage| {
            lineage.record.had_no_room(&self.restart_rules, now, jitter);
            worker.info.breaker = lineage.record.breaker();
            lineage.record.next_try()
        });
        worker.info.next_try_at_ms = planned.map(|at| wall_clock_at(now, at));
        state.forget_old_failures();
        drop(state);
        gone.cancel();
        self.touch();
        planned.map(|at| at.saturating_duration_since(now))
    }

    /// Takes note that a start that was due could not be made, for a reason that is not the worker's.
    pub(crate) fn restart_refused(&self, model: &ModelRef, code: ErrorCode, jitter: Jitter) {
        let now = Instant::now();
        let mut state = self.lock();
        let Some(lineage) = state.lineages.get_mut(model) else { return };
        let is_hopeless = matches!(
            code,
            ErrorCode::ModelNotFound
                | ErrorCode::ModelInUse
                | ErrorCode::InvalidModelFile
                | ErrorCode::Draining
        );
        // A start that began and failed has made its own plan.
        if lineage.record.next_try().is_none() && !is_hopeless {
            lineage.record.had_no_room(&self.restart_rules, now, jitter);
        }
        let next = lineage.record.next_try().map(|at| wall_clock_at(now, at));
        if let Some(worker) = state.failed_of(model) {
            worker.info.next_try_at_ms = next;
        }
        drop(state);
        self.touch();
    }

    /// Forgets the past of a worker's model; `None` when there is no such worker.
    pub(crate) fn reset(&self, id: &WorkerId) -> Option<Forgotten> {
        let mut state = self.lock();
        state.forgive(&self.restart_rules, Instant::now());
        let model = state.find(id)?.info.model_ref.clone();
        let (mut failures, mut breaker) = (0, Breaker::Closed);
        if let Some(lineage) = state.lineages.get_mut(&model) {
            (failures, breaker) = (lineage.record.failures(), lineage.record.breaker());
            lineage.record.reset();
        }
        state
            .workers
            .iter_mut()
            .filter(|worker| worker.info.model_ref == model)
            .for_each(is_as_new);
        let worker = state.find(id)?.info.clone();
        drop(state);
        self.touch();
        Some(Forgotten { worker, failures, breaker })
    }

    /// Forgets the past of a model that was removed or replaced.
    pub(crate) fn forget(&self, model: &ModelRef) {
        self.lock().lineages.remove(model);
        self.touch();
    }
}

impl Lineage {
    fn refusal(&self, model: &ModelRef, pause: Duration) -> ErrorDetail {
        let name = self.alias.as_ref().map_or_else(|| model.to_string(), ToString::to_string);
        let cause = self.last_exit.cause;
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        let message = format!(
            "the workers for {name} keep failing ({cause}); the next try is in {} s; `rbee ps` shows why, and \
             `rbee workers reset {name}` tries at once",
            pause_ms.div_ceil(1000)
        );
        ErrorDetail::new(ErrorCode::WorkerFailing, message).with_details(json!({
            "cause": cause,
            "breaker": self.record.breaker(),
            "failure_count": self.record.failures(),
            "retry_after_ms": pause_ms,
        }))
    }
}

impl State {
    /// Takes note of a worker's failure, in its row and in its model's past.
    pub(super) fn failed(
        &mut self,
        id: &WorkerId,
        failure: Failure,
        rules: &RestartRules,
        now: Instant,
    ) -> Option<Planned> {
        let Failure { detail, exit, jitter } = failure;
        self.forgive(rules, now);
        let Self { workers, lineages, .. } = self;
        let worker = workers.iter_mut().find(|worker| worker.info.id == *id)?;
        let was_restart = worker.info.restart_count > 0;
        let model = worker.info.model_ref.clone();
        let lineage = lineages.entry(model).or_insert_with(|| Lineage {
            record: RestartRecord::default(),
            last_exit: exit,
            alias: None,
        });
        lineage.last_exit = exit;
        lineage.alias.clone_from(&worker.info.alias);
        lineage.record.failed(rules, now, Cure::of(exit.cause), jitter);
        worker.failed(detail);
        worker.info.last_exit = Some(exit);
        worker.info.breaker = lineage.record.breaker();
        let next = lineage.record.next_try();
        worker.info.next_try_at_ms = next.map(|at| wall_clock_at(now, at));
        let pause = next.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        Some(Planned { breaker: lineage.record.breaker(), pause, was_restart })
    }

    /// Takes note that a worker ended as it was asked to.
    pub(super) fn stopped(&mut self, model: &ModelRef, rules: &RestartRules, now: Instant) {
        if let Some(lineage) = self.lineages.get_mut(model) {
            lineage.record.stopped(rules, now);
        }
    }

    /// Takes note that a worker of a model is ready.
    pub(super) fn is_ready(&mut self, model: &ModelRef, now: Instant) {
        if let Some(lineage) = self.lineages.get_mut(model) {
            lineage.record.is_ready(now);
        }
    }

    /// Puts a new worker in the place of the failed one of its model.
    pub(super) fn succeed(&mut self, worker: &mut Worker) {
        let model = &worker.info.model_ref;
        self.workers.retain(|other| other.is_alive() || other.info.model_ref != *model);
        if let Some(lineage) = self.lineages.get_mut(model) {
            lineage.record.starts();
            worker.info.restart_count = lineage.record.failures();
            worker.info.last_exit = Some(lineage.last_exit);
            worker.info.breaker = lineage.record.breaker();
        }
    }

    /// Forgets the past of models whose worker has been healthy for long.
    pub(super) fn forgive(&mut self, rules: &RestartRules, now: Instant) {
        let Self { workers, lineages, .. } = self;
        lineages.retain(|model, lineage| {
            let has_recovered = lineage.record.has_recovered(rules, now);
            if has_recovered {
                workers
                    .iter_mut()
                    .filter(|worker| worker.info.model_ref == *model)
                    .for_each(is_as_new);
            }
            !has_recovered
        });
    }

    pub(super) fn failed_of(&mut self, model: &ModelRef) -> Option<&mut Worker> {
        let is_failed = |worker: &&mut Worker| {
            worker.info.state == WorkerState::Failed && worker.info.model_ref == *model
        };
        self.workers.iter_mut().rfind(is_failed)
    }

    /// Counts the models that wait for their next start, by how far they have come.
    pub(super) fn count_breakers(&self, breaker: Breaker) -> usize {
        self.lineages.values().filter(|lineage| lineage.record.breaker() == breaker).count()
    }
}

impl Registry {
    /// Returns how many models have a breaker in a state; of those that never failed none is counted.
    pub(crate) fn breakers(&self, breaker: Breaker) -> usize {
        let mut state = self.lock();
        state.forgive(&self.restart_rules, Instant::now());
        state.count_breakers(breaker)
    }

    /// Takes note of the exit code that a worker is about to end with.
    pub(crate) fn ending(&self, id: &WorkerId, exit_code: u8) -> Result<(), ApiError> {
        let mut state = self.lock();
        state.find(id).ok_or_else(no_such_worker)?.farewell = Some(exit_code);
        Ok(())
    }

    /// Returns how a worker that is gone has said that it would end.
    pub(crate) fn farewell(&self, id: &WorkerId) -> Option<ExitStatus> {
        let code = self.lock().find(id)?.farewell?;
        Some(ExitStatus::from_raw(i32::from(code) << EXIT_CODE_SHIFT))
    }

    /// Returns how the worker before ended, of one that was started again.
    pub(crate) fn restarted_after(&self, id: &WorkerId) -> Option<ExitCause> {
        let mut state = self.lock();
        let info = &state.find(id)?.info;
        info.last_exit.filter(|_| info.restart_count > 0).map(|exit| exit.cause)
    }
}

/// Takes the past off a worker's row. How the one before it ended stays.
fn is_as_new(worker: &mut Worker) {
    worker.info.restart_count = 0;
    worker.info.breaker = Breaker::Closed;
    worker.info.next_try_at_ms = None;
}

/// The wall clock's time at a moment to come.
fn wall_clock_at(now: Instant, at: Instant) -> u64 {
    let pause = u64::try_from(at.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX);
    wall_clock_ms().saturating_add(pause)
}
