//! A hive as the worker sees it: a listener that notes what the worker reports
//! and answers as the test wants.

use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use rbee_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rbee_api::hive::HeartbeatReply;
use rbee_api::worker::{WorkerEnding, WorkerHeartbeat, WorkerLoading, WorkerReady};
use rbee_http::Server;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::process::CALLBACK_TOKEN;

/// How often the hive wants to be told.
const INTERVAL_MS: u64 = 300;

/// How the hive answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// The worker is its own.
    Owns,
    /// It has never heard of this worker.
    Disowns,
}

/// What the worker has reported.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    pub(crate) loading: Vec<f32>,
    pub(crate) ready: Vec<WorkerReady>,
    pub(crate) heartbeats: Vec<WorkerHeartbeat>,
    pub(crate) endings: Vec<u8>,
}

#[derive(Debug, Clone)]
struct Shared {
    mood: Arc<Mutex<Mood>>,
    reports: Arc<Mutex<Reports>>,
}

/// The hive; it stops listening when dropped.
#[derive(Debug)]
pub(crate) struct FakeHive {
    pub(crate) url: String,
    shared: Shared,
    _running: DropGuard,
}

impl FakeHive {
    pub(crate) async fn start() -> Self {
        let shared = Shared { mood: Arc::new(Mutex::new(Mood::Owns)), reports: Arc::default() };
        let router = Router::new()
            .route("/api/v1/workers/{id}/loading", post(loading))
            .route("/api/v1/workers/{id}/ready", post(ready))
            .route("/api/v1/workers/{id}/heartbeat", post(heartbeat))
            .route("/api/v1/workers/{id}/ending", post(ending))
            .with_state(shared.clone());
        let listener = rbee_http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        tokio::spawn(Server::new(listener, router, std::time::Duration::ZERO).run(stop.clone()));
        Self { url, shared, _running: stop.drop_guard() }
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }

    /// Reads the reports so far.
    pub(crate) fn reports<T>(&self, read: impl FnOnce(&Reports) -> T) -> T {
        read(&self.shared.reports.lock().unwrap())
    }
}

async fn loading(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(report): Json<WorkerLoading>,
) -> axum::response::Response {
    shared.answer(&id, &headers, |reports| reports.loading.push(report.load_progress))
}

async fn ready(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(report): Json<WorkerReady>,
) -> axum::response::Response {
    shared.answer(&id, &headers, |reports| reports.ready.push(report))
}

async fn heartbeat(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(report): Json<WorkerHeartbeat>,
) -> axum::response::Response {
    shared.answer(&id, &headers, |reports| reports.heartbeats.push(report))
}

async fn ending(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Json(report): Json<WorkerEnding>,
) -> axum::response::Response {
    shared.answer(&id, &headers, |reports| reports.endings.push(report.exit_code))
}

impl Shared {
    fn answer(
        &self,
        id: &str,
        headers: &HeaderMap,
        note: impl FnOnce(&mut Reports),
    ) -> axum::response::Response {
        let expected = format!("Bearer {CALLBACK_TOKEN}");
        assert_eq!(headers.get("authorization").unwrap(), expected.as_str());
        assert_eq!(id, crate::process::WORKER_ID);
        let mood = *self.mood.lock().unwrap();
        if mood == Mood::Disowns {
            let error = ErrorDetail::new(ErrorCode::WorkerNotFound, "no such worker");
            return (StatusCode::NOT_FOUND, Json(ErrorBody { error })).into_response();
        }
        note(&mut self.reports.lock().unwrap());
        Json(HeartbeatReply { interval_ms: INTERVAL_MS }).into_response()
    }
}
