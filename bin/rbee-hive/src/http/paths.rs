//! Names in paths, parsed into their types before a handler sees them.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path};
use http::request::Parts;
use input_validation::{ModelRef, ValidationError, WorkerId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::ApiError;

/// The one name that a path holds.
#[derive(Debug)]
pub(super) struct Named<T>(pub(super) T);

/// A name that can stand in a path.
pub(super) trait PathName: FromStr<Err = ValidationError> {
    /// What the path's template calls it.
    const PARAM: &'static str;
}

impl PathName for WorkerId {
    const PARAM: &'static str = "id";
}

impl PathName for ModelRef {
    const PARAM: &'static str = "reference";
}

impl<S: Send + Sync, T: PathName> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let refuse = |reason: String| -> ApiError {
            ErrorDetail::new(ErrorCode::ValidationFailed, reason).with_param(T::PARAM).into()
        };
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| refuse("the path is not UTF-8 text".to_owned()))?;
        text.parse().map(Self).map_err(|error: ValidationError| refuse(error.to_string()))
    }
}
