//! Carries out what `placement.rs` decides about a request: forwards it, has a
//! worker started, waits, or refuses. Chooses nothing. Everything here ends
//! when its future is dropped, which is what happens when a client leaves.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use input_validation::{ModelRef, NodeName, RequestId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelKind;
use rbee_http::{ApiError, CallError, HopClient, Relay, collect, relay_events};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::app::{App, draining, out_of_time};
use crate::cluster::{Cluster, Reach};
use crate::placement::{Decision, Want, may_go_elsewhere, place};
use crate::queue::{Arrival, Client};
use crate::running::{Running, Watched};
use crate::starts::Started;
use crate::telemetry;
use crate::turns::{Place, PutBack, Turn};

/// What clients are told when a machine breaks off. The end of a worker is told
/// by its machine, and passed on.
const BROKE_OFF: &str = "the machine broke off before the reply was complete";

/// Waiting for the first report ends by time as well as by change.
const FIRST_REPORT_LOOK: Duration = Duration::from_secs(1);

/// How long a request waits for its turn before it looks whether its workers are
/// still there: machines fall silent without a change.
const TURN_LOOK: Duration = Duration::from_secs(5);

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

    const fn path(self) -> &'static str {
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
    pub(crate) deadline: Deadline,
}

impl Call {
    fn arrival(&self) -> Arrival {
        let Self { client, slots, .. } = *self;
        let bytes = u64::try_from(self.body.len()).unwrap_or(u64::MAX);
        Arrival { client, slots, bytes, remaining: self.deadline.remaining() }
    }
}

/// Why an attempt failed before the first byte of a reply.
struct Failure {
    detail: ErrorDetail,
    /// The worker did not fail; nobody answered at its machine's address.
    machine_is_gone: bool,
}

/// Answers a request with the reply of a worker.
///
/// # Errors
/// What placement or the worker refuses it with, `deadline_exceeded`, and
/// `draining` for one that outlasts the queen.
pub(crate) async fn forward(app: &App, call: Call) -> Result<Response, ApiError> {
    let mut running = Running::begin(app.admit()?, call.operation.name(), call.deadline);
    let work = place_and_forward(app, &call, &mut running);
    let outcome = match app.cut.run_until_cancelled(work).await {
        Some(outcome) => outcome,
        None => Err(draining()),
    };
    match outcome {
        Ok(Reply::Whole(response)) => {
            running.completed();
            Ok(response)
        }
        Ok(Reply::Events { events, turn }) => {
            let relay = Relay {
                request_id: call.id.clone(),
                broken: ErrorCode::HiveUnreachable,
                message: BROKE_OFF,
                deadline: call.deadline,
                guard: turn,
            };
            let (head, whole_events) = relay_events(events, relay).into_parts();
            let events = whole_events.into_data_stream();
            let watched = Watched::new(events, running, call.id, app.cut.clone());
            Ok(Response::from_parts(head, Body::from_stream(watched)))
        }
        Err(error) => {
            running.failed(error.code());
            Err(error)
        }
    }
}

type Events = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The reply of a worker, its first byte at hand.
enum Reply {
    Whole(Response),
    Events { events: Events, turn: Turn },
}

/// The same while its worker is still held elsewhere.
enum Answer {
    Whole(Response),
    Events(Events),
}

async fn place_and_forward(
    app: &App,
    call: &Call,
    running: &mut Running,
) -> Result<Reply, ApiError> {
    let mut changes = app.registry.subscribe();
    let mut want = Want::new(call.model.clone(), call.operation.asks());
    let mut place_in_queue = None;
    loop {
        changes.mark_unchanged();
        let cluster = app.registry.view();
        let decision = place(&cluster, &want, Instant::now());
        if let Decision::Refuse(detail) = decision {
            telemetry::decided("refuse");
            if detail.code == ErrorCode::HiveUnreachable {
                app.registry.ask_for_check();
            }
            return Err(detail.into());
        }
        let queued = match &mut place_in_queue {
            Some(queued) => queued,
            none @ None => none.insert(app.turns.enter(&want, call.arrival())?),
        };
        // Whatever is being waited for, a worker that has room ends the wait.
        let turn = tokio::select! {
            biased;
            turn = queued.turn() => Some(turn?),
            pursued = pursue(app, call, &mut want, &mut changes, decision) => match pursued {
                Ok(()) => None,
                Err(OutOfTime::InQueue) => return Err(queued.out_of_time()),
                Err(OutOfTime::Loading) => return Err(still_loading(&call.model)),
            },
        };
        let Some(turn) = turn else { continue };
        telemetry::decided("use");
        running.placed(app.registry.view().label(want.model()));
        match attempt(app, call, running, &turn).await {
            Ok(Answer::Whole(response)) => return Ok(Reply::Whole(response)),
            Ok(Answer::Events(events)) => return Ok(Reply::Events { events, turn }),
            Err(failure) => note_failure(app, &mut want, queued, turn, failure)?,
        }
    }
}

/// What a request was waiting for when its time was over.
enum OutOfTime {
    InQueue,
    Loading,
}

/// Does what was decided until it is time to decide again.
async fn pursue(
    app: &App,
    call: &Call,
    want: &mut Want,
    changes: &mut watch::Receiver<()>,
    decision: Decision,
) -> Result<(), OutOfTime> {
    match decision {
        Decision::Use { .. } => {
            let until = Instant::now() + TURN_LOOK;
            wait(changes, until, call).await.map_err(|_| OutOfTime::InQueue)
        }
        Decision::Start { hive, model } => {
            telemetry::decided("start");
            want.started();
            let join = app.starts.join(&hive, &model, want);
            let started = timeout_at(call.deadline.instant(), join).await;
            let started = started.map_err(|_| OutOfTime::Loading)?;
            note_start(app, want, hive, started);
            Ok(())
        }
        Decision::Wait { worker, until } => {
            telemetry::decided("wait");
            worker.into_iter().for_each(|worker| want.awaits(worker));
            wait(changes, until, call).await
        }
        // Answered before anything is pursued.
        Decision::Refuse(_) => Ok(()),
    }
}

async fn wait(
    changes: &mut watch::Receiver<()>,
    until: Instant,
    call: &Call,
) -> Result<(), OutOfTime> {
    // The registry outlives every request, so a change is the only good end of the inner wait.
    let changed = timeout_at(until.min(call.deadline.instant()), changes.changed()).await;
    if changed.is_err() && call.deadline.is_expired() {
        return Err(OutOfTime::Loading);
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

/// Hands on what another worker would not do better; else notes what failed
/// and puts the request back into the queue.
fn note_failure(
    app: &App,
    want: &mut Want,
    queued: &mut Place,
    turn: Turn,
    failure: Failure,
) -> Result<(), ApiError> {
    let Failure { detail, machine_is_gone } = failure;
    let is_full = detail.code == ErrorCode::AllSlotsBusy;
    let goes_on = if is_full { want.found_full() } else { may_go_elsewhere(detail.code) };
    if !goes_on {
        return Err(detail.into());
    }
    telemetry::attempt_failed(detail.code.as_str());
    if is_full {
        queued.put_back(turn, PutBack::WorkerIsFull, want);
        return Ok(());
    }
    let (hive, worker) = (turn.hive.clone(), turn.worker.clone());
    tracing::warn!(%hive, worker_id = %worker, code = %detail.code, "attempt failed; placing again");
    if machine_is_gone {
        app.registry.suspect(&hive);
    }
    want.failed((!machine_is_gone).then_some(worker), detail, Instant::now());
    queued.put_back(turn, PutBack::AttemptFailed, want);
    Ok(())
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

/// Forwards the request to one worker and waits for the first byte of its reply.
async fn attempt(
    app: &App,
    call: &Call,
    running: &Running,
    turn: &Turn,
) -> Result<Answer, Failure> {
    let client = app.registry.client(&turn.hive).ok_or_else(machine_is_gone)?;
    let path = format!("/api/v1/workers/{}/{}", turn.worker, call.operation.path());
    let sent = client.forward(&path, call.body.clone(), &call.id, call.deadline).await;
    let mut response = sent.map_err(|error| match error {
        CallError::Unreachable(_) => machine_is_gone(),
        error => broke_off(error),
    })?;
    if !call.streams {
        let body = collect(response, call.deadline).await.map_err(broke_off)?;
        running.first_byte();
        return Ok(Answer::Whole(json_response(body)));
    }
    let first = timeout_at(call.deadline.instant(), response.chunk()).await;
    let first = first
        .map_err(|_| CallError::TimedOut)
        .and_then(|chunk| chunk.map_err(CallError::Unreachable));
    let first = first.map_err(broke_off)?.ok_or_else(nothing_came)?;
    running.first_byte();
    let rest = response.bytes_stream().map_err(io::Error::other);
    Ok(Answer::Events(Box::pin(stream::iter([Ok(first)]).chain(rest))))
}

fn machine_is_gone() -> Failure {
    let message = "the machine that has the model does not answer";
    let detail = ErrorDetail::new(ErrorCode::HiveUnreachable, message);
    Failure { detail, machine_is_gone: true }
}

fn broke_off(error: CallError) -> Failure {
    let detail = error.into_detail(ErrorCode::HiveUnreachable, BROKE_OFF);
    Failure { detail, machine_is_gone: false }
}

fn nothing_came() -> Failure {
    let detail = ErrorDetail::new(ErrorCode::HiveUnreachable, BROKE_OFF);
    Failure { detail, machine_is_gone: false }
}

fn json_response(body: Bytes) -> Response {
    let mut response = Body::from(body).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
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
                None => return Err(machine_is_gone().detail.into()),
            },
            Some(Reach::Awaited { until }) => until,
            Some(Reach::Draining) => return Err(draining()),
            Some(Reach::Lost(reason)) => {
                app.registry.ask_for_check();
                return Err(reason.into());
            }
            None => return Err(machine_is_gone().detail.into()),
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
