//! Server-sent events as OpenAI's clients read them: `data:` lines, no names,
//! no ids.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use rbee_api::error::{ErrorBody, ErrorDetail};
use serde::Serialize;

/// The event that ends a stream that is whole.
pub const DONE_EVENT: &[u8] = b"data: [DONE]\n\n";

/// Frames one event.
#[must_use]
pub fn event(json: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(json.len() + 8);
    frame.extend_from_slice(b"data: ");
    frame.extend_from_slice(json);
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

/// Serialises and frames one event.
///
/// # Errors
/// Fails only if `value` cannot be JSON.
pub fn json_event<T: Serialize>(value: &T) -> Result<Bytes, serde_json::Error> {
    serde_json::to_vec(value).map(|json| event(&json))
}

/// Frames the event that ends a stream that is not whole.
#[must_use]
pub fn error_event(detail: ErrorDetail) -> Bytes {
    // Serialising a struct of strings cannot fail.
    event(&serde_json::to_vec(&ErrorBody { error: detail }).unwrap_or_default())
}

/// Wraps a stream of framed events into a response.
pub fn event_stream_response<S, E>(events: S) -> Response
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: Into<axum::BoxError> + 'static,
{
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks reverse proxies not to hold tokens back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
