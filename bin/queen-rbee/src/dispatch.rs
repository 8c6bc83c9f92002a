//! One request from the checked body to its reply: has `search.rs` find a worker,
//! forwards to it, and tries again within the budget. Chooses nothing. Everything here
//! ends when its future is dropped, which is what happens when a client leaves.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use deadline_propagation::Deadline;
use input_validation::{ModelRef, NodeName, RequestId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelKind;
use rbee_http::{ApiError, Caller, HopClient, Relay, relay_events};
use tokio::time::{Instant, timeout_at};

use crate::app::{App, draining, out_of_time};
use crate::attempt::{Answer, BROKE_OFF, Events, attempt, no_answer};
use crate::cluster::{Cluster, Reach};
use crate::continuing;
use crate::keys::Spending;
use crate::queue::{Arrival, Client};
use crate::running::{Ends, Running, TAKEN_BACK, Watched};
use crate::search::{Retry, Search, find_turn, put_back};
use crate::turns::Turn;

/// Waiting for the first report ends by time as well as by change.
const FIRST_REPORT_LOOK: Duration = Duration::from_secs(1);

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Chat,
    Completion,
    Embeddings,
    Rerank,
}

impl Operation {
    /// The kind of model that can do it.
    pub(crate) const fn asks(self) -> ModelKind {
        match self {
            Self::Chat | Self::Completion => ModelKind::Generate,
            Self::Embeddings => ModelKind::Embed,
            Self::Rerank => ModelKind::Rerank,
        }
    }

    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Chat => "v1/chat/completions",
            Self::Completion => "v1/completions",
            Self::Embeddings => "v1/embeddings",
            Self::Rerank => "v1/rerank",
        }
    }

    /// The name OpenTelemetry has for it; for ranking it has none yet.
    const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
        }
    }
}

/// A checked request for a model.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: RequestId,
    pub(crate) operation: Operation,
    pub(crate) model: ModelRef,
    /// The client's body, as it came.
    pub(crate) body: Bytes,
    pub(crate) streams: bool,
    /// Slots that it takes at a worker: one for each choice.
    pub(crate) slots: u32,
    pub(crate) client: Client,
    /// What is counted under the client's name, until the request is gone.
    pub(crate) spending: Spending,
    pub(crate) deadline: Deadline,
}

impl Call {
    pub(crate) fn arrival(&self) -> Arrival {
        let Self { client, slots, .. } = *self;
        let bytes = u64::try_from(self.body.len()).unwrap_or(u64::MAX);
        Arrival { client, slots, bytes, remaining: self.deadline.remaining() }
    }
}

/// The reply of a worker, its first byte at hand.
enum Reply {
    Whole(Response),
    Events(Upstream),
}

/// A stream of events, and the slots of a worker that it takes.
pub(crate) struct Upstream {
    pub(crate) turn: Turn,
    pub(crate) events: Events,
}

/// Answers a request with the reply of a worker.
///
/// # Errors
/// What placement or the worker refuses it with, `deadline_exceeded`, and
/// `draining` for one that outlasts the queen.
pub(crate) async fn forward(app: &Arc<App>, call: Call) -> Result<Response, ApiError> {
    let admitted = app.admit()?;
    let trail = Caller::current().trail(&call.id, call.operation.name(), call.model.as_str());
    let mut running = Running::begin(admitted, call.operation.name(), call.deadline, trail.clone());
    app.retries.request(Instant::now());
    let active = app.active.enter(call.id.clone(), call.deadline);
    let mut search = Search::new(&call, trail, active);
    let revoked = call.spending.revoked();
    let outcome = tokio::select! {
        biased;
        () = app.cut.cancelled() => None,
        () = revoked.cancelled() => Some(Err(taken_back())),
        outcome = place_and_forward(app, &call, &mut search, &mut running) => Some(outcome),
    };
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => Err(running.cut_off().into()),
    };
    match outcome {
        Ok(Reply::Whole(response)) => {
            running.completed();
            Ok(response)
        }
        Ok(Reply::Events(first)) => {
            let id = call.id.clone();
            let relay = Relay {
                request_id: id.clone(),
                broken: Box::pin(ready(ErrorDetail::new(ErrorCode::HiveUnreachable, BROKE_OFF))),
                deadline: call.deadline,
                guard: (),
            };
            let events = continuing::events(Arc::clone(app), call, search, first);
            let (head, whole_events) = relay_events(events, relay).into_parts();
            let events = whole_events.into_data_stream();
            let ends = Ends { queen: app.cut.clone(), key: revoked };
            let watched = Watched::new(events, running, id, ends);
            Ok(Response::from_parts(head, Body::from_stream(watched)))
        }
        Err(error) => {
            running.failed(error.code());
            Err(error)
        }
    }
}

fn taken_back() -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, TAKEN_BACK)
}

async fn place_and_forward(
    app: &App,
    call: &Call,
    search: &mut Search,
    running: &mut Running,
) -> Result<Reply, ApiError> {
    loop {
        let turn = find_turn(app, call, search).await?;
        running.placed(app.registry.view().label(&call.model));
        let failure = match attempt(app, call, &turn, None).await {
            Ok(answer) => {
                running.first_byte();
                return Ok(match answer {
                    Answer::Whole(response) => Reply::Whole(response),
                    Answer::Events(events) => Reply::Events(Upstream { turn, events }),
                });
            }
            Err(failure) => failure,
        };
        put_back(app, call, search, turn, failure, Retry::Paid)?;
    }
}

/// Returns the client for a machine once it can be given work.
///
/// # Errors
/// `hive_unreachable`, `draining` and `deadline_exceeded`.
pub(crate) async fn online_hive(
    app: &App,
    name: &NodeName,
    deadline: Deadline,
) -> Result<HopClient, ApiError> {
    let mut changes = app.registry.subscribe();
    loop {
        changes.mark_unchanged();
        let cluster = app.registry.view();
        let hive = cluster.hives.into_iter().find(|hive| hive.name == *name);
        let until = match hive.map(|hive| hive.reach) {
            Some(Reach::Online) => match app.registry.client(name) {
                Some(client) => return Ok(client),
                None => return Err(no_answer().into()),
            },
            Some(Reach::Awaited { until }) => until,
            Some(Reach::Draining) => return Err(draining()),
            Some(Reach::Suspect(reason) | Reach::Stale(reason) | Reach::Lost(reason)) => {
                app.registry.ask_for_check();
                return Err(reason.into());
            }
            None => return Err(no_answer().into()),
        };
        if deadline.is_expired() {
            return Err(out_of_time());
        }
        // Whether it changed or not, the next round looks.
        timeout_at(until.min(deadline.instant()), changes.changed()).await.ok();
    }
}

/// Waits until some machine has told what it has, as long as one is about to.
///
/// # Errors
/// `hive_unreachable` if none has: nothing is known then, which is not the same as nothing.
pub(crate) async fn first_report(app: &App, deadline: Deadline) -> Result<(), ApiError> {
    let mut changes = app.registry.subscribe();
    while app.registry.view().is_gathering() && !deadline.is_expired() {
        let soon = Instant::now() + FIRST_REPORT_LOOK;
        timeout_at(soon.min(deadline.instant()), changes.changed()).await.ok();
    }
    let cluster = app.registry.view();
    if cluster.has_reports() { Ok(()) } else { Err(no_machine_answers(&cluster).into()) }
}

fn no_machine_answers(cluster: &Cluster) -> ErrorDetail {
    let why = cluster.hives.iter().find_map(|hive| hive.reach.obstacle());
    let why = why.map(|reason| reason.message.as_str());
    let why = why.unwrap_or("the queen still waits for the first one");
    let message = format!("no machine answers; {why}; `rbee logs hive` shows the log of the hive");
    ErrorDetail::new(ErrorCode::HiveUnreachable, message)
}
