//! The conversation between a hive and its workers, and what everybody else
//! is told about a worker.

use std::time::Duration;

use input_validation::{ModelAlias, ModelRef, RequestId, WorkerId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, ErrorDetail};
use crate::worker_exit::{Breaker, WorkerExit};

/// Where a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// The process runs and has not yet called back.
    Starting,
    /// The model is loaded; requests are taken.
    Ready,
    /// No new requests; running ones finish.
    Stopping,
    /// The process ended without being asked to, or never became ready.
    Failed,
}

/// Which engine turns requests into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// llama.cpp.
    Llama,
    /// The deterministic stand-in for tests.
    Echo,
}

/// One worker, as every listing shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerInfo {
    /// Names the worker for as long as it lives.
    pub id: WorkerId,
    /// The model it holds.
    pub model_ref: ModelRef,
    /// The model's short name.
    pub alias: Option<ModelAlias>,
    /// The engine.
    pub backend: Backend,
    /// The device it computes on, such as `cpu`.
    pub device: String,
    /// Its address on the hive's machine.
    pub url: String,
    /// Where it is in its life.
    pub state: WorkerState,
    /// Share of the model that is loaded, 0 to 1.
    #[serde(default)]
    pub load_progress: f32,
    /// Requests it can decode at once; 0 until it is ready.
    pub slots_total: u32,
    /// Slots that were free at the last heartbeat.
    pub slots_available: u32,
    /// Its process id, while it lives.
    pub pid: Option<u32>,
    /// When it was started, milliseconds since the epoch.
    pub started_at_ms: u64,
    /// When it was last heard of, milliseconds since the epoch.
    pub last_heartbeat_ms: Option<u64>,
    /// Why it failed.
    pub failure: Option<ErrorDetail>,
    /// How often a worker of its model had been started again, itself included, since one was last healthy for long.
    #[serde(default)]
    pub restart_count: u32,
    /// How its own process ended, or, while that runs, how the one before it did.
    #[serde(default)]
    pub last_exit: Option<WorkerExit>,
    /// Whether it may be started again.
    #[serde(default)]
    pub breaker: Breaker,
    /// When a failed one is started again, milliseconds since the epoch; `None` when nothing is planned.
    #[serde(default)]
    pub next_try_at_ms: Option<u64>,
}

/// A request at a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActiveRequest {
    /// Names it across all hops.
    pub id: RequestId,
    /// Milliseconds until its deadline; 0 for one that ends now.
    pub time_left_ms: u64,
}

impl ActiveRequest {
    /// Lists a request that has this much time left.
    #[must_use]
    pub fn new(id: RequestId, left: Duration) -> Self {
        Self { id, time_left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX) }
    }
}

/// `POST /api/v1/workers`, queen → hive: have a worker for this model.
/// Answered with the [`WorkerInfo`] of the worker that is starting or runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartWorker {
    /// A reference or alias from the hive's catalog.
    pub model: ModelRef,
}

/// `GET /api/v1/workers` on hive and queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerList {
    /// One entry a worker, oldest first.
    pub workers: Vec<WorkerInfo>,
}

/// `GET /api/v1/workers/{id}` on a hive: the row, and what the worker itself says now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerDetail {
    /// The row, as in the listing.
    #[serde(flatten)]
    pub worker: WorkerInfo,
    /// The worker's own word; null while it does not answer.
    pub status: Option<WorkerStatus>,
}

/// `POST /api/v1/workers/{id}/reset` on a hive: what was forgotten of the worker's model, and the worker of it that is
/// there now: a new one in the place of a failed one, else the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerReset {
    /// Failures in a row that counted until now; 0 where there was nothing to forget.
    pub failures_cleared: u32,
    /// What they had brought the breaker to.
    pub breaker_was: Breaker,
    /// The worker.
    #[serde(flatten)]
    pub worker: WorkerInfo,
}

/// What a hive writes to a new worker's standard input: the secrets that may
/// stand neither in its arguments nor in its environment.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSecrets {
    /// Whoever calls the worker must show this.
    pub token: String,
    /// The worker shows this when it calls its hive.
    pub callback_token: String,
    /// The checkpoints of the worker's audit log are signed with a key made of this; absent without such a log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_key: Option<String>,
}

impl std::fmt::Debug for WorkerSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerSecrets").finish_non_exhaustive()
    }
}

/// `POST /api/v1/workers/{id}/loading`, worker → hive, while the model is being loaded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerLoading {
    /// Share of the model that is loaded, 0 to 1.
    pub load_progress: f32,
}

/// One event of `GET /api/v1/workers/{id}/load` on hive and queen, as `data:`
/// of the server-sent events that answer it. The stream ends after `ready` or
/// `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LoadEvent {
    /// The model is being loaded.
    Progress {
        /// Share of the model that is loaded, 0 to 1; never less than before.
        load_progress: f32,
    },
    /// The model is loaded.
    Ready {
        /// The worker, as listings show it.
        worker: Box<WorkerInfo>,
    },
    /// The worker ended, or is to end, and serves nobody.
    Failed {
        /// Why.
        error: ErrorDetail,
    },
}

impl LoadEvent {
    /// Says how far a worker is; `None` is one whose row is gone.
    #[must_use]
    pub fn of(worker: Option<WorkerInfo>) -> Self {
        let stopped = || {
            let message = "the worker was stopped before its model was loaded";
            ErrorDetail::new(ErrorCode::WorkerStartFailed, message)
        };
        match worker {
            Some(worker) => match worker.state {
                WorkerState::Starting => Self::Progress { load_progress: worker.load_progress },
                WorkerState::Ready => Self::Ready { worker: Box::new(worker) },
                WorkerState::Stopping => Self::Failed { error: stopped() },
                WorkerState::Failed => {
                    Self::Failed { error: worker.failure.unwrap_or_else(stopped) }
                }
            },
            None => Self::Failed { error: stopped() },
        }
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        match self {
            Self::Progress { .. } => false,
            Self::Ready { .. } | Self::Failed { .. } => true,
        }
    }
}

/// `POST /api/v1/workers/{id}/ready`, worker → hive, once: the model is loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerReady {
    /// Requests it can decode at once.
    pub slots_total: u32,
    /// Tokens of context one request can have.
    pub context_tokens: u32,
    /// The device it computes on.
    pub device: String,
    /// How long the load took.
    pub load_ms: u64,
}

/// `POST /api/v1/workers/{id}/heartbeat`, worker → hive: a whole snapshot, so
/// that a lost or repeated one does no harm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerHeartbeat {
    /// Grows by one with each heartbeat of this process.
    pub sequence: u64,
    /// Slots free now.
    pub slots_available: u32,
    /// Requests being decoded or prefilled.
    pub requests_running: u32,
    /// Requests waiting for a slot.
    pub requests_waiting: u32,
    /// Engine steps since the start: stands still when nothing is to do or the engine hangs.
    pub engine_steps: u64,
    /// Whether a step is being computed now. One that still is at the next heartbeats hangs.
    #[serde(default)]
    pub is_stepping: bool,
}

/// `POST /api/v1/workers/{id}/ending`, worker → hive, when it ends because something failed: a hive that has not
/// started the worker itself is told its exit code by nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkerEnding {
    /// The code it ends with.
    pub exit_code: u8,
}

/// `GET /api/v1/status` on a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerStatus {
    /// The worker's id.
    pub id: WorkerId,
    /// The model's name for clients.
    pub model: String,
    /// Where it is in its life.
    pub state: WorkerState,
    /// Share of the model that is loaded, 0 to 1.
    pub load_progress: f32,
    /// The engine.
    pub backend: Backend,
    /// The device it computes on; empty until the model is loaded.
    pub device: String,
    /// Requests it can decode at once.
    pub slots_total: u32,
    /// Tokens of context one request can have.
    pub context_tokens: u32,
    /// Slots free now.
    pub slots_available: u32,
    /// Requests being decoded or prefilled.
    pub requests_running: u32,
    /// Requests waiting for a slot.
    pub requests_waiting: u32,
    /// The requests themselves, in the order in which they came.
    #[serde(default)]
    pub requests: Vec<ActiveRequest>,
    /// Engine steps since the start.
    pub engine_steps: u64,
    /// Most requests that one engine step has decoded together.
    pub batch_requests_max: u32,
    /// Program version.
    pub version: String,
}
