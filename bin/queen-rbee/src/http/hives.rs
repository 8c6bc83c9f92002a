//! Machines: listed, and their reports taken.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use http::request::Parts;
use input_validation::NodeName;
use rbee_api::error::ErrorCode;
use rbee_api::hive::{HiveSnapshot, SnapshotReply};
use rbee_api::queen::HiveList;
use rbee_http::{ApiError, JsonBody, Principal};

use crate::app::App;

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<HiveList> {
    Json(HiveList { hives: app.registry.hive_infos() })
}

pub(super) async fn heartbeat(
    State(app): State<Arc<App>>,
    Reporter(name): Reporter,
    JsonBody(report): JsonBody<HiveSnapshot>,
) -> Result<Json<SnapshotReply>, ApiError> {
    let epoch = app.registry.heartbeat(&name, report).map_err(|_| not_found())?;
    let interval = app.settings.heartbeat_interval();
    let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
    Ok(Json(SnapshotReply { interval_ms, epoch }))
}

/// The machine that a report is about, told by itself: a hive that was paired is known by its own certificate and token,
/// and the token that the others share says nothing of it. Looked at before the report is.
pub(super) struct Reporter(pub(super) NodeName);

impl FromRequestParts<Arc<App>> for Reporter {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Path(name) =
            Path::<String>::from_request_parts(parts, app).await.map_err(|_| not_found())?;
        let name: NodeName = name.parse().map_err(|_| not_found())?;
        let is_itself = match parts.extensions.get::<Principal>() {
            Some(Principal::Hive(own)) => *own == name,
            Some(Principal::Peer) => !app.pairings.is_paired(&name),
            Some(
                Principal::Client
                | Principal::Key(_)
                | Principal::Applicant(_)
                | Principal::Worker(_),
            )
            | None => false,
        };
        let message = "a hive speaks for itself alone";
        if is_itself { Ok(Self(name)) } else { Err(ApiError::new(ErrorCode::Forbidden, message)) }
    }
}

pub(super) fn not_found() -> ApiError {
    ApiError::new(ErrorCode::HiveNotFound, "this queen knows no machine of this name")
}
