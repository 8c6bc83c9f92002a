//! One worker as the registry holds it. Owns the rules of its states; never a process.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use auth_min::TokenDigest;
use input_validation::WorkerId;
use rbee_api::error::ErrorDetail;
use rbee_api::worker::{WorkerHeartbeat, WorkerInfo, WorkerState};
use rbee_api::worker_exit::ExitCause;
use rbee_http::HopClient;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::{MEBIBYTE, WorkerSize};
use crate::liveness::{Condemned, Watched};

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
    /// It does nothing any more and is to be killed at once; `verdict` says why.
    pub(crate) condemned: CancellationToken,
    /// Why it was condemned; set before that is told.
    pub(crate) verdict: Arc<OnceLock<Condemned>>,
    /// How its process ended, told as soon as that is known.
    pub(crate) cause: watch::Sender<Option<ExitCause>>,
}

/// Memory that a worker was granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    /// All of it.
    pub(crate) memory_bytes: u64,
    /// What of it lies on GPUs, where it has to fit into those altogether: what is kept of conversations does not.
    pub(crate) vram_bytes: u64,
}

impl Granted {
    pub(crate) const fn of(size: WorkerSize) -> Self {
        let WorkerSize { memory_bytes, store_mib, .. } = size;
        let store_bytes = store_mib.saturating_mul(MEBIBYTE);
        Self { memory_bytes, vram_bytes: memory_bytes.saturating_sub(store_bytes) }
    }

    /// What is written down of a worker that a former hive has started.
    pub(crate) const fn before(memory_bytes: u64) -> Self {
        Self { memory_bytes, vram_bytes: memory_bytes }
    }
}

/// What a worker was granted: the row is its reservation, from before its process is started to its end.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) id: WorkerId,
    /// Its process, where there is one yet.
    pub(crate) pid: Option<u32>,
    pub(crate) granted: Granted,
    /// Whether it has yet to take what it needs for its model.
    pub(crate) is_loading: bool,
}

/// What a worker serves with once its model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Serving {
    /// Requests it can decode at once.
    pub(crate) slots_total: u32,
    pub(crate) device: String,
}

/// One line of the registry.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) info: WorkerInfo,
    pub(super) granted: Granted,
    pub(super) signals: WorkerSignals,
    /// What the worker shows when it calls; `None` once its process is gone.
    pub(super) callback: Option<TokenDigest>,
    /// How to call it, once its process runs.
    pub(super) client: Option<HopClient>,
    /// Requests being forwarded to it.
    pub(super) requests: u32,
    /// When it last had a request, or became ready.
    pub(super) idle_since: Instant,
    /// Whether it has had a request since this hive knows it.
    pub(super) has_served: bool,
    /// Its signs of life.
    pub(super) watched: Watched,
    /// The exit code that it has said it ends with.
    pub(super) farewell: Option<u8>,
    /// What it served with under the hive before this one.
    pub(super) served_with: Option<Serving>,
    heartbeat_sequence: u64,
}

impl Worker {
    pub(super) fn new(
        info: WorkerInfo,
        granted: Granted,
        callback: TokenDigest,
        watched: Watched,
    ) -> Self {
        Self {
            info,
            granted,
            signals: WorkerSignals::default(),
            callback: Some(callback),
            client: None,
            requests: 0,
            idle_since: Instant::now(),
            has_served: false,
            watched,
            farewell: None,
            served_with: None,
            heartbeat_sequence: 0,
        }
    }

    /// The row of a worker that failed under a hive before this one.
    pub(super) fn failed_before(info: WorkerInfo, now: Instant) -> Self {
        Self {
            info,
            granted: Granted::default(),
            signals: WorkerSignals::default(),
            callback: None,
            client: None,
            requests: 0,
            idle_since: now,
            has_served: false,
            watched: Watched::new(now, Duration::ZERO, Duration::ZERO),
            farewell: None,
            served_with: None,
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
            granted: self.granted,
            is_loading: self.info.state == WorkerState::Starting,
        }
    }

    /// Whether it serves its model now or will soon.
    pub(super) fn is_usable(&self) -> bool {
        self.is_wanted() && !self.is_condemned()
    }

    /// Whether it is being killed, and has not failed yet.
    pub(super) fn is_condemned(&self) -> bool {
        self.is_alive() && self.signals.condemned.is_cancelled()
    }

    fn is_wanted(&self) -> bool {
        matches!(self.info.state, WorkerState::Starting | WorkerState::Ready)
    }

    /// Takes note of how far the load is, and says whether that is further than
    /// before.
    pub(super) fn loading(&mut self, load_progress: f32, now_ms: u64) -> bool {
        self.info.last_heartbeat_ms = Some(now_ms);
        let is_news =
            self.info.state == WorkerState::Starting && load_progress > self.info.load_progress;
        self.watched.heard(Instant::now());
        if is_news {
            self.info.load_progress = load_progress;
            self.watched.load_came_on(Instant::now());
        }
        is_news
    }

    /// Takes note that the model is loaded, and says whether that is news. A repeated report changes at most what the
    /// worker is known to serve with.
    pub(super) fn serves(&mut self, serving: &Serving, now_ms: u64) -> bool {
        self.info.last_heartbeat_ms = Some(now_ms);
        self.watched.heard(Instant::now());
        if !self.is_usable() {
            return false;
        }
        self.info.slots_total = serving.slots_total;
        self.info.device.clone_from(&serving.device);
        let is_news = self.info.state == WorkerState::Starting;
        if is_news {
            self.info.state = WorkerState::Ready;
            self.info.load_progress = 1.0;
            self.info.slots_available = serving.slots_total;
            self.idle_since = Instant::now();
            self.signals.ready.cancel();
        }
        is_news
    }

    /// Takes note of a snapshot and says whether it changed anything. One older than the last is ignored. A worker sends
    /// none before its model is loaded, so one that still stands as starting has told a former hive of that. It serves,
    /// with what that hive knew, or as many slots as the snapshot shows until it is asked.
    pub(super) fn heartbeat(&mut self, report: &WorkerHeartbeat, now_ms: u64) -> bool {
        if report.sequence <= self.heartbeat_sequence {
            return false;
        }
        self.heartbeat_sequence = report.sequence;
        self.info.last_heartbeat_ms = Some(now_ms);
        let was_starting = self.info.state == WorkerState::Starting;
        if was_starting {
            let slots_total = report.slots_available.saturating_add(report.requests_running);
            let seen = Serving { slots_total, device: self.info.device.clone() };
            let serving = self.served_with.take().unwrap_or(seen);
            self.serves(&serving, now_ms);
        }
        self.watched.beat(Instant::now(), report.is_stepping, report.engine_steps);
        let available = report.slots_available.min(self.info.slots_total);
        let before = std::mem::replace(&mut self.info.slots_available, available);
        was_starting || before != available
    }

    /// Asks the worker to end. Repeated, it changes nothing.
    pub(super) fn stop(&mut self) {
        if self.is_wanted() {
            self.info.state = WorkerState::Stopping;
        }
        self.signals.stop.cancel();
    }

    /// Has its owner kill it, unless it is ending anyway. Says whether that is news. It takes no request from now on: its
    /// process may stay for long, such as one that waits for a disk. A load is told as one until it has failed.
    pub(super) fn condemn(&mut self, why: Condemned) -> bool {
        let is_news = self.is_usable() && self.signals.verdict.set(why).is_ok();
        if is_news {
            if self.info.state == WorkerState::Ready {
                self.info.state = WorkerState::Stopping;
            }
            self.signals.condemned.cancel();
        }
        is_news
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
