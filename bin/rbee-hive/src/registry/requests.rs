//! Requests on their way through a worker: counted, so that only an idle one is stopped, and told how it ended.

use std::sync::Arc;
use std::time::Duration;

use input_validation::WorkerId;
use rbee_api::error::ErrorCode;
use rbee_api::worker::WorkerState;
use rbee_api::worker_exit::ExitCause;
use rbee_http::{ApiError, HopClient};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{Registry, no_such_worker};

/// Counts one request of one worker until dropped.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    registry: Arc<Registry>,
    id: WorkerId,
    cause: watch::Sender<Option<ExitCause>>,
}

/// What became of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Ended(ExitCause),
    /// Its process is there.
    Lives,
}

/// The end of one worker, which may be to come.
#[derive(Debug)]
pub(crate) struct WorkerEnd(watch::Receiver<Option<ExitCause>>);

impl RequestGuard {
    pub(crate) fn end(&self) -> WorkerEnd {
        WorkerEnd(self.cause.subscribe())
    }
}

impl WorkerEnd {
    /// Returns what became of the worker: once it ends, and after `limit` where it does not.
    pub(crate) async fn fate_within(mut self, limit: Duration) -> Option<Fate> {
        match timeout(limit, self.0.wait_for(Option::is_some)).await {
            Ok(ended) => ended.ok()?.map(Fate::Ended),
            Err(_) => Some(Fate::Lives),
        }
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        if let Some(worker) = state.find(&self.id) {
            worker.requests = worker.requests.saturating_sub(1);
            worker.idle_since = Instant::now();
        }
    }
}

impl Registry {
    /// Lets a request in to a ready worker, and returns how to call it.
    pub(crate) fn enter(
        self: &Arc<Self>,
        id: &WorkerId,
    ) -> Result<(HopClient, RequestGuard), ApiError> {
        let mut state = self.lock();
        let worker = state.find(id).ok_or_else(no_such_worker)?;
        let not_ready = |code, message: &str| Err(ApiError::new(code, message));
        match (worker.info.state, &worker.client) {
            (WorkerState::Ready, Some(client)) => {
                let client = client.clone();
                let cause = worker.signals.cause.clone();
                worker.requests += 1;
                worker.has_served = true;
                drop(state);
                let registry = Arc::clone(self);
                Ok((client, RequestGuard { registry, id: id.clone(), cause }))
            }
            (WorkerState::Starting, _) | (WorkerState::Ready, None) => {
                not_ready(ErrorCode::Loading, "the worker still loads its model")
            }
            (WorkerState::Stopping, _) => {
                not_ready(ErrorCode::Draining, "the worker is being stopped")
            }
            (WorkerState::Failed, _) => {
                let failure = worker.info.failure.clone().map(ApiError::from);
                Err(failure.unwrap_or_else(|| {
                    ApiError::new(ErrorCode::WorkerFailed, "the worker is gone")
                }))
            }
        }
    }
}
