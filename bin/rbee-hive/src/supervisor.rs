//! Carries out what admission decided: starts worker processes, watches them, stops them. The only place of this
//! program where a process is started or signalled; chooses nothing.
//!
//! Every worker has a task that owns its process from the first moment to the last, or from its adoption on. Nobody else
//! signals it, so that a signal can never reach a process that merely got the same number later.

mod adopt;
mod audit;
mod cause;
mod failure;
mod life;
mod oom_kills;
mod owned;
mod past;
mod port;
mod process;
mod restarts;
mod stop;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use auth_min::TokenDigest;
use futures_util::future::join_all;
use input_validation::{ModelRef, WorkerId};
use model_catalog::Model;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::hive::MemoryLimit;
use rbee_api::worker::WorkerInfo;
use rbee_http::ApiError;
use secrets_management::Secret;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::admission::{CacheRules, WorkerSize};
use crate::clock::wall_clock_ms;
use crate::ledger::Ledger;
use crate::models::Models;
use crate::platform;
use crate::registry::{Admitted, Registry, Wanted, WorkerSignals};
use crate::reservations::{Reservations, Turn as ReservationTurn};
use crate::vital::Vital;
use crate::worker_logs;

use restarts::wait_for_turn;
use stop::EndingCounts;

pub(crate) use audit::AuditOfWorkers;
use cause::MemoryWas;
use oom_kills::OomKills;
pub(crate) use process::Launcher;

/// Most workers, largest size, longest times: what every worker of this hive has in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) workers_max: u32,
    pub(crate) slots: u32,
    pub(crate) context_tokens: u32,
    pub(crate) cache: CacheRules,
    pub(crate) load_timeout: Duration,
    pub(crate) stop_grace: Duration,
    /// Whether idle workers end where a request asks for another model and there is no room.
    pub(crate) stops_idle: bool,
}

/// Who asks for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AskedBy {
    /// Somebody who needs it now: idle workers give way.
    Request,
    /// The hive, in place of one that failed.
    Restart,
}

/// How long idle workers have to be gone that make room for another: they end within milliseconds, and are killed after
/// the grace that they have. Whoever asks for a start waits longer than this.
const ROOM_LIMIT: Duration = Duration::from_secs(15);

/// One worker to be started.
#[derive(Debug)]
struct Order {
    id: WorkerId,
    model: Model,
    size: WorkerSize,
    /// As in the listing.
    started_at_ms: u64,
    signals: WorkerSignals,
    /// The hive shows this to the worker.
    token: Secret,
    /// The worker shows this to the hive.
    callback: Secret,
}

/// Starts and owns the workers.
#[derive(Debug)]
pub(crate) struct Supervisor {
    registry: Arc<Registry>,
    models: Arc<Models>,
    launcher: Launcher,
    rules: Rules,
    ledger: Ledger,
    /// The secrets of all workers are made of it, so that the next hive has them too.
    key: Secret,
    lives: TaskTracker,
    vital: Vital,
    endings: EndingCounts,
    reservations: Arc<Reservations>,
    oom_kills: Mutex<OomKills>,
}

impl Supervisor {
    pub(crate) fn new(
        registry: Arc<Registry>,
        reservations: Arc<Reservations>,
        models: Arc<Models>,
        launcher: Launcher,
        rules: Rules,
        ledger: Ledger,
        key: Secret,
    ) -> Self {
        let lives = TaskTracker::new();
        let endings = EndingCounts::default();
        let oom_kills = Mutex::new(OomKills::new(platform::oom_kills().unwrap_or(0)));
        Self {
            registry,
            models,
            launcher,
            rules,
            ledger,
            key,
            lives,
            vital: Vital::default(),
            endings,
            reservations,
            oom_kills,
        }
    }

    /// Returns the worker of a model that is ready or starting, or starts one. Does not wait until it is ready. Once
    /// begun, a start goes on even if the caller does not wait for the answer.
    ///
    /// # Errors
    /// The reason why none may start, or why its process could not be started.
    pub(crate) async fn ensure_worker(
        self: &Arc<Self>,
        reference: &ModelRef,
        asked_by: AskedBy,
    ) -> Result<WorkerInfo, ApiError> {
        let model = self.models.find_usable(reference).await?;
        let id = WorkerId::from_u128(Uuid::now_v7().as_u128());
        let (token, callback) = self.secrets_of(&id)?;
        let started_at_ms = wall_clock_ms();
        let wanted = |stops_idle| Wanted {
            id: id.clone(),
            started_at_ms,
            callback: TokenDigest::of(callback.expose()),
            model: model.as_ref(),
            backend: self.launcher.engine,
            workers_max: self.rules.workers_max,
            slots: self.rules.slots,
            context_tokens: self.rules.context_tokens,
            cache: self.rules.cache,
            stops_idle,
        };
        let (turn, admitted) = self.admitted(wanted, asked_by).await?;
        let (size, signals, model) = match (admitted, model) {
            (Admitted::Existing(info), _) => return Ok(*info),
            (Admitted::New(size, signals), Some(model)) => (size, signals, model),
            (Admitted::New(..) | Admitted::AfterThese(_), _) => return Err(lost_worker()),
        };
        let (started, outcome) = oneshot::channel();
        let order = Order { id: id.clone(), model, size, started_at_ms, signals, token, callback };
        let life = Arc::clone(self).live(order, started);
        self.lives.spawn(self.vital().keep("worker", life));
        drop(turn);
        outcome.await.map_err(|_| lost_worker())??;
        self.registry.get(&id).ok_or_else(lost_worker)
    }

    /// Waits for the turn of a start, and for idle workers that make room for it. Returns with the turn in hand what came
    /// of it.
    async fn admitted<'a>(
        &self,
        wanted: impl Fn(bool) -> Wanted<'a>,
        asked_by: AskedBy,
    ) -> Result<(ReservationTurn<'_>, Admitted), ApiError> {
        let until = Instant::now() + ROOM_LIMIT;
        loop {
            let is_in_time = Instant::now() < until;
            let wanted =
                wanted(asked_by == AskedBy::Request && self.rules.stops_idle && is_in_time);
            let turn = match wanted.model {
                Some(model) => {
                    wait_for_turn(&self.registry, &self.reservations, &model.reference).await?
                }
                None => self.reservations.measured_turn().await,
            };
            match self.reservations.admit(&turn, wanted)? {
                Admitted::AfterThese(gone) => {
                    drop(turn);
                    let all_gone = join_all(gone.iter().map(CancellationToken::cancelled));
                    // Where one is still there, there is no room.
                    timeout_at(until, all_gone).await.ok();
                }
                admitted => return Ok((turn, admitted)),
            }
        }
    }

    /// Returns what the hive shows to a worker, and what the worker shows to the hive.
    fn secrets_of(&self, id: &WorkerId) -> Result<(Secret, Secret), ApiError> {
        let derive = |purpose| {
            self.key.derive(purpose, id.as_str()).map_err(|error| {
                tracing::error!(error = %error, "cannot make a worker's secret");
                ApiError::new(ErrorCode::InternalError, "cannot make a secret for the worker")
            })
        };
        Ok((derive("worker")?, derive("worker callback")?))
    }

    /// Returns what all work goes through that this hive cannot do without.
    pub(crate) fn vital(&self) -> Vital {
        self.vital.clone()
    }

    /// Says what holds workers to the memory they were granted.
    pub(crate) fn memory_limit(&self) -> MemoryLimit {
        self.launcher.cgroups.memory_limit()
    }

    /// Waits until no worker process is left. To be called after the registry has begun to drain.
    pub(crate) async fn all_gone(&self) {
        // Whoever was admitted before has its task by now, and nobody is admitted after.
        drop(self.reservations.turn().await);
        self.lives.close();
        self.lives.wait().await;
    }

    /// Removes old logs of workers. A directory that cannot be read, or is read for long, holds up nobody but the caller.
    pub(crate) async fn remove_old_logs(&self) {
        let home = self.launcher.home.clone();
        let living = self.registry.snapshot();
        let living: Vec<_> = living.iter().map(|worker| home.worker_log(&worker.id)).collect();
        let removed =
            tokio::task::spawn_blocking(move || worker_logs::remove_old(&home.logs_dir(), &living));
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, "cannot remove old worker logs");
        }
    }

    /// Takes note of what the kernel has killed for want of memory so far. To be called at regular intervals.
    pub(crate) fn look_at_memory(&self) {
        self.oom_kills().look(platform::oom_kills().unwrap_or(0));
    }

    /// Says whether the kernel has killed for want of memory since the look before the last one. Whom it killed it does not
    /// tell.
    fn memory_was(&self) -> MemoryWas {
        self.oom_kills().since(platform::oom_kills().unwrap_or(0))
    }

    /// Two numbers are whole whatever thread has panicked.
    fn oom_kills(&self) -> MutexGuard<'_, OomKills> {
        self.oom_kills.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost_worker() -> ApiError {
    ErrorDetail::new(ErrorCode::WorkerStartFailed, "the worker ended while it was being started")
        .into()
}

#[cfg(test)]
mod tests;
