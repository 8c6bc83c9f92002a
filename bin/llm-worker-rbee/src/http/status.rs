//! `GET /api/v1/status`.

use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use rbee_api::worker::{WorkerState, WorkerStatus};

use super::App;

pub(super) async fn show(State(app): State<App>) -> Json<WorkerStatus> {
    let loaded = app.engine().loaded();
    let snapshot = app.engine().snapshot();
    let state = if app.0.draining.load(Ordering::Relaxed) {
        WorkerState::Stopping
    } else if loaded.is_some() {
        WorkerState::Ready
    } else {
        WorkerState::Starting
    };
    Json(WorkerStatus {
        id: app.0.worker_id.clone(),
        model: app.model_name(),
        state,
        load_progress: snapshot.load_progress,
        backend: app.0.backend,
        device: loaded.map_or_else(String::new, |loaded| loaded.device.clone()),
        slots_total: snapshot.slots_total,
        context_tokens: loaded.map_or(0, |loaded| loaded.context_tokens),
        slots_available: snapshot.slots_available,
        requests_running: snapshot.requests_running,
        requests_waiting: snapshot.requests_waiting,
        requests: app.live().list(),
        engine_steps: snapshot.engine_steps,
        batch_requests_max: snapshot.batch_requests_max,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}
