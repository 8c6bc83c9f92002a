//! The queen herself: her status, her metrics, her end.

use std::sync::Arc;

use audit_logging::{Event, Kind, Outcome};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use rbee_api::queen::QueenStatus;
use rbee_http::Caller;

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
    // A queen can be stopped, whatever the disk is like.
    Caller::current().note(Event::new(Kind::Shutdown, Outcome::Requested));
    app.shutdown.ask();
    Json(app.status())
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let key_requests = app.keys.accounts().running();
    telemetry::scraped(&app.registry.view(), app.turns.bytes(), key_requests);
    ([(CONTENT_TYPE, METRICS_TYPE)], app.metrics.render()).into_response()
}
