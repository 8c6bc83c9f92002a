//! Who makes a request, as the audit log names them, for as long as the request is handled; and what the layers write
//! down themselves: credentials that are good, wrong, or not enough. The handlers write down what they do.

use audit_logging::{Actor, ActorKind, Auditor, Event, Kind, Outcome, SubjectKind, Trail};
use auth_min::Fingerprint;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use input_validation::RequestId;
use rbee_api::error::ErrorCode;

use crate::auth::Principal;
use crate::error::ApiError;
use crate::server::RemoteAddress;

tokio::task_local! {
    static CALLER: Caller;
}

/// Who makes the request that is being handled, and the log that tells of it.
#[derive(Debug, Clone)]
pub struct Caller {
    auditor: Auditor,
    actor: Actor,
    request_id: Option<RequestId>,
}

impl Caller {
    /// Returns who makes the request that this task handles; outside of one, and without a log, one that writes nothing.
    #[must_use]
    pub fn current() -> Self {
        let nobody = || Self { auditor: Auditor::off(), actor: Actor::SYSTEM, request_id: None };
        CALLER.try_with(Clone::clone).unwrap_or_else(|_outside| nobody())
    }

    fn of(request: &Request, auditor: Auditor) -> Self {
        let extensions = request.extensions();
        let kind = match extensions.get::<Principal>() {
            Some(Principal::Client) => ActorKind::Client,
            Some(Principal::Key(_)) => ActorKind::Key,
            Some(Principal::Peer | Principal::Hive(_) | Principal::Applicant(_)) => ActorKind::Peer,
            Some(Principal::Worker(_)) => ActorKind::Worker,
            None => ActorKind::Unknown,
        };
        let key = extensions.get::<Fingerprint>().copied();
        let address = extensions.get::<RemoteAddress>().map(|address| address.0);
        let request_id = extensions.get::<RequestId>().cloned();
        Self { auditor, actor: Actor { kind, key, address }, request_id }
    }

    /// Writes down what the caller is about to do, and returns once that is on the disk.
    ///
    /// # Errors
    /// `audit_unavailable`: it must not be done.
    pub async fn record(&self, event: Event) -> Result<(), ApiError> {
        self.auditor.record(self.sign(event)).await.map_err(|error| {
            tracing::error!(code = %ErrorCode::AuditUnavailable, error = %error, "refused, since it cannot be written down");
            let message = "this cannot be written into the audit log, so it is not done; see the room on the disk of that machine";
            ApiError::new(ErrorCode::AuditUnavailable, message)
        })
    }

    /// Writes down what the caller does or did, without waiting.
    pub fn note(&self, event: Event) {
        self.auditor.note(self.sign(event));
    }

    /// Begins the entries of a request for inference.
    #[must_use]
    pub fn trail(&self, request: &RequestId, operation: &'static str, model: &str) -> Trail {
        Trail::begin(&self.auditor, self.actor, request, operation, model)
    }

    fn sign(&self, event: Event) -> Event {
        let event = event.by(self.actor);
        match &self.request_id {
            Some(id) => event.request(id.clone()),
            None => event,
        }
    }
}

/// Handles a request whose credential is good, under its caller's name.
pub(crate) async fn handle(request: Request, next: Next) -> Response {
    let Some(auditor) = request.extensions().get::<Auditor>().cloned() else {
        return next.run(request).await;
    };
    let caller = Caller::of(&request, auditor);
    caller.auditor.note_auth_success(|| {
        caller
            .sign(Event::new(Kind::AuthSuccess, Outcome::Success))
            .on(SubjectKind::Route, route(&request))
    });
    CALLER.scope(caller, next.run(request)).await
}

/// Writes down a credential that is not good. `key` is its fingerprint, where there is one.
pub(crate) fn refused(request: &Request, key: Option<Fingerprint>, reason: &str) {
    let Some(auditor) = request.extensions().get::<Auditor>().cloned() else { return };
    let caller = Caller::of(request, auditor);
    let actor = Actor { key, ..caller.actor };
    let event = caller.sign(Event::new(Kind::AuthFailure, Outcome::Denied)).by(actor);
    let event = event.on(SubjectKind::Route, route(request)).with("reason", reason);
    caller.auditor.note_auth_failure(actor, event);
}

/// Writes down that a good credential does not allow a request.
pub(crate) fn denied(request: &Request) {
    let caller = Caller::current();
    let event = caller.sign(Event::new(Kind::AuthDenied, Outcome::Denied));
    let event = event.on(SubjectKind::Route, route(request));
    caller.auditor.note_auth_failure(caller.actor, event);
}

/// The path without its query, which may hold anything.
fn route(request: &Request) -> String {
    format!("{} {}", request.method(), request.uri().path())
}
