//! Who may call what. Sits outside of routing and denies by default: a path
//! that is not on the public list needs a credential before anything else
//! about the request is looked at, so a new route cannot be left open.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use auth_min::{BearerToken, Fingerprint, TokenDigest};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, CONNECTION};
use http::{HeaderMap, HeaderValue};
use input_validation::{NodeName, WorkerId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::key::RouteGroup;
use rbee_tls::PeerCertificate;
use tokio::time::Instant;

use crate::audit;
use crate::error::ApiError;
use crate::grant::Grant;
use crate::metrics::Metrics;
use crate::server::RemoteAddress;
use crate::throttle::Refusals;

/// The paths that answer without a credential, on every daemon.
pub(crate) const PUBLIC_PATHS: [&str; 3] = ["/health", "/livez", "/readyz"];

/// Whose credential a request showed.
#[derive(Debug, Clone)]
pub enum Principal {
    /// The one whose cluster it is; holds the client token and may do all that clients can.
    Client,
    /// A person or program that may do what its key or signed token grants.
    Key(Arc<Grant>),
    /// The program one step up or down the chain: queen to hive, hive to queen, hive to worker.
    Peer,
    /// The hive of one machine that was paired, shown by its own certificate and token; speaks for no other machine.
    Hive(NodeName),
    /// A machine that shows the one-time code for becoming the hive of this name.
    Applicant(NodeName),
    /// One worker that calls its hive, and no other worker.
    Worker(WorkerId),
}

/// What a route asks of its caller. Every route names one; nothing is open by
/// being left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing; only for the paths on the public list.
    Public,
    /// A client of whatever scope: the route shows each one only its own.
    Own,
    /// A client that may ask for tokens.
    Inference,
    /// A client that may list models.
    Models,
    /// A client that may look at the cluster.
    Status,
    /// A client that may change the cluster.
    Admin,
    /// The neighbouring program; the handler checks that a paired hive speaks for itself.
    Peer,
    /// A machine with a one-time code; the handler checks that it uses it for itself.
    Applicant,
    /// Workers; the handler checks that the worker speaks for itself.
    Worker,
}

impl Access {
    /// Returns the scope that a client needs; `None` where scopes do not decide.
    const fn group(self) -> Option<RouteGroup> {
        match self {
            Self::Inference => Some(RouteGroup::Inference),
            Self::Models => Some(RouteGroup::Models),
            Self::Status => Some(RouteGroup::Status),
            Self::Admin => Some(RouteGroup::Admin),
            Self::Public | Self::Own | Self::Peer | Self::Applicant | Self::Worker => None,
        }
    }

    const fn is_for_clients(self) -> bool {
        matches!(self, Self::Own) || self.group().is_some()
    }

    /// Answers with what the caller lacks, where it may not call.
    fn refusal(self, principal: Option<&Principal>) -> Option<ApiError> {
        let is_allowed = match principal {
            None => self == Self::Public,
            Some(Principal::Client) => self == Self::Public || self.is_for_clients(),
            Some(Principal::Peer | Principal::Hive(_)) => matches!(self, Self::Public | Self::Peer),
            Some(Principal::Applicant(_)) => matches!(self, Self::Public | Self::Applicant),
            Some(Principal::Worker(_)) => matches!(self, Self::Public | Self::Worker),
            Some(Principal::Key(grant)) => match self.group() {
                Some(group) if !grant.opens(group) => return Some(out_of_scope(grant, group)),
                Some(_) => true,
                None => matches!(self, Self::Public | Self::Own),
            },
        };
        let message = "this credential does not allow this request";
        (!is_allowed).then(|| ApiError::new(ErrorCode::Forbidden, message))
    }
}

fn out_of_scope(grant: &Grant, needed: RouteGroup) -> ApiError {
    let granted: Vec<&str> = grant.routes.iter().map(|group| group.as_str()).collect();
    let message = format!(
        "this key does not open this route: it needs the scope {needed} and has {}",
        if granted.is_empty() { "none".to_owned() } else { granted.join(", ") }
    );
    let figures = serde_json::json!({ "needed": needed, "granted": granted });
    ErrorDetail::new(ErrorCode::Forbidden, message).with_details(figures).into()
}

/// Answers whose credential a token is, shown by who holds the certificate of a
/// program of the cluster, or none. Gets the token itself, since a signed one has
/// to be read; a token of ours is compared by its digest alone.
pub type Authenticator =
    Arc<dyn Fn(&BearerToken<'_>, Option<&PeerCertificate>) -> Option<Principal> + Send + Sync>;

/// What decides whether a credential is needed and good.
pub(crate) struct Gate {
    pub(crate) authenticator: Authenticator,
    /// Who a caller is without a good credential; nobody, unless it is configured.
    pub(crate) anonymous: Option<Principal>,
    pub(crate) refusals: Refusals,
    pub(crate) metrics: Metrics,
}

/// Why a credential was refused.
struct Refused {
    reason: String,
    /// The word in the metrics.
    label: &'static str,
    fingerprint: Option<Fingerprint>,
}

/// The layer that asks for the credential, and leaves behind whose it is and
/// its fingerprint.
pub(crate) async fn authenticate(
    State(gate): State<Arc<Gate>>,
    mut request: Request,
    next: Next,
) -> Response {
    if PUBLIC_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match (checked(&gate.authenticator, &request), &gate.anonymous) {
        (Ok((principal, fingerprint)), _) => {
            request.extensions_mut().insert(principal);
            request.extensions_mut().insert(fingerprint);
            audit::handle(request, next).await
        }
        (Err(_), Some(anonymous)) => {
            request.extensions_mut().insert(anonymous.clone());
            // One and the same for all: who could choose would gain turns by many names.
            request.extensions_mut().insert(TokenDigest::of("").fingerprint());
            audit::handle(request, next).await
        }
        (Err(refused), None) => {
            let remote = request.extensions().get::<RemoteAddress>();
            let source = remote.map_or(Ipv4Addr::UNSPECIFIED.into(), |remote| remote.0.ip());
            audit::refused(&request, refused.fingerprint, &refused.reason);
            gate.refuse(source, &refused)
        }
    }
}

/// Returns whose credential a request shows.
fn checked(
    authenticator: &Authenticator,
    request: &Request,
) -> Result<(Principal, Fingerprint), Refused> {
    let token = presented(request.headers())?;
    let certificate = request.extensions().get::<PeerCertificate>();
    let fingerprint = token.digest().fingerprint();
    let unknown = || Refused {
        reason: "the token is not known here, has ended or was taken back".to_owned(),
        label: "unknown",
        fingerprint: Some(fingerprint),
    };
    authenticator(&token, certificate).map(|principal| (principal, fingerprint)).ok_or_else(unknown)
}

/// Returns the one bearer token that `headers` hold.
fn presented(headers: &HeaderMap) -> Result<BearerToken<'_>, Refused> {
    let refused = |reason: String, label| Refused { reason, label, fingerprint: None };
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let header =
        values.next().ok_or_else(|| refused("no credential was sent".to_owned(), "missing"))?;
    if values.next().is_some() {
        return Err(refused("more than one credential was sent".to_owned(), "malformed"));
    }
    BearerToken::parse(header.as_bytes()).map_err(|error| refused(error.to_string(), "malformed"))
}

impl Gate {
    /// Answers a refusal: with the reason, and without it where there were too many.
    fn refuse(&self, source: IpAddr, refused: &Refused) -> Response {
        let Refused { reason, label, fingerprint } = refused;
        self.metrics.auth_failed(label);
        let now = Instant::now();
        if let Some(suppressed) = self.refusals.line(now) {
            let token = fingerprint.map(tracing::field::display);
            tracing::warn!(%source, token, reason, suppressed, "credential refused");
        }
        match self.refusals.count(source, now) {
            Ok(()) => unauthorized(reason).into_response(),
            Err(wait) => {
                let message = "too many requests with a wrong credential came from this address";
                let error = ApiError::new(ErrorCode::TooManyFailures, message);
                let mut response = error.with_retry_after(wait).into_response();
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        }
    }
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
    let mut response = match access.refusal(request.extensions().get::<Principal>()) {
        None => next.run(request).await,
        Some(refusal) => {
            audit::denied(&request);
            refusal.into_response()
        }
    };
    if let Some(path) = matched {
        response.extensions_mut().insert(path);
    }
    response
}
