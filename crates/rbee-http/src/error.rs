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

    /// Says how long the client should wait before it tries again, instead of a
    /// second; told with statuses 429 and 503 only.
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
        Self { detail: Box::new(detail), retry_after: RETRY_AFTER }
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
            let ms = u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX);
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
