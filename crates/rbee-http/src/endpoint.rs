//! The client for a server that need not be ours: any that speaks OpenAI's API. Sends the key that it was given and
//! nothing of rbee's own; every status is an answer, because what an error looks like is the server's business.

use std::sync::Arc;

use bytes::Bytes;
use deadline_propagation::Deadline;
use http::header::CONTENT_TYPE;
use rbee_tls::Trust;
use reqwest::Response;
use secrets_management::Secret;

use crate::client::{CallError, connections};

/// Calls one OpenAI endpoint, with a key where it wants one.
#[derive(Debug, Clone)]
pub struct EndpointClient {
    http: reqwest::Client,
    base_url: String,
    key: Option<Arc<Secret>>,
}

impl EndpointClient {
    /// `base_url` is what stands before `/v1`, without a slash at its end, such as `http://127.0.0.1:8080`. An `https`
    /// URL is called where `trust` believes who answers.
    ///
    /// # Errors
    /// Fails if the HTTP client or the certificates cannot be set up.
    pub fn new(base_url: &str, key: Option<Arc<Secret>>, trust: &Trust) -> Result<Self, CallError> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        Ok(Self { http: connections(trust)?, base_url, key })
    }

    /// Returns the address.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Posts a JSON body to `path` and returns the reply, whatever its status, with its body unread. Cancel safe:
    /// dropping the future or the reply closes the connection.
    ///
    /// # Errors
    /// [`CallError::Unreachable`] and [`CallError::TimedOut`].
    pub async fn post(
        &self,
        path: &str,
        body: Bytes,
        deadline: Deadline,
    ) -> Result<Response, CallError> {
        let mut request = self
            .http
            .post(format!("{}{path}", self.base_url))
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose());
        }
        let sent = tokio::time::timeout_at(deadline.instant(), request.send()).await;
        sent.map_err(|_elapsed| CallError::TimedOut)?.map_err(CallError::Unreachable)
    }
}
