//! What the queen tells the keeper and other clients about the cluster.

use std::path::PathBuf;

use input_validation::NodeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::audit::AuditStatus;
use crate::hive::{HiveInfo, HiveState};
use crate::model::ModelInfo;
use crate::worker::{ActiveRequest, WorkerDetail, WorkerInfo, WorkerReset};

/// Whether clients of the queen need a credential.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// They need a token.
    #[default]
    Token,
    /// They need none: whoever can reach her is a client. On loopback addresses alone.
    None,
}

/// `GET /api/v1/status` on the queen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueenStatus {
    /// Program version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// True from the first shutdown request on.
    pub draining: bool,
    /// How long it has run.
    pub uptime_ms: u64,
    /// Whether clients need a credential.
    #[serde(default)]
    pub auth_mode: AuthMode,
    /// Whether the queen speaks plain HTTP on an address that others can reach.
    #[serde(default)]
    pub plain_http_on_network: bool,
    /// Requests being forwarded now.
    pub requests_running: u32,
    /// The models for which requests wait or run, in order of name.
    #[serde(default)]
    pub queues: Vec<QueueInfo>,
    /// The queen's audit log.
    #[serde(default)]
    pub audit: AuditStatus,
    /// The machines.
    pub hives: Vec<HiveInfo>,
    /// Workers on all machines.
    pub workers: Vec<PlacedWorker>,
}

/// The requests for one model, those that wait and those that run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueInfo {
    /// The model's name for clients.
    pub model: String,
    /// Requests that wait for their turn.
    pub requests_waiting: u32,
    /// Clients that these are of, by key and `user`.
    pub clients_waiting: u32,
    /// Slots that they will take.
    pub slots_wanted: u32,
    /// Slots that running requests have taken, those that wait at their worker included.
    pub slots_taken: u32,
    /// How long the oldest has waited; null where none waits.
    pub oldest_wait_ms: Option<u64>,
    /// How long a request takes by the mean of the last ones; null until one has ended.
    pub service_ms: Option<u64>,
    /// How long it takes by that until all who wait have had their turn; null
    /// while it is not known.
    pub drain_ms: Option<u64>,
}

/// A worker and the machine it runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedWorker {
    /// The machine.
    pub hive: NodeName,
    /// Whether that can be reached. Where it cannot, the rest is what it said last, and no slot is free.
    #[serde(default)]
    pub hive_state: HiveState,
    /// The worker.
    #[serde(flatten)]
    pub worker: WorkerInfo,
    /// The queen's requests that are there now, in the order in which they came.
    #[serde(default)]
    pub requests: Vec<ActiveRequest>,
}

/// `GET /api/v1/workers/{id}` on the queen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedWorkerDetail {
    /// The machine.
    pub hive: NodeName,
    /// The worker.
    #[serde(flatten)]
    pub detail: WorkerDetail,
}

/// `POST /api/v1/workers/{id}/reset` on the queen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedWorkerReset {
    /// The machine.
    pub hive: NodeName,
    /// What was forgotten there, and the worker.
    #[serde(flatten)]
    pub reset: WorkerReset,
}

/// `GET /api/v1/workers` on the queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedWorkerList {
    /// One entry a worker, oldest first.
    pub workers: Vec<PlacedWorker>,
}

/// A model and the machines that have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedModel {
    /// The model.
    #[serde(flatten)]
    pub model: ModelInfo,
    /// The machines.
    pub hives: Vec<NodeName>,
}

/// `GET /api/v1/models` on the queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlacedModelList {
    /// One entry a model, oldest first.
    pub models: Vec<PlacedModel>,
}

/// `GET /api/v1/hives` on the queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HiveList {
    /// One entry a machine, in order of name.
    pub hives: Vec<HiveInfo>,
}

/// `DELETE /api/v1/workers/{id}` and `DELETE /api/v1/models/{ref}`: what was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Removed {
    /// The id or reference that is gone.
    pub removed: String,
}

/// `run/queen.json` and `run/hive.json`: where a daemon on this machine listens.
/// Written 0600 once the listener is bound, removed at a clean end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Base URL.
    pub url: String,
    /// Process id.
    pub pid: u32,
    /// File of the certificates by which programs of this machine know the daemon;
    /// absent where it speaks plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// Base URL for a hive's workers, where it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_url: Option<String>,
}

impl RunFile {
    /// Describes a daemon that speaks plain HTTP, to everybody alike.
    #[must_use]
    pub const fn plain(url: String, pid: u32) -> Self {
        Self { url, pid, certificate_file: None, worker_url: None }
    }
}
