//! Request bodies: read within the limit, as JSON, with the path of the field
//! that is wrong.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};
use input_validation::sanitize_for_log;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::limits::BODY_BYTES_MAX;
use serde::de::DeserializeOwned;

use tokio::time::timeout;

use crate::error::ApiError;

/// A client has this long to send its body: the largest one in time over a
/// slow home line, and an end for one that never comes.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Most of what a parser says that is told, in characters.
const TOLD_MAX: usize = 400;

/// The body of a JSON request, unparsed.
#[derive(Debug, Clone)]
pub struct RawJson(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RawJson {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(not_json());
        }
        if announced_bytes(request.headers()).is_some_and(|length| length > BODY_BYTES_MAX) {
            return Err(too_large());
        }
        match timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await {
            Ok(Ok(body)) => Ok(Self(body)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(too_large())
            }
            Ok(Err(_)) => Err(ApiError::new(ErrorCode::ValidationFailed, "the body broke off")),
            Err(_) => {
                Err(ApiError::new(ErrorCode::RequestTimeout, "the body did not arrive in time"))
            }
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

fn not_json() -> ApiError {
    let message = "send the body as `Content-Type: application/json`";
    ApiError::new(ErrorCode::UnsupportedMediaType, message)
}

/// The layer that takes a POST only as JSON, even where its body is not looked at: a form of a
/// web page can send every other kind without asking first.
pub(crate) async fn only_json_is_posted(request: Request, next: Next) -> Response {
    if request.method() == Method::POST && !is_json(request.headers()) {
        return not_json().into_response();
    }
    next.run(request).await
}

fn announced_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large() -> ApiError {
    let message = format!("the body is larger than {BODY_BYTES_MAX} bytes");
    ApiError::new(ErrorCode::PayloadTooLarge, message)
}

/// Makes a parser's words, which hold names out of the body, fit to be told.
fn shown(told: &str) -> String {
    let cut: String = told.chars().take(TOLD_MAX).collect();
    sanitize_for_log(&cut).into_owned()
}

/// The body of a JSON request, parsed into `T`.
#[derive(Debug, Clone)]
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let RawJson(body) = RawJson::from_request(request, state).await?;
        let mut json = serde_json::Deserializer::from_slice(&body);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let message = shown(&error.into_inner().to_string());
            let detail = ErrorDetail::new(ErrorCode::ValidationFailed, message);
            if path == "." { detail } else { detail.with_param(shown(&path)) }
        })?;
        json.end().map_err(|error| {
            ApiError::new(ErrorCode::ValidationFailed, format!("after the JSON value: {error}"))
        })?;
        Ok(Self(value))
    }
}
