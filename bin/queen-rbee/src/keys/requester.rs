//! Who sent a request, as far as handlers care: which models it may ask for,
//! and that its limits hold.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use input_validation::ModelRef;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::key::RouteGroup;
use rbee_api::model::ModelInfo;
use rbee_http::{ApiError, Grant, Principal};

use super::Spending;
use super::limits::Moment;
use crate::app::App;
use crate::queue::Client;

/// The client that sent a request.
#[derive(Debug, Clone)]
pub(crate) struct Requester {
    grant: Arc<Grant>,
}

impl Requester {
    /// Answers whether it may know of a model.
    pub(crate) fn may_use(&self, model: &ModelInfo) -> bool {
        let own = &self.grant.models;
        own.is_empty() || own.iter().any(|name| model.answers_to(name))
    }

    /// Lets a request for `model` in, within the scope and the limits of the requester.
    ///
    /// # Errors
    /// `model_not_found` for one that it may not know of, which is what it would
    /// be told of one that does not exist; `rate_limit_exceeded`.
    pub(crate) fn begin(&self, app: &App, model: &ModelRef) -> Result<Spending, ApiError> {
        if !self.names(app, model) {
            let message =
                format!("this key has no model {model}; GET /v1/models lists those it has");
            let detail = ErrorDetail::new(ErrorCode::ModelNotFound, message);
            return Err(detail.with_param("model").into());
        }
        app.keys.accounts().begin(&self.grant, Moment::now())
    }

    /// A model can be asked for by two names, of which the key may hold the other one.
    fn names(&self, app: &App, asked: &ModelRef) -> bool {
        let own = &self.grant.models;
        if own.is_empty() || own.contains(asked) {
            return true;
        }
        let hives = app.registry.view().hives;
        let mut known = hives.iter().flat_map(|hive| hive.snapshot.iter()).flat_map(|s| &s.models);
        known.any(|model| model.answers_to(asked) && self.may_use(model))
    }

    /// Returns whom the queue deals out turns to.
    pub(crate) fn client(&self, user: Option<&str>) -> Client {
        Client::new(self.grant.fairness(), user)
    }

    /// Returns the one name under which it may look at usage; `None` for all.
    pub(crate) fn own_usage(&self) -> Option<String> {
        (!self.grant.opens(RouteGroup::Admin)).then(|| self.grant.subject.clone())
    }
}

impl FromRequestParts<Arc<App>> for Requester {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let grant = match parts.extensions.get::<Principal>() {
            Some(Principal::Client) => Arc::clone(app.keys.client_token()),
            Some(Principal::Key(grant)) => Arc::clone(grant),
            Some(
                Principal::Peer
                | Principal::Hive(_)
                | Principal::Applicant(_)
                | Principal::Worker(_),
            )
            | None => {
                let message = "only clients can ask for this";
                return Err(ApiError::new(ErrorCode::Forbidden, message));
            }
        };
        Ok(Self { grant })
    }
}
