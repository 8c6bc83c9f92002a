//! What the handlers share. Owns the rule who is let in while the queen stops;
//! decides nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use audit_logging::Auditor;
use deadline_propagation::Deadline;
use http::HeaderMap;
use input_validation::NodeName;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::queen::{PlacedWorker, QueenStatus};
use rbee_api::worker::WorkerInfo;
use rbee_http::{ApiError, Metrics};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::active::ActiveRequests;
use crate::cluster::Reach;
use crate::config::Settings;
use crate::keys::Keys;
use crate::pairing::Pairings;
use crate::registry::Registry;
use crate::retry_budget::RetryBudget;
use crate::shutdown::Shutdown;
use crate::starts::Starts;
use crate::turns::Turns;

/// The queen, as its handlers see it.
#[derive(Debug)]
pub(crate) struct App {
    /// For the listing of workers.
    pub(crate) active: ActiveRequests,
    pub(crate) registry: Arc<Registry>,
    pub(crate) starts: Starts,
    pub(crate) turns: Arc<Turns>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) pairings: Arc<Pairings>,
    pub(crate) retries: RetryBudget,
    pub(crate) shutdown: Shutdown,
    /// Ends the requests that outlast the drain time.
    pub(crate) cut: CancellationToken,
    /// Counts the requests that the end of the queen waits for.
    pub(crate) running: TaskTracker,
    /// The machine this queen runs on.
    pub(crate) local: NodeName,
    pub(crate) metrics: Metrics,
    pub(crate) audit: Auditor,
    /// Where the checkpoints of machines are kept.
    pub(crate) audit_dir: PathBuf,
    pub(crate) settings: Settings,
    /// Where the queen listens.
    pub(crate) address: SocketAddr,
    /// Whether others on the network can read what is said to the queen.
    pub(crate) plain_http_on_network: bool,
    pub(crate) started: Instant,
}

impl App {
    /// Lets new work in and counts it until the token is dropped.
    ///
    /// # Errors
    /// `draining` from the moment on when the queen was asked to stop.
    pub(crate) fn admit(&self) -> Result<TaskTrackerToken, ApiError> {
        // Counted before the question, so that the end cannot fall between the two.
        let token = self.running.token();
        if self.shutdown.is_asked() { Err(draining()) } else { Ok(token) }
    }

    /// Reads the deadline of a request.
    ///
    /// # Errors
    /// `validation_failed` for headers that cannot be read, `deadline_exceeded`
    /// for time that is over already.
    pub(crate) fn deadline(&self, headers: &HeaderMap) -> Result<Deadline, ApiError> {
        let seconds = std::time::Duration::from_secs;
        let default = seconds(self.settings.request_timeout_seconds);
        let cap = seconds(self.settings.request_timeout_max_seconds);
        let deadline = Deadline::from_headers(headers, default, cap).map_err(|error| {
            let detail = ErrorDetail::new(ErrorCode::ValidationFailed, error.to_string());
            ApiError::from(detail.with_param(error.header().as_str()))
        })?;
        if deadline.is_expired() { Err(out_of_time()) } else { Ok(deadline) }
    }

    /// Says whether the queen takes work: not while it stops, and not before it
    /// knows of any machine what that one has.
    pub(crate) fn readiness(&self) -> Result<(), ErrorCode> {
        if self.shutdown.is_asked() {
            return Err(ErrorCode::Draining);
        }
        if self.registry.view().is_gathering() { Err(ErrorCode::Loading) } else { Ok(()) }
    }

    /// Returns the workers on all machines, the oldest first.
    pub(crate) fn workers(&self) -> Vec<PlacedWorker> {
        let cluster = self.registry.view();
        let mut active = self.active.by_worker();
        let mut workers = Vec::new();
        for hive in cluster.hives.iter().filter(|hive| hive.is_listed()) {
            let placed = hive.workers().map(|worker| {
                let free = cluster.slots_available(worker);
                let slots_available = if hive.reach == Reach::Online { free } else { 0 };
                let requests = active.remove(&worker.id).unwrap_or_default();
                PlacedWorker {
                    requests,
                    hive: hive.name.clone(),
                    hive_state: hive.state(),
                    worker: WorkerInfo { slots_available, ..worker.clone() },
                }
            });
            workers.extend(placed);
        }
        workers.sort_by_key(|placed| placed.worker.started_at_ms);
        workers
    }

    /// Returns the state of the queen and of all it knows.
    pub(crate) fn status(&self) -> QueenStatus {
        QueenStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            draining: self.shutdown.is_asked(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            auth_mode: self.settings.auth.mode,
            plain_http_on_network: self.plain_http_on_network,
            requests_running: u32::try_from(self.running.len()).unwrap_or(u32::MAX),
            queues: self.turns.infos(),
            audit: self.audit.status(),
            hives: self.registry.hive_infos(),
            workers: self.workers(),
        }
    }
}

/// What a request is answered that comes or still waits when the queen stops.
pub(crate) fn draining() -> ApiError {
    ApiError::new(ErrorCode::Draining, "the queen is shutting down; try again in a moment")
}

/// What a request is answered whose time is over.
pub(crate) fn out_of_time() -> ApiError {
    let message = "the time for this request is over; X-Request-Timeout-Ms asks for more";
    ApiError::new(ErrorCode::DeadlineExceeded, message)
}
