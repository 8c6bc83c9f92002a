//! Machines: listed, and their reports taken.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use input_validation::NodeName;
use rbee_api::error::ErrorCode;
use rbee_api::hive::{HeartbeatReply, HiveSnapshot};
use rbee_api::queen::HiveList;
use rbee_http::{ApiError, JsonBody};

use crate::app::App;

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<HiveList> {
    Json(HiveList { hives: app.registry.hive_infos() })
}

pub(super) async fn heartbeat(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    JsonBody(report): JsonBody<HiveSnapshot>,
) -> Result<Json<HeartbeatReply>, ApiError> {
    let name: NodeName = name.parse().map_err(|_| not_found())?;
    app.registry.heartbeat(&name, report).map_err(|_| not_found())?;
    let interval = app.settings.heartbeat_interval();
    let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    Ok(Json(HeartbeatReply { interval_ms }))
}

pub(super) fn not_found() -> ApiError {
    ApiError::new(ErrorCode::HiveNotFound, "this queen knows no machine of this name")
}
