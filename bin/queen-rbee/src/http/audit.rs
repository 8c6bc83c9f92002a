//! Checkpoints of audit logs, for each other's safe keeping: a hive brings its newest, and takes the queen's along.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use input_validation::NodeName;
use rbee_api::audit::AuditExchange;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::{ApiError, JsonBody};

use super::hives::not_found;
use crate::app::App;

pub(super) async fn exchange(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    JsonBody(AuditExchange { checkpoint }): JsonBody<AuditExchange>,
) -> Result<Json<AuditExchange>, ApiError> {
    let name: NodeName = name.parse().map_err(|_| not_found())?;
    if !app.registry.knows(&name) {
        return Err(not_found());
    }
    if let Some(checkpoint) = checkpoint {
        let kept = app.audit.hold(&app.audit_dir, name.as_str(), checkpoint).await;
        kept.map_err(|error| {
            let detail = ErrorDetail::new(ErrorCode::ValidationFailed, error.to_string());
            ApiError::from(detail.with_param("checkpoint"))
        })?;
    }
    Ok(Json(AuditExchange { checkpoint: app.audit.checkpoint() }))
}
