//! Takes apart what a program sends beside a client's request: what the client
//! has of the reply already, and whose computed prompts it may use. For hives
//! and workers; never for what comes from a client.

use bytes::Bytes;
use http::HeaderMap;
use input_validation::Sha256Hex;
use rbee_api::continuation::Delivered;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::headers::{CACHE_SCOPE, CLIENT_BYTES};

use crate::error::ApiError;

/// A body and what is to become of its reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardedBody {
    /// The client's body, as it came.
    pub client: Bytes,
    /// What follows it: empty where a reply begins.
    pub delivered: Bytes,
    /// Whether marks are asked for.
    pub is_marked: bool,
}

impl ForwardedBody {
    /// Splits `body` as its headers say.
    ///
    /// # Errors
    /// `validation_failed` for a header that does not fit the body.
    pub fn split(headers: &HeaderMap, body: Bytes) -> Result<Self, ApiError> {
        let Some(value) = headers.get(CLIENT_BYTES) else {
            return Ok(Self { client: body, delivered: Bytes::new(), is_marked: false });
        };
        let client_bytes: Option<usize> = value.to_str().ok().and_then(|text| text.parse().ok());
        match client_bytes.filter(|bytes| *bytes <= body.len()) {
            Some(bytes) => {
                let mut client = body;
                let delivered = client.split_off(bytes);
                Ok(Self { client, delivered, is_marked: true })
            }
            None => {
                let message = format!("{CLIENT_BYTES} must be a number of bytes of the body");
                Err(wrong(message))
            }
        }
    }

    /// Reads what the client has of the reply; `None` where a reply begins.
    ///
    /// # Errors
    /// `validation_failed` for what no queen wrote.
    pub fn delivered(&self) -> Result<Option<Delivered>, ApiError> {
        if self.delivered.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&self.delivered).map(Some).map_err(|error| {
            wrong(format!("what follows the client's body is not what a client has: {error}"))
        })
    }
}

/// Reads whose computed prompts a request may use; `None` where the program
/// that sent it says nothing of it.
///
/// # Errors
/// `validation_failed` for what no queen wrote.
pub fn cache_scope(headers: &HeaderMap) -> Result<Option<Sha256Hex>, ApiError> {
    let Some(value) = headers.get(CACHE_SCOPE) else { return Ok(None) };
    let scope = value.to_str().ok().and_then(|text| text.parse().ok());
    scope.map(Some).ok_or_else(|| {
        let message = format!("{CACHE_SCOPE} must be 64 hex digits");
        ErrorDetail::new(ErrorCode::ValidationFailed, message).with_param(CACHE_SCOPE).into()
    })
}

fn wrong(message: String) -> ApiError {
    ErrorDetail::new(ErrorCode::ValidationFailed, message).with_param(CLIENT_BYTES).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(header: Option<&str>, body: &'static str) -> Result<ForwardedBody, ApiError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(CLIENT_BYTES, value.parse().unwrap());
        }
        ForwardedBody::split(&headers, Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn a_scope_is_a_digest_or_refused() {
        let read = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(CACHE_SCOPE, value.parse().unwrap());
            }
            cache_scope(&headers)
        };
        let digest = "0f".repeat(32);
        assert_eq!(read(None).unwrap(), None);
        assert_eq!(read(Some(&digest)).unwrap().unwrap().as_str(), digest);
        for bad in ["", "0f", "alice", &"0g".repeat(32)] {
            let error = read(Some(bad)).unwrap_err();
            assert_eq!(error.code(), ErrorCode::ValidationFailed, "{bad}");
            assert_eq!(error.detail().param.as_deref(), Some(CACHE_SCOPE));
        }
    }

    #[test]
    fn a_body_is_taken_apart_as_its_header_says() {
        for (header, client, delivered, is_marked) in [
            (None, "{}abc", "", false),
            (Some("5"), "{}abc", "", true),
            (Some("2"), "{}", "abc", true),
            (Some("0"), "", "{}abc", true),
        ] {
            let split = split(header, "{}abc").unwrap();
            assert_eq!(split.client, client, "{header:?}");
            assert_eq!(
                (split.delivered.as_ref(), split.is_marked),
                (delivered.as_bytes(), is_marked)
            );
        }
        for header in ["6", "-1", "x", ""] {
            let error = split(Some(header), "{}abc").unwrap_err();
            assert_eq!(error.code(), ErrorCode::ValidationFailed, "{header}");
            assert_eq!(error.detail().param.as_deref(), Some(CLIENT_BYTES));
        }
        assert!(split(Some("2"), "{}abc").unwrap().delivered().is_err());
        assert_eq!(split(Some("2"), "{}").unwrap().delivered().unwrap(), None);
    }
}
