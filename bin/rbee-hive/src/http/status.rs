//! What the hive says about itself, and its end.

use std::time::Duration;

use audit_logging::{Event, Kind, Outcome};
use axum::Json;
use axum::extract::{Query, State};
use rbee_api::hive::HiveStatus;
use rbee_http::{ApiError, Caller};
use serde::Deserialize;
use serde_json::{Value, json};

use super::HiveState;

pub(super) async fn status(State(hive): HiveState) -> Result<Json<HiveStatus>, ApiError> {
    hive.status().await.map(Json)
}

pub(super) async fn metrics(State(hive): HiveState) -> String {
    hive.render_metrics().await
}

/// How the hive is to end.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShutdownQuery {
    /// The time it has; absent: as configured, which is also the most. 0: it ends at once.
    timeout_ms: Option<u64>,
}

pub(super) async fn shutdown(
    State(hive): HiveState,
    Query(query): Query<ShutdownQuery>,
) -> Json<Value> {
    tracing::info!(timeout_ms = query.timeout_ms, "shutdown requested");
    // A hive can be stopped, whatever the disk is like.
    Caller::current().note(Event::new(Kind::Shutdown, Outcome::Requested));
    hive.shutdown.ask(query.timeout_ms.map_or(Duration::MAX, Duration::from_millis));
    Json(json!({"draining": true}))
}
