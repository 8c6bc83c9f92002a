//! The outermost layer: gives every request an id, a log span and a place in
//! the metrics, and turns a panic in a handler into a 500 for that request.

use std::panic::AssertUnwindSafe;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use input_validation::RequestId;
use rbee_api::error::ErrorCode;
use rbee_api::headers;
use tokio::time::Instant;
use tracing::Instrument;

use crate::error::ApiError;
use crate::metrics::Metrics;

tokio::task_local! {
    static REQUEST_ID: RequestId;
}

/// Returns the id of the request that the current task handles.
pub(crate) fn current_request_id() -> Option<RequestId> {
    REQUEST_ID.try_with(Clone::clone).ok()
}

/// Makes a fresh request id, ordered by time.
#[must_use]
pub fn new_request_id() -> RequestId {
    RequestId::from_u128(uuid::Uuid::now_v7().as_u128())
}

/// What a handler needs to know about the request besides its body.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// The id that came in, or a fresh one.
    pub id: RequestId,
}

impl<S: Send + Sync> FromRequestParts<S> for RequestContext {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let id = parts.extensions.get::<RequestId>().cloned().unwrap_or_else(new_request_id);
        Ok(Self { id })
    }
}

/// Takes over an inbound id if it is sane, else makes one.
fn inbound_id(headers: &HeaderMap) -> RequestId {
    headers
        .get(headers::REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(new_request_id)
}

/// The layer itself. Runs outside of routing, so that every reply passes it.
pub(crate) async fn outermost(
    State(metrics): State<Metrics>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id = inbound_id(request.headers());
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    let span = tracing::info_span!("request", request_id = %id, method = %method);

    let work = AssertUnwindSafe(next.run(request)).catch_unwind();
    let caught = REQUEST_ID.scope(id.clone(), work.instrument(span.clone())).await;
    let _entered = span.enter();
    let mut response = caught.unwrap_or_else(|_| {
        metrics.panicked();
        tracing::error!(code = %ErrorCode::InternalError, "handler panicked");
        let message = "an internal error; the logs have the details under this request id";
        let mut detail = ApiError::new(ErrorCode::InternalError, message).into_detail();
        detail.request_id = Some(id.to_string());
        ApiError::from(detail).into_response()
    });

    let route = response.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str);
    let duration = started.elapsed();
    metrics.request(route, &method, response.status(), duration);
    log_outcome(route, &response, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    if let Ok(value) = HeaderValue::from_str(id.as_ref()) {
        response.headers_mut().insert(headers::REQUEST_ID, value);
    }
    response
}

fn log_outcome(route: &str, response: &Response, duration_ms: u64) {
    let status = response.status().as_u16();
    match response.extensions().get::<ErrorCode>() {
        // Whoever waits for a start asks for it many times a second.
        Some(code @ ErrorCode::Loading) => {
            tracing::debug!(route, status, duration_ms, %code, "not ready yet");
        }
        // Whoever has no credential could fill the log with these; `throttle` bounds what is told of them.
        Some(
            code @ (ErrorCode::Unauthorized
            | ErrorCode::TooManyFailures
            | ErrorCode::HostNotAllowed
            | ErrorCode::TlsRequired),
        ) => {
            tracing::debug!(route, status, duration_ms, %code, "request not let in");
        }
        Some(code) if code.status() == 500 => {
            tracing::error!(route, status, duration_ms, %code, "request failed");
        }
        Some(code) if code.status() > 500 => {
            tracing::warn!(route, status, duration_ms, %code, "request failed");
        }
        Some(code) => tracing::info!(route, status, duration_ms, %code, "request refused"),
        None => tracing::debug!(route, status, duration_ms, "request answered"),
    }
}
