//! The one authenticated client for the next hop: queen to hive, hive to
//! worker, worker and hive back, keeper to queen. Every call has a deadline,
//! carries it on, and never follows a redirect with its credential.

use std::time::Duration;

use bytes::Bytes;
use deadline_propagation::Deadline;
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use input_validation::{RequestId, Sha256Hex};
use rbee_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rbee_api::headers;
use rbee_tls::{TlsError, Trust};
use reqwest::{RequestBuilder, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::credential::Credential;
use crate::request::current_request_id;
use crate::vanished::notice_in;

/// How long a connection may take to be made; everything here is near.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept for the next call.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// Largest reply that is passed on in one piece: the embeddings of a full request, written as JSON.
const REPLY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest reply that one of our programs reads for itself: a listing of thousands, or an error.
const OWN_REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Why a call to the next hop failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection, or it broke before the reply's head.
    #[error("cannot reach it")]
    Unreachable(#[source] reqwest::Error),
    /// The deadline came first.
    #[error("no answer in time")]
    TimedOut,
    /// It answered with an error of ours.
    #[error("it answered: {0}")]
    Refused(Box<ErrorDetail>),
    /// It answered with something that is not ours.
    #[error("it answered with status {status}, which is not an answer of rbee")]
    Foreign {
        /// The HTTP status.
        status: StatusCode,
    },
    /// The client could not be set up.
    #[error("cannot set up the HTTP client")]
    Setup(#[source] reqwest::Error),
    /// The certificates by which the other end is known cannot be used.
    #[error("cannot set up TLS for the HTTP client")]
    Tls(#[source] TlsError),
}

impl CallError {
    /// Says whether the call came to whoever was called, as far as is known.
    #[must_use]
    pub fn was_sent(&self) -> bool {
        match self {
            Self::Unreachable(error) => !error.is_connect(),
            Self::Setup(_) | Self::Tls(_) => false,
            Self::TimedOut | Self::Refused(_) | Self::Foreign { .. } => true,
        }
    }

    /// Returns the error to hand on: the next hop's own, or `unreachable` where it gave none.
    #[must_use]
    pub fn into_detail(self, unreachable: ErrorCode, message: &str) -> ErrorDetail {
        match self {
            Self::Refused(detail) => *detail,
            Self::TimedOut => {
                ErrorDetail::new(ErrorCode::DeadlineExceeded, "the time for this request is over")
            }
            Self::Unreachable(_) | Self::Foreign { .. } | Self::Setup(_) | Self::Tls(_) => {
                ErrorDetail::new(unreachable, message)
            }
        }
    }
}

/// Calls one program at one address with one credential.
#[derive(Debug, Clone)]
pub struct HopClient {
    http: reqwest::Client,
    base_url: String,
    token: Credential,
    /// Whose computed prompts what is forwarded may use.
    cache_scope: Option<Sha256Hex>,
}

impl HopClient {
    /// Calls in plain HTTP alone. `base_url` has no trailing slash, such as `http://127.0.0.1:9200`.
    ///
    /// # Errors
    /// Fails if the HTTP client cannot be set up.
    pub fn new(base_url: &str, token: impl Into<Credential>) -> Result<Self, CallError> {
        Self::trusting(base_url, token, &Trust::nobody())
    }

    /// As [`Self::new`], and calls an `https` URL where `trust` believes who answers.
    ///
    /// # Errors
    /// Fails if the HTTP client or the certificates cannot be set up.
    pub fn trusting(
        base_url: &str,
        token: impl Into<Credential>,
        trust: &Trust,
    ) -> Result<Self, CallError> {
        let http = connections(trust)?;
        let base_url = base_url.trim_end_matches('/').to_owned();
        Ok(Self { http, base_url, token: token.into(), cache_scope: None })
    }

    /// Returns a client of the same program at another address, with the same credential.
    #[must_use]
    pub fn moved_to(&self, base_url: &str) -> Self {
        Self { base_url: base_url.trim_end_matches('/').to_owned(), ..self.clone() }
    }

    /// Returns a client that forwards requests with this cache scope; `None` names no scope.
    #[must_use]
    pub fn within(&self, cache_scope: Option<Sha256Hex>) -> Self {
        Self { cache_scope, ..self.clone() }
    }

    /// Returns the address.
    #[must_use]
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Gets `path` and parses the reply.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Deadline,
    ) -> Result<T, CallError> {
        self.exchange(self.request(Method::GET, path, deadline), deadline).await
    }

    /// Posts `body` as JSON to `path` and parses the reply.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        deadline: Deadline,
    ) -> Result<T, CallError> {
        self.exchange(self.request(Method::POST, path, deadline).json(body), deadline).await
    }

    /// Deletes `path` and parses the reply.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Deadline,
    ) -> Result<T, CallError> {
        self.exchange(self.request(Method::DELETE, path, deadline), deadline).await
    }

    /// Posts a client's JSON body on as it is and returns the successful reply
    /// with its body unread.
    ///
    /// # Errors
    /// See [`CallError`]; a reply that is not a success is one.
    pub async fn forward(
        &self,
        path: &str,
        body: Bytes,
        id: &RequestId,
        deadline: Deadline,
    ) -> Result<Response, CallError> {
        self.open(self.forwarding(path, body, id, deadline), deadline).await
    }

    /// As [`Self::forward`], and asks that the reply's stream be marked. The
    /// first `client_bytes` of the body are the client's; what follows them is
    /// what the client has of the reply already.
    ///
    /// # Errors
    /// See [`CallError`]; a reply that is not a success is one.
    pub async fn forward_marked(
        &self,
        path: &str,
        body: Bytes,
        client_bytes: usize,
        id: &RequestId,
        deadline: Deadline,
    ) -> Result<Response, CallError> {
        let request = self.forwarding(path, body, id, deadline);
        self.open(request.header(headers::CLIENT_BYTES, client_bytes), deadline).await
    }

    fn forwarding(
        &self,
        path: &str,
        body: Bytes,
        id: &RequestId,
        deadline: Deadline,
    ) -> RequestBuilder {
        let request = self
            .request_for(Some(id), Method::POST, path, deadline)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        match &self.cache_scope {
            Some(scope) => request.header(headers::CACHE_SCOPE, scope.as_str()),
            None => request,
        }
    }

    /// Gets `path` and returns the successful reply with its body unread.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get_stream(&self, path: &str, deadline: Deadline) -> Result<Response, CallError> {
        self.open(self.request(Method::GET, path, deadline), deadline).await
    }

    /// Posts `body` and returns the successful reply with its body unread.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post_stream<B: Serialize + Sync>(
        &self,
        path: &str,
        body: &B,
        deadline: Deadline,
    ) -> Result<Response, CallError> {
        self.open(self.request(Method::POST, path, deadline).json(body), deadline).await
    }

    /// Prepares a call; what is asked on behalf of a request goes under that request's id.
    fn request(&self, method: Method, path: &str, deadline: Deadline) -> RequestBuilder {
        self.request_for(current_request_id().as_ref(), method, path, deadline)
    }

    fn request_for(
        &self,
        id: Option<&RequestId>,
        method: Method,
        path: &str,
        deadline: Deadline,
    ) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}{path}", self.base_url))
            .header(headers::REQUEST_TIMEOUT_MS, deadline.header_value());
        match id {
            Some(id) => request.header(headers::REQUEST_ID, id.as_ref()),
            None => request,
        }
    }

    /// Sends a call with the token, and once more with the one before it to who
    /// has not heard of the new one yet: a refused credential has done nothing.
    async fn open(
        &self,
        request: RequestBuilder,
        deadline: Deadline,
    ) -> Result<Response, CallError> {
        let former = self.token.former();
        let again = former.and_then(|former| Some((former, request.try_clone()?)));
        let token = self.token.current();
        let sent = send(request.bearer_auth(token.expose()), deadline).await;
        match (sent, again) {
            (Err(CallError::Refused(detail)), Some((former, request)))
                if detail.code == ErrorCode::Unauthorized =>
            {
                send(request.bearer_auth(former.expose()), deadline).await
            }
            (sent, _) => sent,
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        deadline: Deadline,
    ) -> Result<T, CallError> {
        let response = self.open(request, deadline).await?;
        let status = response.status();
        let body = read(response, deadline, OWN_REPLY_BYTES_MAX).await?;
        serde_json::from_slice(&body).map_err(|error| {
            tracing::warn!(error = %error, "a reply could not be parsed");
            CallError::Foreign { status }
        })
    }
}

/// Sends a call, and sorts refusals from replies.
async fn send(request: RequestBuilder, deadline: Deadline) -> Result<Response, CallError> {
    let sent = tokio::time::timeout_at(deadline.instant(), request.send()).await;
    let response = sent.map_err(|_| CallError::TimedOut)?.map_err(CallError::Unreachable)?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = read(response, deadline, OWN_REPLY_BYTES_MAX).await?;
    Err(match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(body) => CallError::Refused(Box::new(body.error)),
        Err(_) => CallError::Foreign { status },
    })
}

/// Sets up what makes and keeps connections, the same for every client.
pub(crate) fn connections(trust: &Trust) -> Result<reqwest::Client, CallError> {
    let tls = trust.client_config().map_err(CallError::Tls)?;
    notice_in(reqwest::Client::builder())
        .tls_backend_preconfigured(tls)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .tcp_nodelay(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(CallError::Setup)
}

/// Reads the body of a reply that is passed on, within the deadline and the limit on its size.
///
/// # Errors
/// See [`CallError`].
pub async fn collect(response: Response, deadline: Deadline) -> Result<Bytes, CallError> {
    read(response, deadline, REPLY_BYTES_MAX).await
}

async fn read(
    mut response: Response,
    deadline: Deadline,
    bytes_max: usize,
) -> Result<Bytes, CallError> {
    let status = response.status();
    let mut body = Vec::new();
    loop {
        let next = tokio::time::timeout_at(deadline.instant(), response.chunk()).await;
        match next.map_err(|_| CallError::TimedOut)?.map_err(CallError::Unreachable)? {
            None => return Ok(body.into()),
            Some(chunk) if body.len() + chunk.len() > bytes_max => {
                return Err(CallError::Foreign { status });
            }
            Some(chunk) => body.extend_from_slice(&chunk),
        }
    }
}
