//! A route table that can be read back: what is served is what is listed.

use std::sync::Arc;

use audit_logging::Auditor;
use axum::Extension;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodFilter, on};
use http::{Method, StatusCode};
use rbee_api::error::ErrorCode;
use rbee_api::limits::BODY_BYTES_MAX;

use crate::auth::{Access, Authenticator, Gate, PUBLIC_PATHS, Principal, authenticate, authorise};
use crate::error::ApiError;
use crate::host::{AllowedHosts, check_host};
use crate::json::only_json_is_posted;
use crate::metrics::Metrics;
use crate::request::outermost;
use crate::throttle::Refusals;

/// One line of a route table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RouteSpec {
    /// The method.
    method: Method,
    /// The path template, such as `/api/v1/workers/{id}`.
    path: &'static str,
    /// Who may call it.
    access: Access,
}

/// Collects the routes of one daemon.
#[derive(Debug)]
pub struct RouteTable<S> {
    router: Router<S>,
    specs: Vec<RouteSpec>,
    hosts: AllowedHosts,
    anonymous: Option<Principal>,
    auditor: Auditor,
}

impl<S: Clone + Send + Sync + 'static> Default for RouteTable<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Clone + Send + Sync + 'static> RouteTable<S> {
    /// Starts an empty table.
    #[must_use]
    pub fn new() -> Self {
        Self {
            router: Router::new(),
            specs: Vec::new(),
            hosts: AllowedHosts::default(),
            anonymous: None,
            auditor: Auditor::off(),
        }
    }

    /// Adds names by which the daemon may be called.
    #[must_use]
    pub fn allow_hosts(self, hosts: AllowedHosts) -> Self {
        Self { hosts, ..self }
    }

    /// Takes a caller without a good credential for `principal`. For a listener that only this
    /// machine can reach, and only where that is configured.
    #[must_use]
    pub fn without_credentials(self, principal: Principal) -> Self {
        Self { anonymous: Some(principal), ..self }
    }

    /// Adds a `GET` route.
    #[must_use]
    pub fn get<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.add(Method::GET, MethodFilter::GET, path, access, handler)
    }

    /// Adds a `POST` route.
    #[must_use]
    pub fn post<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.add(Method::POST, MethodFilter::POST, path, access, handler)
    }

    /// Adds a `DELETE` route.
    #[must_use]
    pub fn delete<H, T>(self, path: &'static str, access: Access, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        self.add(Method::DELETE, MethodFilter::DELETE, path, access, handler)
    }

    fn add<H, T>(
        mut self,
        method: Method,
        filter: MethodFilter,
        path: &'static str,
        access: Access,
        handler: H,
    ) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        debug_assert_eq!(access == Access::Public, PUBLIC_PATHS.contains(&path));
        let route = on(filter, handler);
        let route = match method {
            Method::POST => route.layer(from_fn(only_json_is_posted)),
            _ => route,
        };
        let route = route.layer(from_fn_with_state(access, authorise));
        self.router = self.router.route(path, route);
        self.specs.push(RouteSpec { method, path, access });
        self
    }

    /// Returns the table as lines of `METHOD path access`, for `--print-routes`.
    #[must_use]
    pub fn listing(&self) -> String {
        self.specs
            .iter()
            .map(|spec| format!("{} {} {:?}\n", spec.method, spec.path, spec.access).to_lowercase())
            .collect()
    }

    /// Has credentials that are refused, and what the handlers do, written down.
    #[must_use]
    pub fn audited(self, auditor: Auditor) -> Self {
        Self { auditor, ..self }
    }

    /// Puts the layers around the routes. From the outside in: request id, span, panic and
    /// metrics; by which name; credential; media type; body limit; route; who may call it.
    pub fn build(self, state: S, authenticator: Authenticator, metrics: Metrics) -> Router {
        let gate = Arc::new(Gate {
            authenticator,
            anonymous: self.anonymous,
            refusals: Refusals::new(),
            metrics: metrics.clone(),
        });
        self.router
            .fallback(|| async { ApiError::new(ErrorCode::RouteNotFound, "no such path") })
            .method_not_allowed_fallback(|| async {
                ApiError::new(ErrorCode::MethodNotAllowed, "this path does not take this method")
            })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(from_fn(only_error_bodies))
            .layer(from_fn_with_state(gate, authenticate))
            .layer(from_fn_with_state(self.hosts, check_host))
            .layer(Extension(self.auditor))
            .layer(from_fn_with_state(metrics, outermost))
            .with_state(state)
    }
}

/// Gives a failure that a library answered its error body, so that no reply of
/// ours is without one.
async fn only_error_bodies(
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    use axum::response::IntoResponse;
    let response = next.run(request).await;
    let status = response.status();
    if status.is_success() || response.extensions().get::<ErrorCode>().is_some() {
        return response;
    }
    let code = match status {
        StatusCode::NOT_FOUND => ErrorCode::RouteNotFound,
        StatusCode::METHOD_NOT_ALLOWED => ErrorCode::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::PayloadTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ErrorCode::UnsupportedMediaType,
        status if status.is_client_error() => ErrorCode::ValidationFailed,
        _ => ErrorCode::InternalError,
    };
    ApiError::new(code, "the request could not be read").into_response()
}
