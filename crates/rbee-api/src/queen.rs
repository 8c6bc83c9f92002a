//! What the queen tells the keeper and other clients about the cluster.

use input_validation::NodeName;
use serde::{Deserialize, Serialize};

use crate::hive::HiveInfo;
use crate::model::ModelInfo;
use crate::worker::{WorkerDetail, WorkerInfo};

/// `GET /api/v1/status` on the queen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueenStatus {
    /// Program version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// True from the first shutdown request on.
    pub draining: bool,
    /// How long it has run.
    pub uptime_ms: u64,
    /// Requests being forwarded now.
    pub requests_running: u32,
    /// The machines.
    pub hives: Vec<HiveInfo>,
    /// Workers on all machines.
    pub workers: Vec<PlacedWorker>,
}

/// A worker and the machine it runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacedWorker {
    /// The machine.
    pub hive: NodeName,
    /// The worker.
    #[serde(flatten)]
    pub worker: WorkerInfo,
}

/// `GET /api/v1/workers/{id}` on the queen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacedWorkerDetail {
    /// The machine.
    pub hive: NodeName,
    /// The worker.
    #[serde(flatten)]
    pub detail: WorkerDetail,
}

/// `GET /api/v1/workers` on the queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlacedWorkerList {
    /// One entry a worker, oldest first.
    pub workers: Vec<PlacedWorker>,
}

/// A model and the machines that have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlacedModel {
    /// The model.
    #[serde(flatten)]
    pub model: ModelInfo,
    /// The machines.
    pub hives: Vec<NodeName>,
}

/// `GET /api/v1/models` on the queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PlacedModelList {
    /// One entry a model, oldest first.
    pub models: Vec<PlacedModel>,
}

/// `GET /api/v1/hives` on the queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HiveList {
    /// One entry a machine, in order of name.
    pub hives: Vec<HiveInfo>,
}

/// `DELETE /api/v1/workers/{id}` and `DELETE /api/v1/models/{ref}`: what was done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
}
