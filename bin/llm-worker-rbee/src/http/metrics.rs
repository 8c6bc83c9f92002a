//! `GET /metrics`.

use axum::extract::State;
use http::header::CONTENT_TYPE;

use super::App;

/// The text format of Prometheus.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4";

pub(super) async fn show(
    State(app): State<App>,
) -> ([(http::HeaderName, &'static str); 1], String) {
    // A snapshot also writes the gauges.
    app.engine().snapshot();
    ([(CONTENT_TYPE, PROMETHEUS_TEXT)], app.metrics().render())
}
