//! Keys and what was used under them.

use std::sync::Arc;

use audit_logging::{Event, Kind, Outcome, SubjectKind};
use axum::Json;
use axum::extract::{Path, Query, State};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::key::{CreateKey, CreatedKey, KeyInfo, KeyList, USAGE_DAYS_MAX, UsageList};
use rbee_http::{ApiError, Caller, JsonBody};
use serde::Deserialize;

use crate::app::App;
use crate::keys::Requester;

/// Days of usage that are listed without being asked for.
const USAGE_DAYS_DEFAULT: u32 = 30;

pub(super) async fn create(
    State(app): State<Arc<App>>,
    JsonBody(wanted): JsonBody<CreateKey>,
) -> Result<Json<CreatedKey>, ApiError> {
    let event = Event::new(Kind::KeyCreate, Outcome::Requested);
    Caller::current().record(event.on(SubjectKind::Key, &wanted.name)).await?;
    app.keys.create(wanted).await.map(Json)
}

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<KeyList> {
    Json(KeyList { keys: app.keys.list() })
}

/// Takes a key back, also where that cannot be written down: what protects is not given up with the disk.
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Path(name_or_id): Path<String>,
) -> Result<Json<KeyInfo>, ApiError> {
    let event = Event::new(Kind::KeyRevoke, Outcome::Requested);
    Caller::current().note(event.on(SubjectKind::Key, &name_or_id));
    app.keys.revoke(&name_or_id).await.map(Json)
}

/// How far back a listing of usage goes.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct UsageQuery {
    days: u32,
}

impl Default for UsageQuery {
    fn default() -> Self {
        Self { days: USAGE_DAYS_DEFAULT }
    }
}

/// Shows an administrator what all have used, and others what they have.
pub(super) async fn usage(
    State(app): State<Arc<App>>,
    requester: Requester,
    Query(UsageQuery { days }): Query<UsageQuery>,
) -> Result<Json<UsageList>, ApiError> {
    if !(1..=USAGE_DAYS_MAX).contains(&days) {
        let message = format!("days must be from 1 to {USAGE_DAYS_MAX}");
        let detail = ErrorDetail::new(ErrorCode::ValidationFailed, message);
        return Err(detail.with_param("days").into());
    }
    app.keys.usage(days, requester.own_usage()).await.map(Json)
}
