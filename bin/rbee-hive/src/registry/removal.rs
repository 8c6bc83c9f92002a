//! A model on its way out: no worker of it may start, and idle ones end first.

use std::sync::Arc;

use input_validation::ModelRef;
use model_catalog::Model;
use rbee_api::error::ErrorCode;
use rbee_api::worker::WorkerState;
use rbee_http::ApiError;
use tokio_util::sync::CancellationToken;

use super::Registry;

/// Keeps workers of one model from starting until dropped.
#[derive(Debug)]
pub(crate) struct Removal {
    registry: Arc<Registry>,
    reference: ModelRef,
    ending: Vec<CancellationToken>,
}

impl Removal {
    /// Waits until no process uses the model.
    pub(crate) async fn unused(&self) {
        for gone in &self.ending {
            gone.cancelled().await;
        }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        self.registry.lock().removing.retain(|reference| *reference != self.reference);
    }
}

impl Registry {
    /// Begins the removal of a model: refuses where it is being used, else asks its idle workers to end.
    pub(crate) fn begin_removal(
        self: &Arc<Self>,
        reference: &ModelRef,
    ) -> Result<Removal, ApiError> {
        let mut state = self.lock();
        if state.removing.contains(reference) {
            return Err(in_use("the model is being removed already"));
        }
        let workers = || state.workers.iter().filter(|worker| worker.info.model_ref == *reference);
        if workers().any(|worker| worker.info.state == WorkerState::Starting) {
            return Err(in_use("a worker is loading the model; stop it with `rbee stop`, or wait"));
        }
        if workers().any(|worker| worker.is_alive() && worker.requests > 0) {
            return Err(in_use("the model is answering requests; wait until they are done"));
        }
        let mut ending = Vec::new();
        for worker in state.workers.iter_mut().filter(|worker| worker.info.model_ref == *reference)
        {
            if worker.is_alive() {
                worker.stop();
                ending.push(worker.signals.gone.clone());
            }
        }
        state.removing.push(reference.clone());
        drop(state);
        self.touch();
        Ok(Removal { registry: Arc::clone(self), reference: reference.clone(), ending })
    }
}

impl Registry {
    /// Asks the workers to end that know a model by a name it no longer has: what they are to answer to was fixed
    /// when they were started. They finish what they are answering.
    pub(crate) fn retire_renamed(&self, model: &Model) {
        let mut state = self.lock();
        for worker in &mut state.workers {
            let is_renamed =
                worker.info.model_ref == model.reference && worker.info.alias != model.alias;
            if is_renamed && worker.is_alive() {
                tracing::info!(worker_id = %worker.info.id, model = %model.reference, "model renamed; worker ends");
                worker.stop();
            }
        }
        drop(state);
        self.touch();
    }
}

fn in_use(message: &str) -> ApiError {
    ApiError::new(ErrorCode::ModelInUse, message)
}
