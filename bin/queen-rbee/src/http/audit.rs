//! Checkpoints of audit logs, for each other's safe keeping: a hive brings its newest, and takes the queen's along.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use rbee_api::audit::AuditExchange;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::{ApiError, JsonBody};

use super::hives::{Reporter, not_found};
use crate::app::App;

pub(super) async fn exchange(
    State(app): State<Arc<App>>,
    Reporter(name): Reporter,
    JsonBody(AuditExchange { checkpoint }): JsonBody<AuditExchange>,
) -> Result<Json<AuditExchange>, ApiError> {
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
