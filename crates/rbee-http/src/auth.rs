//! Who may call what. Sits outside of routing and denies by default: a path
//! that is not on the public list needs a credential before anything else
//! about the request is looked at, so a new route cannot be left open.

use std::sync::Arc;

use auth_min::BearerToken;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use input_validation::WorkerId;
use rbee_api::error::ErrorCode;

use crate::error::ApiError;

/// The paths that answer without a credential, on every daemon.
pub(crate) const PUBLIC_PATHS: [&str; 3] = ["/health", "/livez", "/readyz"];

/// Whose credential a request showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A person or program that uses the cluster; holds the client token.
    Client,
    /// The program one step up or down the chain: queen to hive, hive to queen, hive to worker.
    Peer,
    /// One worker that calls its hive, and no other worker.
    Worker(WorkerId),
}

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody; only for the paths on the public list.
    Public,
    /// Clients of the cluster.
    Client,
    /// The neighbouring program.
    Peer,
    /// Clients and the neighbouring program.
    ClientOrPeer,
    /// Workers; the handler checks that the worker speaks for itself.
    Worker,
}

impl Access {
    fn allows(self, principal: Option<&Principal>) -> bool {
        match (self, principal) {
            (Self::Public, _)
            | (Self::Client | Self::ClientOrPeer, Some(Principal::Client))
            | (Self::Peer | Self::ClientOrPeer, Some(Principal::Peer))
            | (Self::Worker, Some(Principal::Worker(_))) => true,
            (Self::Client, Some(Principal::Peer | Principal::Worker(_)) | None)
            | (Self::Peer, Some(Principal::Client | Principal::Worker(_)) | None)
            | (Self::ClientOrPeer, Some(Principal::Worker(_)) | None)
            | (Self::Worker, Some(Principal::Client | Principal::Peer) | None) => false,
        }
    }
}

/// Answers whose credential a token is. Gets the token itself, since a signed
/// one has to be read; a token of ours is compared by its digest alone.
pub type Authenticator = Arc<dyn Fn(&BearerToken<'_>) -> Option<Principal> + Send + Sync>;

/// The layer that asks for the credential, and leaves behind whose it is and
/// its fingerprint.
pub(crate) async fn authenticate(
    State(authenticator): State<Authenticator>,
    mut request: Request,
    next: Next,
) -> Response {
    if PUBLIC_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let token = match presented(request.headers()) {
        Ok(token) => token,
        Err(reason) => {
            tracing::info!(reason, "credential refused");
            return unauthorized(&reason).into_response();
        }
    };
    let fingerprint = token.digest().fingerprint();
    match authenticator(&token) {
        Some(principal) => {
            request.extensions_mut().insert(principal);
            request.extensions_mut().insert(fingerprint);
            next.run(request).await
        }
        None => {
            tracing::info!(token = %fingerprint, "credential refused");
            unauthorized("the token is not known here").into_response()
        }
    }
}

/// Returns the one bearer token that `headers` hold.
fn presented(headers: &HeaderMap) -> Result<BearerToken<'_>, String> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let header = values.next().ok_or("no credential was sent")?;
    if values.next().is_some() {
        return Err("more than one credential was sent".to_owned());
    }
    BearerToken::parse(header.as_bytes()).map_err(|error| error.to_string())
}

fn unauthorized(reason: &str) -> ApiError {
    let message = format!(
        "{reason}; send `Authorization: Bearer TOKEN` (`rbee env --shell` prints the one for the queen)"
    );
    ApiError::new(ErrorCode::Unauthorized, message)
}

/// The layer around one route: lets in whom `access` names, and leaves the
/// route's template in the response for the metrics.
pub(crate) async fn authorise(
    State(access): State<Access>,
    request: Request,
    next: Next,
) -> Response {
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let mut response = if access.allows(request.extensions().get::<Principal>()) {
        next.run(request).await
    } else {
        ApiError::new(ErrorCode::Forbidden, "this credential does not allow this request")
            .into_response()
    };
    if let Some(path) = matched {
        response.extensions_mut().insert(path);
    }
    response
}
