//! The worker's HTTP: its whole route table, who may call it, and what the
//! handlers share. Every route but health is for the hive alone.

mod chat;
mod completions;
mod control;
mod embeddings;
mod metrics;
mod models;
mod rerank;
mod status;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use auth_min::TokenDigest;
use deadline_propagation::{DEADLINE_CAP, DEADLINE_DEFAULT, Deadline};
use http::HeaderMap;
use input_validation::{ModelRef, Sha256Hex, WorkerId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::StreamOptions;
use rbee_api::worker::{Backend, WorkerHeartbeat, WorkerReady};
use rbee_http::{
    Access, ApiError, Authenticator, ForwardedBody, Metrics, Principal, Readiness, RouteTable,
    cache_scope,
};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::engine::EngineHandle;
use crate::engine::backend::Loaded;
use crate::engine::memory::Scope;
use crate::generation::Marks;
use crate::live::LiveRequests;

/// The whole route table.
pub(crate) fn routes(readiness: Readiness) -> RouteTable<App> {
    RouteTable::new()
        .health(readiness)
        .post("/v1/chat/completions", Access::Peer, chat::complete)
        .post("/v1/completions", Access::Peer, completions::complete)
        .post("/v1/embeddings", Access::Peer, embeddings::embed)
        .post("/v1/rerank", Access::Peer, rerank::rank)
        .get("/v1/models", Access::Peer, models::list)
        .get("/api/v1/status", Access::Peer, status::show)
        .delete("/api/v1/requests/{id}", Access::Peer, control::cancel)
        .post("/api/v1/shutdown", Access::Peer, control::shut_down)
        .get("/metrics", Access::Peer, metrics::show)
}

/// Lets in whoever shows the worker's own token: its hive.
pub(crate) fn authenticator(token: TokenDigest) -> Authenticator {
    Arc::new(move |shown, _certificate| shown.digest().matches(&token).then_some(Principal::Peer))
}

/// Which model is here.
#[derive(Debug)]
pub(crate) struct ModelIdentity {
    /// What clients call it.
    pub(crate) names: Vec<ModelRef>,
    /// SHA-256 of its file, where it is known.
    pub(crate) sha256: Option<Sha256Hex>,
}

/// What the handlers share.
#[derive(Debug, Clone)]
pub(crate) struct App(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    worker_id: WorkerId,
    backend: Backend,
    model: ModelIdentity,
    /// Whether requests of different users may share computed prompts.
    cache_shared: bool,
    /// Seconds since the epoch.
    started_at: u64,
    engine: EngineHandle,
    live: LiveRequests,
    draining: AtomicBool,
    shutdown: CancellationToken,
    metrics: Metrics,
}

impl App {
    /// `shutdown` is cancelled when somebody asks the worker to end.
    pub(crate) fn new(
        worker_id: WorkerId,
        backend: Backend,
        model: ModelIdentity,
        cache_shared: bool,
        engine: EngineHandle,
        shutdown: CancellationToken,
        metrics: Metrics,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(Arc::new(Shared {
            worker_id,
            backend,
            model,
            cache_shared,
            started_at: now.map_or(0, |since| since.as_secs()),
            engine,
            live: LiveRequests::default(),
            draining: AtomicBool::new(false),
            shutdown,
            metrics,
        }))
    }

    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.0.engine
    }

    pub(crate) fn live(&self) -> &LiveRequests {
        &self.0.live
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Takes no new requests from now on.
    pub(crate) fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Returns the model, if requests are taken now.
    pub(crate) fn ready(&self) -> Result<&Loaded, ApiError> {
        if self.0.draining.load(Ordering::Relaxed) {
            return Err(ApiError::new(ErrorCode::Draining, "this worker is shutting down"));
        }
        self.0.engine.loaded().ok_or_else(|| {
            ApiError::new(ErrorCode::Loading, "the model is still loading; try again shortly")
        })
    }

    /// Checks that a request means the model that is here.
    pub(crate) fn check_model(&self, wanted: &ModelRef) -> Result<(), ApiError> {
        if self.0.model.names.contains(wanted) {
            return Ok(());
        }
        let message = format!("this worker does not hold the model {wanted}");
        Err(ErrorDetail::new(ErrorCode::ModelNotFound, message).with_param("model").into())
    }

    pub(crate) fn model_sha256(&self) -> Option<&Sha256Hex> {
        self.0.model.sha256.as_ref()
    }

    /// Reads whether the stream of a reply with so many choices is to be marked,
    /// and what a client has of it.
    fn marks(
        &self,
        body: &ForwardedBody,
        stream: StreamOptions,
        choices: u32,
    ) -> Result<Marks, ApiError> {
        Marks::read(body, stream, choices, self.model_sha256())
    }

    /// Whose computed prompts a request may use: those of the key that the queen
    /// names, and of them those of the user that the request names.
    fn scope(&self, headers: &HeaderMap, user: Option<&str>) -> Result<Scope, ApiError> {
        let key = cache_scope(headers)?;
        if self.0.cache_shared {
            return Ok(Scope(Sha256::digest("").into()));
        }
        let key = key.as_ref().map(Sha256Hex::as_str).unwrap_or_default();
        // The byte between the two is no hex digit, so that no user's name can be taken for a key.
        let hasher = Sha256::new().chain_update(key).chain_update([0]);
        Ok(Scope(hasher.chain_update(user.unwrap_or_default()).finalize().into()))
    }

    /// The name of the model for listings.
    fn model_name(&self) -> String {
        self.0.model.names.first().map(ToString::to_string).unwrap_or_default()
    }

    /// What the hive is told once the model is loaded.
    pub(crate) fn ready_report(&self) -> Option<WorkerReady> {
        let loaded = self.0.engine.loaded()?;
        Some(WorkerReady {
            slots_total: loaded.slots,
            context_tokens: loaded.context_tokens,
            device: loaded.device.clone(),
            load_ms: u64::try_from(loaded.load_time.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// What the hive is told again and again.
    pub(crate) fn heartbeat(&self, sequence: u64) -> WorkerHeartbeat {
        let snapshot = self.0.engine.snapshot();
        WorkerHeartbeat {
            sequence,
            slots_available: snapshot.slots_available,
            requests_running: snapshot.requests_running,
            requests_waiting: snapshot.requests_waiting,
            engine_steps: snapshot.engine_steps,
            is_stepping: snapshot.stepping,
        }
    }
}

/// The deadline of a request, from its headers.
fn deadline(headers: &HeaderMap) -> Result<Deadline, ApiError> {
    Deadline::from_headers(headers, DEADLINE_DEFAULT, DEADLINE_CAP).map_err(|error| {
        ErrorDetail::new(ErrorCode::ValidationFailed, error.to_string())
            .with_param(error.header().as_str())
            .into()
    })
}
