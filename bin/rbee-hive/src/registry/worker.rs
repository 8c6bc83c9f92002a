//! One worker as the registry holds it. Owns the rules of its states; never a process.

use auth_min::TokenDigest;
use input_validation::WorkerId;
use rbee_api::error::ErrorDetail;
use rbee_api::worker::{WorkerHeartbeat, WorkerInfo, WorkerReady, WorkerState};
use rbee_http::HopClient;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a worker and the task that owns its process tell each other. Each is cancelled once, when it is so.
#[derive(Debug, Clone, Default)]
pub(crate) struct WorkerSignals {
    /// The model is loaded.
    pub(crate) ready: CancellationToken,
    /// The worker is to end.
    pub(crate) stop: CancellationToken,
    /// It is to end without being waited for.
    pub(crate) kill: CancellationToken,
    /// Its process is gone.
    pub(crate) gone: CancellationToken,
}

/// What a worker was granted: the row is its reservation, from before its process is started to its end.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) id: WorkerId,
    /// Its process, where there is one yet.
    pub(crate) pid: Option<u32>,
    pub(crate) memory_bytes: u64,
    /// Whether it has yet to take what it needs for its model.
    pub(crate) is_loading: bool,
}

/// One line of the registry.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) info: WorkerInfo,
    /// Memory it was granted.
    pub(super) memory_bytes: u64,
    pub(super) signals: WorkerSignals,
    /// What the worker shows when it calls; `None` once its process is gone.
    pub(super) callback: Option<TokenDigest>,
    /// How to call it, once its process runs.
    pub(super) client: Option<HopClient>,
    /// Requests being forwarded to it.
    pub(super) requests: u32,
    /// When it last had a request, or became ready.
    pub(super) idle_since: Instant,
    heartbeat_sequence: u64,
}

impl Worker {
    pub(super) fn new(info: WorkerInfo, memory_bytes: u64, callback: TokenDigest) -> Self {
        Self {
            info,
            memory_bytes,
            signals: WorkerSignals::default(),
            callback: Some(callback),
            client: None,
            requests: 0,
            idle_since: Instant::now(),
            heartbeat_sequence: 0,
        }
    }

    /// Whether a process of it lives or is about to.
    pub(super) fn is_alive(&self) -> bool {
        self.info.state != WorkerState::Failed
    }

    pub(super) fn grant(&self) -> Grant {
        Grant {
            id: self.info.id.clone(),
            pid: self.info.pid,
            memory_bytes: self.memory_bytes,
            is_loading: self.info.state == WorkerState::Starting,
        }
    }

    /// Whether it serves its model now or will soon.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.info.state, WorkerState::Starting | WorkerState::Ready)
    }

    /// Takes note of how far the load is, and says whether that is further than
    /// before.
    pub(super) fn loading(&mut self, load_progress: f32, now_ms: u64) -> bool {
        self.info.last_heartbeat_ms = Some(now_ms);
        let is_news =
            self.info.state == WorkerState::Starting && load_progress > self.info.load_progress;
        if is_news {
            self.info.load_progress = load_progress;
        }
        is_news
    }

    /// Takes note that the model is loaded. A repeated report changes nothing.
    pub(super) fn ready(&mut self, report: &WorkerReady, now_ms: u64) {
        self.info.last_heartbeat_ms = Some(now_ms);
        if self.info.state != WorkerState::Starting {
            return;
        }
        self.info.state = WorkerState::Ready;
        self.info.load_progress = 1.0;
        self.info.slots_total = report.slots_total;
        self.info.slots_available = report.slots_total;
        self.info.device.clone_from(&report.device);
        self.idle_since = Instant::now();
        self.signals.ready.cancel();
    }

    /// Takes note of a snapshot and says whether it changed anything. One older than the last is ignored.
    pub(super) fn heartbeat(&mut self, report: &WorkerHeartbeat, now_ms: u64) -> bool {
        if report.sequence <= self.heartbeat_sequence {
            return false;
        }
        self.heartbeat_sequence = report.sequence;
        self.info.last_heartbeat_ms = Some(now_ms);
        let available = report.slots_available.min(self.info.slots_total);
        std::mem::replace(&mut self.info.slots_available, available) != available
    }

    /// Asks the worker to end. Repeated, it changes nothing.
    pub(super) fn stop(&mut self) {
        if self.is_usable() {
            self.info.state = WorkerState::Stopping;
        }
        self.signals.stop.cancel();
    }

    /// Keeps the row of a worker whose process is gone, to show why.
    pub(super) fn failed(&mut self, failure: ErrorDetail) {
        self.info.state = WorkerState::Failed;
        self.info.failure = Some(failure);
        self.info.pid = None;
        self.info.slots_available = 0;
        self.callback = None;
        self.client = None;
    }
}
