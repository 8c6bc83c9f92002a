//! A route table that can be read back: what is served is what is listed.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodFilter, on};
use http::{Method, StatusCode};
use rbee_api::error::ErrorCode;
use rbee_api::limits::BODY_BYTES_MAX;

use crate::auth::{Access, Authenticator, PUBLIC_PATHS, authenticate, authorise};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::request::outermost;

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
        Self { router: Router::new(), specs: Vec::new() }
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
        let route = on(filter, handler).layer(from_fn_with_state(access, authorise));
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

    /// Puts the layers around the routes. From the outside in: request id,
    /// span, panic and metrics; credential; body limit; route; who may call it.
    pub fn build(self, state: S, authenticator: Authenticator, metrics: Metrics) -> Router {
        self.router
            .fallback(|| async { ApiError::new(ErrorCode::RouteNotFound, "no such path") })
            .method_not_allowed_fallback(|| async {
                ApiError::new(ErrorCode::MethodNotAllowed, "this path does not take this method")
            })
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(from_fn(only_error_bodies))
            .layer(from_fn_with_state(authenticator, authenticate))
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
