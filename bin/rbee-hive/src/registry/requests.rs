//! Requests on their way through a worker: counted, so that only an idle one is stopped.

use std::sync::Arc;

use input_validation::WorkerId;
use rbee_api::error::ErrorCode;
use rbee_api::worker::WorkerState;
use rbee_http::{ApiError, HopClient};
use tokio::time::Instant;

use super::{Registry, no_such_worker};

/// Counts one request of one worker until dropped.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    registry: Arc<Registry>,
    id: WorkerId,
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
                worker.requests += 1;
                drop(state);
                let registry = Arc::clone(self);
                Ok((client, RequestGuard { registry, id: id.clone() }))
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
