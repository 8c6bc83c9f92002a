//! The queen herself: her status, her metrics, her end.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use rbee_api::queen::QueenStatus;

use crate::app::App;
use crate::telemetry;

/// The text format of Prometheus.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn status(State(app): State<Arc<App>>) -> Json<QueenStatus> {
    Json(app.status())
}

/// Answers with the status, so that the caller learns whose end to wait for.
pub(super) async fn shutdown(State(app): State<Arc<App>>) -> Json<QueenStatus> {
    tracing::info!("asked to stop");
    app.shutdown.ask();
    Json(app.status())
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    telemetry::scraped(&app.registry.view(), app.turns.bytes());
    ([(CONTENT_TYPE, METRICS_TYPE)], app.metrics.render()).into_response()
}
