//! What workers tell their hive. A worker speaks for itself alone.
//!
//! A worker of a former hive process has a secret that this one does not know and is answered 401 before it comes here.

use axum::extract::State;
use axum::{Extension, Json};
use input_validation::WorkerId;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::hive::HeartbeatReply;
use rbee_api::worker::{WorkerEnding, WorkerHeartbeat, WorkerLoading, WorkerReady};
use rbee_http::{ApiError, JsonBody, Principal};

use super::HiveState;
use super::paths::Named;
use crate::hive::Hive;

pub(super) async fn loading(
    State(hive): HiveState,
    Named(id): Named<WorkerId>,
    Extension(caller): Extension<Principal>,
    JsonBody(report): JsonBody<WorkerLoading>,
) -> Result<Json<HeartbeatReply>, ApiError> {
    require_self(&caller, &id)?;
    if !(0.0..=1.0).contains(&report.load_progress) {
        let message = format!("load_progress is {} and must be 0 to 1", report.load_progress);
        let detail = ErrorDetail::new(ErrorCode::ValidationFailed, message);
        return Err(detail.with_param("load_progress").into());
    }
    hive.registry.loading(&id, report.load_progress)?;
    Ok(Json(interval(&hive)))
}

pub(super) async fn ready(
    State(hive): HiveState,
    Named(id): Named<WorkerId>,
    Extension(caller): Extension<Principal>,
    JsonBody(report): JsonBody<WorkerReady>,
) -> Result<Json<HeartbeatReply>, ApiError> {
    require_self(&caller, &id)?;
    hive.registry.ready(&id, &report)?;
    tracing::info!(worker_id = %id, device = %report.device, duration_ms = report.load_ms, "worker ready");
    Ok(Json(interval(&hive)))
}

pub(super) async fn heartbeat(
    State(hive): HiveState,
    Named(id): Named<WorkerId>,
    Extension(caller): Extension<Principal>,
    JsonBody(report): JsonBody<WorkerHeartbeat>,
) -> Result<Json<HeartbeatReply>, ApiError> {
    require_self(&caller, &id)?;
    hive.registry.heartbeat(&id, &report)?;
    Ok(Json(interval(&hive)))
}

pub(super) async fn ending(
    State(hive): HiveState,
    Named(id): Named<WorkerId>,
    Extension(caller): Extension<Principal>,
    JsonBody(report): JsonBody<WorkerEnding>,
) -> Result<Json<HeartbeatReply>, ApiError> {
    require_self(&caller, &id)?;
    hive.registry.ending(&id, report.exit_code)?;
    Ok(Json(interval(&hive)))
}

fn interval(hive: &Hive) -> HeartbeatReply {
    HeartbeatReply { interval_ms: hive.config.heartbeat_interval_seconds * 1000 }
}

fn require_self(caller: &Principal, id: &WorkerId) -> Result<(), ApiError> {
    match caller {
        Principal::Worker(own) if own == id => Ok(()),
        Principal::Worker(_)
        | Principal::Client
        | Principal::Key(_)
        | Principal::Peer
        | Principal::Hive(_)
        | Principal::Applicant(_) => {
            Err(ApiError::new(ErrorCode::Forbidden, "a worker speaks for itself alone"))
        }
    }
}
