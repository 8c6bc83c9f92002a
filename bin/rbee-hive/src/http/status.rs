//! What the hive says about itself, and its end.

use axum::Json;
use axum::extract::State;
use rbee_api::hive::HiveStatus;
use rbee_http::ApiError;
use serde_json::{Value, json};

use super::HiveState;

pub(super) async fn status(State(hive): HiveState) -> Result<Json<HiveStatus>, ApiError> {
    hive.status().await.map(Json)
}

pub(super) async fn metrics(State(hive): HiveState) -> String {
    hive.render_metrics().await
}

pub(super) async fn shutdown(State(hive): HiveState) -> Json<Value> {
    tracing::info!("shutdown requested");
    hive.shutdown.stop.cancel();
    Json(json!({"draining": true}))
}
