//! The workers of this machine: one state behind one lock, snapshots out. Owns what is known about them; decides
//! nothing, starts nothing, and holds the lock across no await.

mod giving_way;
mod liveness;
mod past;
mod removal;
mod requests;
mod restarts;
mod worker;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use auth_min::TokenDigest;
use input_validation::{ModelAlias, ModelRef, WorkerId};
use model_catalog::Model;
use rbee_api::error::ErrorCode;
use rbee_api::worker::{Backend, WorkerHeartbeat, WorkerInfo, WorkerReady, WorkerState};
use rbee_api::worker_exit::Breaker;
use rbee_http::{ApiError, HopClient};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, CacheRules, Facts, Room, WorkerSize, decide};
use crate::clock::wall_clock_ms;
use crate::liveness::{Watched, load_allowance};
use crate::restart::RestartRules;

pub(crate) use liveness::{Answer, Silent};
pub(crate) use past::KeptPast;
pub(crate) use requests::{Fate, WorkerEnd};
use restarts::Lineage;
pub(crate) use restarts::{Failure, Forgotten, Planned, Turn};
use worker::Worker;
pub(crate) use worker::{Grant, Granted, Serving, WorkerSignals};

/// Failed workers that are kept to show why: as many as may run at once.
const FAILED_MAX: usize = 64;

/// How long the answer to a change waits for the queen to hear of it; a snapshot takes milliseconds.
const TELL_LIMIT: Duration = Duration::from_millis(500);

/// Knows all workers.
#[derive(Debug)]
pub(crate) struct Registry {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    /// The count of changes that the queen has acknowledged.
    told: watch::Sender<u64>,
    restart_rules: RestartRules,
    /// How often workers of this hive are told to report.
    heartbeat_interval: Duration,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    workers: Vec<Worker>,
    /// The past of models whose workers have failed.
    lineages: HashMap<ModelRef, Lineage>,
    removing: Vec<ModelRef>,
    is_draining: bool,
}

/// What is asked of [`Registry::admit`].
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// The id and secret of the worker, if one is to start.
    pub(crate) id: WorkerId,
    pub(crate) started_at_ms: u64,
    pub(crate) callback: TokenDigest,
    /// The model, `None` when the catalog does not have it.
    pub(crate) model: Option<&'a Model>,
    pub(crate) backend: Backend,
    pub(crate) workers_max: u32,
    pub(crate) slots: u32,
    pub(crate) context_tokens: u32,
    pub(crate) cache: CacheRules,
    /// Whether idle workers of other models end where there is no room for it.
    pub(crate) stops_idle: bool,
}

/// What came of [`Registry::admit`].
#[derive(Debug)]
pub(crate) enum Admitted {
    /// A worker of the model is there.
    Existing(Box<WorkerInfo>),
    /// A worker was entered as starting; the caller must start it, or say that it could not.
    New(WorkerSize, WorkerSignals),
    /// There will be room when these have ended, which they were asked to.
    AfterThese(Vec<CancellationToken>),
}

impl Registry {
    pub(crate) fn new(restart_rules: RestartRules, heartbeat_interval: Duration) -> Self {
        Self {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            told: watch::Sender::new(0),
            restart_rules,
            heartbeat_interval,
        }
    }

    /// A thread that panicked has left a state that is whole: each change is one assignment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody who waits for changes that something the queen should know has changed.
    pub(crate) fn touch(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Returns a receiver that wakes at every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes note that the queen knows everything up to this count of changes.
    pub(crate) fn note_told(&self, count: u64) {
        self.told.send_replace(count);
    }

    /// Returns when the queen knows of every change made so far, so that whoever asked for one and then asks the
    /// queen sees it; or after a moment, for a hive that has no queen.
    pub(crate) async fn queen_told(&self) {
        let made = *self.changes.borrow();
        let mut told = self.told.subscribe();
        // Both ends are good ones: the queen knows, or does not answer and will be told when it does.
        drop(timeout(TELL_LIMIT, told.wait_for(|told| *told >= made)).await);
    }

    /// Returns all workers, oldest first.
    pub(crate) fn snapshot(&self) -> Vec<WorkerInfo> {
        let mut state = self.lock();
        state.forgive(&self.restart_rules, Instant::now());
        state.workers.iter().map(|worker| worker.info.clone()).collect()
    }

    pub(crate) fn get(&self, id: &WorkerId) -> Option<WorkerInfo> {
        self.lock().find(id).map(|worker| worker.info.clone())
    }

    /// Returns a worker and, while it lives, how to call it.
    pub(crate) fn look_up(&self, id: &WorkerId) -> Option<(WorkerInfo, Option<HopClient>)> {
        let mut state = self.lock();
        state.find(id).map(|worker| (worker.info.clone(), worker.client.clone()))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.lock().is_draining
    }

    /// Returns the live worker whose secret has this digest. All are compared, so that the time tells nothing.
    pub(crate) fn caller(&self, token: &TokenDigest) -> Option<WorkerId> {
        let state = self.lock();
        state.workers.iter().fold(None, |found, worker| {
            let matches = worker.callback.is_some_and(|callback| callback.matches(token));
            if matches { Some(worker.info.id.clone()) } else { found }
        })
    }

    /// Returns what each worker alive was granted.
    pub(crate) fn grants(&self) -> Vec<Grant> {
        let state = self.lock();
        let alive = state.workers.iter().filter(|worker| worker.is_alive());
        alive.map(Worker::grant).collect()
    }

    /// Decides about a worker and enters it, in one step, so that two requests at once cannot both take the last room.
    pub(crate) fn admit(&self, wanted: Wanted<'_>, room: Room) -> Result<Admitted, ApiError> {
        let mut state = self.lock();
        let reference = wanted.model.map(|model| &model.reference);
        let existing = state
            .workers
            .iter()
            .find(|worker| worker.is_usable() && Some(&worker.info.model_ref) == reference)
            .map(|worker| worker.info.clone());
        let alive = state.workers.iter().filter(|worker| worker.is_alive()).count();
        let decision = decide(Facts {
            model: wanted.model.map(|model| &model.header),
            existing: existing.as_ref().map(|info| &info.id),
            is_being_removed: reference.is_some_and(|reference| state.removing.contains(reference)),
            is_draining: state.is_draining,
            workers: u32::try_from(alive).unwrap_or(u32::MAX),
            workers_max: wanted.workers_max,
            room,
            slots: wanted.slots,
            context_tokens: wanted.context_tokens,
            cache: wanted.cache,
        });
        match (decision, existing, wanted.model) {
            (Admission::Refuse(detail), _, _) => Err(detail.into()),
            (Admission::NoRoom(shortage, detail), _, _) => {
                let gone = match wanted.stops_idle {
                    true => state.give_way(shortage, Instant::now()),
                    false => Vec::new(),
                };
                drop(state);
                if gone.is_empty() {
                    return Err(detail.into());
                }
                self.touch();
                Ok(Admitted::AfterThese(gone))
            }
            (Admission::Start(size), _, Some(model)) => {
                let (reference, alias) = (model.reference.clone(), model.alias.clone());
                let info =
                    starting(wanted.id, reference, alias, wanted.backend, wanted.started_at_ms);
                let allowance = load_allowance(model.size_bytes);
                let watched = Watched::new(Instant::now(), self.heartbeat_interval, allowance);
                let mut worker = Worker::new(info, Granted::of(size), wanted.callback, watched);
                state.succeed(&mut worker);
                let signals = worker.signals.clone();
                state.workers.push(worker);
                drop(state);
                self.touch();
                Ok(Admitted::New(size, signals))
            }
            (Admission::Use(_), Some(info), _) => Ok(Admitted::Existing(Box::new(info))),
            (Admission::Start(_), _, None) | (Admission::Use(_), None, _) => {
                Err(ApiError::new(ErrorCode::InternalError, "admission named what is not there"))
            }
        }
    }

    /// Enters a worker that a former hive has started, and returns what its owner and it tell each other. `serving`
    /// is what is known of one that had loaded its model.
    pub(crate) fn adopt(
        &self,
        info: WorkerInfo,
        granted: Granted,
        callback: TokenDigest,
        client: HopClient,
        watched: Watched,
        serving: Option<Serving>,
    ) -> WorkerSignals {
        let mut worker = Worker::new(info, granted, callback, watched);
        worker.client = Some(client);
        worker.watched.has_loaded = serving.is_some();
        worker.served_with = serving;
        let signals = worker.signals.clone();
        let mut state = self.lock();
        state.succeed(&mut worker);
        state.workers.push(worker);
        drop(state);
        self.touch();
        signals
    }

    /// Takes note that the worker's process runs.
    pub(crate) fn spawned(&self, id: &WorkerId, pid: Option<u32>, client: HopClient) {
        self.change(id, |worker| {
            worker.info.pid = pid;
            worker.info.url = client.base_url().to_owned();
            worker.client = Some(client);
        });
    }

    /// Takes note of a worker's report that its model is loaded.
    pub(crate) fn ready(&self, id: &WorkerId, report: &WorkerReady) -> Result<(), ApiError> {
        let WorkerReady { slots_total, device, .. } = report;
        self.serves(id, &Serving { slots_total: *slots_total, device: device.clone() })
    }

    /// Takes note that a worker's model is loaded, from whomever that is known.
    pub(crate) fn serves(&self, id: &WorkerId, serving: &Serving) -> Result<(), ApiError> {
        let mut state = self.lock();
        let worker = state.find(id).ok_or_else(no_such_worker)?;
        if worker.serves(serving, wall_clock_ms()) {
            let model = worker.info.model_ref.clone();
            state.is_ready(&model, Instant::now());
        }
        drop(state);
        self.touch();
        Ok(())
    }

    /// Takes note of how far a worker's load is.
    pub(crate) fn loading(&self, id: &WorkerId, load_progress: f32) -> Result<(), ApiError> {
        let mut state = self.lock();
        let worker = state.find(id).ok_or_else(no_such_worker)?;
        let has_changed = worker.loading(load_progress, wall_clock_ms());
        drop(state);
        if has_changed {
            self.touch();
        }
        Ok(())
    }

    /// Takes note of a worker's snapshot.
    pub(crate) fn heartbeat(
        &self,
        id: &WorkerId,
        report: &WorkerHeartbeat,
    ) -> Result<(), ApiError> {
        let mut state = self.lock();
        let worker = state.find(id).ok_or_else(no_such_worker)?;
        // The answer tells the worker the interval of this hive.
        worker.watched.interval = self.heartbeat_interval;
        let was_starting = worker.info.state == WorkerState::Starting;
        let has_changed = worker.heartbeat(report, wall_clock_ms());
        if was_starting && worker.info.state == WorkerState::Ready {
            let model = worker.info.model_ref.clone();
            state.is_ready(&model, Instant::now());
        }
        drop(state);
        if has_changed {
            self.touch();
        }
        Ok(())
    }

    /// Asks a worker to end, and returns what is cancelled when it has. The row of a failed one is removed.
    pub(crate) fn begin_stop(&self, id: &WorkerId) -> Option<CancellationToken> {
        let mut state = self.lock();
        let worker = state.find(id)?;
        worker.stop();
        let gone = worker.signals.gone.clone();
        if !worker.is_alive() {
            let model = worker.info.model_ref.clone();
            state.workers.retain(|worker| worker.info.id != *id);
            state.lineages.remove(&model);
        }
        drop(state);
        self.touch();
        Some(gone)
    }

    /// Admits no further worker, and asks all to end.
    pub(crate) fn begin_draining(&self) {
        let mut state = self.lock();
        state.is_draining = true;
        state.workers.iter_mut().filter(|worker| worker.is_alive()).for_each(Worker::stop);
        drop(state);
        self.touch();
    }

    /// Waits for no worker any longer that is to end.
    pub(crate) fn hasten(&self) {
        self.lock().workers.iter().for_each(|worker| worker.signals.kill.cancel());
    }

    /// Asks every worker to end that is ready and has had no request for `idle`. Returns when the next may be due.
    pub(crate) fn stop_idle(&self, now: Instant, idle: Duration) -> Instant {
        let mut state = self.lock();
        let mut next = now + idle;
        let mut has_changed = false;
        let ready = |worker: &&mut Worker| worker.info.state == WorkerState::Ready;
        for worker in state.workers.iter_mut().filter(ready).filter(|worker| worker.requests == 0) {
            let due = worker.idle_since + idle;
            if due <= now {
                tracing::info!(worker_id = %worker.info.id, "worker is idle and is being stopped");
                worker.stop();
                has_changed = true;
            } else {
                next = next.min(due);
            }
        }
        drop(state);
        if has_changed {
            self.touch();
        }
        next
    }

    /// Takes note that a worker's process is gone, or never came to be: the row goes with it, unless it failed. Returns
    /// what is planned in its place.
    pub(crate) fn ended(&self, id: &WorkerId, failure: Option<Failure>) -> Option<Planned> {
        let now = Instant::now();
        let mut state = self.lock();
        let worker = state.find(id)?;
        let gone = worker.signals.gone.clone();
        let model = worker.info.model_ref.clone();
        let planned = match failure {
            Some(failure) => {
                let planned = state.failed(id, failure, &self.restart_rules, now);
                state.forget_old_failures();
                planned
            }
            None => {
                state.workers.retain(|worker| worker.info.id != *id);
                state.stopped(&model, &self.restart_rules, now);
                None
            }
        };
        drop(state);
        gone.cancel();
        self.touch();
        planned
    }

    fn change(&self, id: &WorkerId, change: impl FnOnce(&mut Worker)) -> bool {
        let mut state = self.lock();
        let Some(worker) = state.find(id) else { return false };
        change(worker);
        drop(state);
        self.touch();
        true
    }
}

impl State {
    fn find(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.info.id == *id)
    }

    fn forget_old_failures(&mut self) {
        let failed = self.workers.iter().filter(|worker| !worker.is_alive()).count();
        let mut surplus = failed.saturating_sub(FAILED_MAX);
        self.workers.retain(|worker| {
            let forget = surplus > 0 && !worker.is_alive();
            surplus -= usize::from(forget);
            !forget
        });
    }
}

/// Describes a worker of which no more is known than that it is to serve a model.
pub(crate) fn starting(
    id: WorkerId,
    model_ref: ModelRef,
    alias: Option<ModelAlias>,
    backend: Backend,
    started_at_ms: u64,
) -> WorkerInfo {
    WorkerInfo {
        id,
        model_ref,
        alias,
        backend,
        device: "cpu".to_owned(),
        url: String::new(),
        state: WorkerState::Starting,
        load_progress: 0.0,
        slots_total: 0,
        slots_available: 0,
        pid: None,
        started_at_ms,
        last_heartbeat_ms: None,
        failure: None,
        restart_count: 0,
        last_exit: None,
        breaker: Breaker::Closed,
        next_try_at_ms: None,
    }
}

pub(crate) fn no_such_worker() -> ApiError {
    ApiError::new(
        ErrorCode::WorkerNotFound,
        "this machine has no such worker; `rbee ps` shows those it has",
    )
}

#[cfg(test)]
pub(crate) mod tests;
