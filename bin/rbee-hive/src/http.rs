//! Where requests enter: the whole route table of a hive, and what its handlers share.

mod contacts;
mod models;
mod paths;
mod status;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use deadline_propagation::{DEADLINE_CAP, DEADLINE_DEFAULT, Deadline};
use http::HeaderMap;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::{Access, ApiError, Readiness, RouteTable};

use crate::hive::Hive;

/// What a handler is given besides the request.
type HiveState = axum::extract::State<Arc<Hive>>;

/// Returns the route table.
pub(crate) fn routes(readiness: Readiness) -> RouteTable<Arc<Hive>> {
    RouteTable::new()
        .health(readiness)
        .get("/metrics", Access::Peer, status::metrics)
        .get("/api/v1/status", Access::Peer, status::status)
        .post("/api/v1/shutdown", Access::Peer, status::shutdown)
        .get("/api/v1/workers", Access::Peer, workers::list)
        .post("/api/v1/workers", Access::Peer, workers::start)
        .get("/api/v1/workers/{id}", Access::Peer, workers::show)
        .delete("/api/v1/workers/{id}", Access::Peer, workers::stop)
        .post("/api/v1/workers/{id}/reset", Access::Peer, workers::reset)
        .get("/api/v1/workers/{id}/metrics", Access::Peer, workers::metrics)
        .get("/api/v1/workers/{id}/logs", Access::Peer, workers::logs)
        .post("/api/v1/workers/{id}/v1/chat/completions", Access::Peer, workers::chat)
        .post("/api/v1/workers/{id}/v1/completions", Access::Peer, workers::complete)
        .post("/api/v1/workers/{id}/v1/embeddings", Access::Peer, workers::embed)
        .post("/api/v1/workers/{id}/v1/rerank", Access::Peer, workers::rerank)
        .get("/api/v1/workers/{id}/load", Access::Peer, workers::load)
        .post("/api/v1/workers/{id}/loading", Access::Worker, contacts::loading)
        .post("/api/v1/workers/{id}/ready", Access::Worker, contacts::ready)
        .post("/api/v1/workers/{id}/heartbeat", Access::Worker, contacts::heartbeat)
        .post("/api/v1/workers/{id}/ending", Access::Worker, contacts::ending)
        .get("/api/v1/models", Access::Peer, models::list)
        .post("/api/v1/models/pull", Access::Peer, models::pull)
        .delete("/api/v1/models/{*reference}", Access::Peer, models::remove)
}

/// Reads the deadline of a request.
fn deadline(headers: &HeaderMap) -> Result<Deadline, ApiError> {
    deadline_within(headers, DEADLINE_DEFAULT, DEADLINE_CAP)
}

fn deadline_within(
    headers: &HeaderMap,
    default: Duration,
    cap: Duration,
) -> Result<Deadline, ApiError> {
    let deadline = Deadline::from_headers(headers, default, cap).map_err(|error| {
        let param = error.header();
        ErrorDetail::new(ErrorCode::ValidationFailed, error.to_string()).with_param(param.as_str())
    })?;
    if deadline.is_expired() {
        return Err(ApiError::new(
            ErrorCode::DeadlineExceeded,
            "the time for this request is over",
        ));
    }
    Ok(deadline)
}

/// Refuses new work once the hive is shutting down.
fn refuse_if_draining(hive: &Hive) -> Result<(), ApiError> {
    if hive.registry.is_draining() {
        return Err(ApiError::new(ErrorCode::Draining, "this hive is shutting down"));
    }
    Ok(())
}
