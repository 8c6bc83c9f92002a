//! Carries out what `placement.rs` decides about a request: forwards it, has a
//! worker started, waits, tries again within the budget, or refuses. Chooses nothing. Everything here ends
//! when its future is dropped, which is what happens when a client leaves.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use deadline_propagation::Deadline;
use input_validation::{ModelRef, NodeName, RequestId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelKind;
use rbee_http::{ApiError, HopClient, Relay, relay_events};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::app::{App, draining, out_of_time};
use crate::attempt::{Answer, BROKE_OFF, Events, Failure, attempt, machine_is_gone};
use crate::cluster::{Cluster, Reach};
use crate::continuing;
use crate::placement::{Decision, Want, may_go_elsewhere, place};
use crate::queue::{Arrival, Client};
use crate::running::{Running, Watched};
use crate::starts::Started;
use crate::telemetry;
use crate::turns::{Place, PutBack, Turn};

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
    pub(crate) deadline: Deadline,
}

impl Call {
    fn arrival(&self) -> Arrival {
        let Self { client, slots, .. } = *self;
        let bytes = u64::try_from(self.body.len()).unwrap_or(u64::MAX);
        Arrival { client, slots, bytes, remaining: self.deadline.remaining() }
    }
}

/// A request on its way to a worker.
#[derive(Debug)]
pub(crate) struct Search {
    /// What it needs, and what became of it so far.
    pub(crate) want: Want,
    /// Its place in the queue, once it has one. Kept while it is answered, so
    /// that it comes back to it.
    place: Option<Place>,
}

impl Search {
    fn new(call: &Call) -> Self {
        Self { want: Want::new(call.model.clone(), call.operation.asks()), place: None }
    }

    /// Makes room for others once nothing more is to be tried.
    pub(crate) fn leave_queue(&mut self) {
        self.place = None;
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

/// Whether trying again counts as load of the cluster's own making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Taken out of the budget.
    Paid,
    Free,
}

/// Answers a request with the reply of a worker.
///
/// # Errors
/// What placement or the worker refuses it with, `deadline_exceeded`, and
/// `draining` for one that outlasts the queen.
pub(crate) async fn forward(app: &Arc<App>, call: Call) -> Result<Response, ApiError> {
    let mut running = Running::begin(app.admit()?, call.operation.name(), call.deadline);
    app.retries.request(Instant::now());
    let mut search = Search::new(&call);
    let work = place_and_forward(app, &call, &mut search, &mut running);
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
            let events = continuing::events(Arc::clone(app), call, search, first);
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

/// Waits until it is the request's turn at a worker.
///
/// # Errors
/// What placement or the queue refuses it with, and `deadline_exceeded`.
pub(crate) async fn find_turn(
    app: &App,
    call: &Call,
    search: &mut Search,
) -> Result<Turn, ApiError> {
    let mut changes = app.registry.subscribe();
    let Search { want, place: place_in_queue } = search;
    loop {
        changes.mark_unchanged();
        let cluster = app.registry.view();
        let decision = place(&cluster, want, Instant::now());
        if let Decision::Refuse(detail) = decision {
            telemetry::decided("refuse");
            if detail.code == ErrorCode::HiveUnreachable {
                app.registry.ask_for_check();
            }
            return Err(detail.into());
        }
        let queued = match &mut *place_in_queue {
            Some(queued) => queued,
            none @ None => none.insert(app.turns.enter(want, call.arrival())?),
        };
        // Whatever is being waited for, a worker that has room ends the wait.
        let turn = tokio::select! {
            biased;
            turn = queued.turn() => Some(turn?),
            pursued = pursue(app, call, want, &mut changes, decision) => match pursued {
                Ok(()) => None,
                Err(OutOfTime::InQueue) => return Err(queued.out_of_time()),
                Err(OutOfTime::Loading) => return Err(still_loading(&call.model)),
            },
        };
        let Some(turn) = turn else { continue };
        telemetry::decided("use");
        app.registry.view().worker(&turn.worker).into_iter().for_each(|worker| want.tries(worker));
        return Ok(turn);
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

/// Hands on what another worker would not do better, or not in time; else notes
/// what failed and puts the request back to its place in the queue.
///
/// # Errors
/// Why it is not tried again.
pub(crate) fn put_back(
    app: &App,
    call: &Call,
    search: &mut Search,
    turn: Turn,
    failure: Failure,
    retry: Retry,
) -> Result<(), ApiError> {
    let Search { want, place } = search;
    let Failure { detail, machine_is_gone } = failure;
    let is_full = detail.code == ErrorCode::AllSlotsBusy;
    let goes_on = if is_full { want.found_full() } else { may_go_elsewhere(detail.code) };
    if !goes_on || call.deadline.is_expired() {
        return Err(detail.into());
    }
    telemetry::attempt_failed(detail.code.as_str());
    if !is_full {
        let (hive, worker) = (&turn.hive, &turn.worker);
        tracing::warn!(%hive, worker_id = %worker, code = %detail.code, "attempt failed; placing again");
        if machine_is_gone {
            app.registry.suspect(hive);
        }
        want.failed((!machine_is_gone).then(|| worker.clone()), detail.clone(), Instant::now());
        // One that never reached a machine cost nobody anything.
        if retry == Retry::Paid && !machine_is_gone && !want.is_given_up() {
            pay_for_retry(app, detail)?;
        }
    }
    let why = match (is_full, machine_is_gone) {
        (true, _) => PutBack::WorkerIsFull,
        (false, true) => PutBack::MachineIsGone,
        (false, false) => PutBack::WorkerFailed,
    };
    if let Some(place) = place {
        place.put_back(turn, why, want);
    }
    Ok(())
}

/// Takes a retry out of the budget; where that is spent, the failure is the answer.
fn pay_for_retry(app: &App, failure: ErrorDetail) -> Result<(), ApiError> {
    let is_paid = app.retries.allows_retry(Instant::now());
    telemetry::retry(is_paid);
    if is_paid { Ok(()) } else { Err(failure.into()) }
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
