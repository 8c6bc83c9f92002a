//! The one way from an error to an HTTP response.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{self, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use rbee_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rbee_api::headers;
use rbee_api::openai::RequestError;

use crate::request::current_request_id;

/// How long a client is told to wait where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error on its way to the client. The request's id is filled in when it
/// becomes a response.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{detail}")]
pub struct ApiError {
    detail: Box<ErrorDetail>,
    retry_after: Duration,
}

impl ApiError {
    /// Builds the error for `code`; `message` says what is wrong and what to do.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ErrorDetail::new(code, message).into()
    }

    /// Says how long the client should wait before it tries again, instead of what
    /// the figures of the error say, or a second; told with statuses 429 and 503 only.
    #[must_use]
    pub fn with_retry_after(self, retry_after: Duration) -> Self {
        Self { retry_after, ..self }
    }

    /// Returns the code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.detail.code
    }

    /// Returns the whole detail, as it will stand in the body.
    #[must_use]
    pub fn detail(&self) -> &ErrorDetail {
        &self.detail
    }

    /// Takes the detail out, for an error event inside a stream.
    #[must_use]
    pub fn into_detail(self) -> ErrorDetail {
        *self.detail
    }
}

impl From<ErrorDetail> for ApiError {
    fn from(detail: ErrorDetail) -> Self {
        let retry_after = figure_of_wait(&detail);
        Self { detail: Box::new(detail), retry_after }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        ErrorDetail::from(error).into()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut detail = *self.detail;
        if detail.request_id.is_none() {
            detail.request_id = current_request_id().map(|id| id.to_string());
        }
        let code = detail.code;
        let status =
            StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retryable = detail.retryable;
        // Serialising a struct of strings cannot fail; an empty body would still carry the status.
        let body = serde_json::to_vec(&ErrorBody { error: detail }).unwrap_or_default();
        let mut response = (status, body).into_response();
        let head = response.headers_mut();
        head.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if code == ErrorCode::Unauthorized {
            head.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(code.status(), 429 | 503) {
            // A wait that is nearly over is one all the same: 0 would ask for a loop without a pause.
            let ms = u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX).max(1);
            head.insert(header::RETRY_AFTER, ms.div_ceil(1000).into());
            head.insert(headers::RETRY_AFTER_MS, ms.into());
        }
        if !retryable {
            head.insert(headers::SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response.extensions_mut().insert(code);
        response
    }
}

/// How long a client has to wait by the figures of an error, whichever program made it.
fn figure_of_wait(detail: &ErrorDetail) -> Duration {
    let figure = detail.details.as_ref().and_then(|figures| figures.get("retry_after_ms"));
    figure.and_then(serde_json::Value::as_u64).map_or(RETRY_AFTER, Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_is_told_to_wait_as_long_as_the_figures_say_and_a_second_without_any() {
        let busy = || ErrorDetail::new(ErrorCode::WorkerFailing, "later");
        for (detail, seconds, ms) in [
            (busy(), "1", "1000"),
            (busy().with_details(json!({"retry_after_ms": 2500})), "3", "2500"),
            (busy().with_details(json!({"places": 3})), "1", "1000"),
            (busy().with_details(json!({"retry_after_ms": 0})), "1", "1"),
        ] {
            let response = ApiError::from(detail).into_response();
            let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(
                (header("retry-after").as_str(), header("retry-after-ms").as_str()),
                (seconds, ms)
            );
        }
        let figures = json!({"retry_after_ms": 2500});
        let gone = ErrorDetail::new(ErrorCode::WorkerFailed, "gone").with_details(figures);
        assert!(!ApiError::from(gone).into_response().headers().contains_key("retry-after"));
    }
}
