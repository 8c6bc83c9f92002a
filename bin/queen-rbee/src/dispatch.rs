//! Carries out what `placement.rs` decides about a request: forwards it, has a
//! worker started, waits, tries again within the budget, or refuses. Chooses nothing. Everything here ends
//! when its future is dropped, which is what happens when a client leaves.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use deadline_propagation::Deadline;
use input_validation::{ModelRef, NodeName, RequestId, WorkerId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelKind;
use rbee_http::{ApiError, HopClient, Relay, relay_events};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::app::{App, draining, out_of_time};
use crate::attempt::{self, BROKE_OFF, Failure, Reply, attempt};
use crate::cluster::{Cluster, Reach};
use crate::continuing;
use crate::placement::{Decision, Want, may_go_elsewhere, place};
use crate::running::{Running, Watched};
use crate::starts::Started;
use crate::telemetry;

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
    const fn asks(self) -> ModelKind {
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
    pub(crate) deadline: Deadline,
}

/// Answers a request with the reply of a worker.
///
/// # Errors
/// What placement or the worker refuses it with, `deadline_exceeded`, and
/// `draining` for one that outlasts the queen.
pub(crate) async fn forward(app: &Arc<App>, call: Call) -> Result<Response, ApiError> {
    let mut running = Running::begin(app.admit()?, call.operation.name(), call.deadline);
    app.retries.request(Instant::now());
    let mut want = Want::new(call.model.clone(), call.operation.asks());
    let work = place_and_forward(app, &call, &mut want, &mut running);
    let outcome = match app.cut.run_until_cancelled(work).await {
        Some(outcome) => outcome,
        None => Err(draining()),
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
                broken: ErrorCode::HiveUnreachable,
                message: BROKE_OFF,
                deadline: call.deadline,
                guard: (),
            };
            let events = continuing::events(Arc::clone(app), call, want, first);
            let (head, whole_events) = relay_events(events, relay).into_parts();
            let events = whole_events.into_data_stream();
            let watched = Watched::new(events, running, id, app.cut.clone());
            Ok(Response::from_parts(head, Body::from_stream(watched)))
        }
        Err(error) => {
            running.failed(error.code());
            Err(error)
        }
    }
}

async fn place_and_forward(
    app: &App,
    call: &Call,
    want: &mut Want,
    running: &mut Running,
) -> Result<Reply, ApiError> {
    loop {
        let (hive, worker) = find_worker(app, call, want).await?;
        running.placed(app.registry.view().label(want.model()));
        match attempt(app, call, &hive, &worker, None).await {
            Ok(reply) => {
                running.first_byte();
                return Ok(reply);
            }
            Err(failure) => {
                note_failure(app, call, want, hive, worker, &failure)?;
                pay_for_retry(app, want, failure)?;
            }
        }
    }
}

/// Returns the worker that a request is to be sent to now, once there is one.
///
/// # Errors
/// What placement refuses it with, and `deadline_exceeded`.
pub(crate) async fn find_worker(
    app: &App,
    call: &Call,
    want: &mut Want,
) -> Result<(NodeName, WorkerId), ApiError> {
    let mut changes = app.registry.subscribe();
    loop {
        changes.mark_unchanged();
        let cluster = app.registry.view();
        let decision = place(&cluster, want, Instant::now());
        telemetry::decided(&decision);
        match decision {
            Decision::Use { hive, worker } => {
                cluster.worker(&worker).into_iter().for_each(|worker| want.tries(worker));
                return Ok((hive, worker));
            }
            Decision::Start { hive, model } => {
                want.started();
                let join = app.starts.join(&hive, &model, want);
                let started = timeout_at(call.deadline.instant(), join).await;
                let started = started.map_err(|_| still_loading(&call.model))?;
                note_start(app, want, hive, started);
            }
            Decision::Wait { worker, until } => {
                worker.into_iter().for_each(|worker| want.awaits(worker));
                wait(&mut changes, until, call).await?;
            }
            Decision::Refuse(detail) => {
                if detail.code == ErrorCode::HiveUnreachable {
                    app.registry.ask_for_check();
                }
                return Err(detail.into());
            }
        }
    }
}

async fn wait(
    changes: &mut watch::Receiver<()>,
    until: Instant,
    call: &Call,
) -> Result<(), ApiError> {
    // The registry outlives every request, so a change is the only good end of the inner wait.
    let changed = timeout_at(until.min(call.deadline.instant()), changes.changed()).await;
    if changed.is_err() && call.deadline.is_expired() {
        return Err(still_loading(&call.model));
    }
    Ok(())
}

fn still_loading(model: &ModelRef) -> ApiError {
    let message = format!(
        "the time for this request is over and no worker for {model} is ready yet; \
         X-Request-Timeout-Ms asks for more"
    );
    ApiError::new(ErrorCode::DeadlineExceeded, message)
}

/// Hands on what another worker would not do better, or not in time, and notes
/// the rest.
///
/// # Errors
/// Why it is not tried again.
pub(crate) fn note_failure(
    app: &App,
    call: &Call,
    want: &mut Want,
    hive: NodeName,
    worker: WorkerId,
    failure: &Failure,
) -> Result<(), ApiError> {
    let Failure { detail, machine_is_gone } = failure;
    if !may_go_elsewhere(detail.code) || call.deadline.is_expired() {
        return Err(detail.clone().into());
    }
    telemetry::attempt_failed(detail.code.as_str());
    tracing::warn!(%hive, worker_id = %worker, code = %detail.code, "attempt failed; placing again");
    if *machine_is_gone {
        app.registry.suspect(&hive);
    }
    want.failed((!machine_is_gone).then_some(worker), detail.clone(), Instant::now());
    Ok(())
}

/// Takes a retry out of the budget. One that never reached a machine costs
/// nobody anything.
///
/// # Errors
/// The failure, where the budget is spent.
pub(crate) fn pay_for_retry(app: &App, want: &Want, failure: Failure) -> Result<(), ApiError> {
    if failure.machine_is_gone || want.is_given_up() {
        return Ok(());
    }
    let is_paid = app.retries.allows_retry(Instant::now());
    telemetry::retry(is_paid);
    if is_paid { Ok(()) } else { Err(failure.detail.into()) }
}

fn note_start(app: &App, want: &mut Want, hive: NodeName, started: Option<Started>) {
    match started {
        Some(Started::Worker(worker)) => want.awaits(worker.id),
        Some(Started::Refused(detail)) => want.refused(hive, *detail),
        Some(Started::Unreachable(detail)) => {
            app.registry.suspect(&hive);
            want.failed(None, *detail, Instant::now());
        }
        None => {}
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
                None => return Err(attempt::machine_is_gone().detail.into()),
            },
            Some(Reach::Awaited { until }) => until,
            Some(Reach::Draining) => return Err(draining()),
            Some(Reach::Lost(reason)) => {
                app.registry.ask_for_check();
                return Err(reason.into());
            }
            None => return Err(attempt::machine_is_gone().detail.into()),
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
    let why = cluster.hives.iter().find_map(|hive| match &hive.reach {
        Reach::Lost(reason) => Some(reason.message.as_str()),
        Reach::Online | Reach::Draining | Reach::Awaited { .. } => None,
    });
    let why = why.unwrap_or("the queen still waits for the first one");
    let message = format!("no machine answers; {why}; `rbee logs hive` shows the log of the hive");
    ErrorDetail::new(ErrorCode::HiveUnreachable, message)
}
