//! Finds a worker for one request, and another one after that has failed it:
//! does what `placement.rs` decides until it is the request's turn. Chooses
//! nothing and forwards nothing.

use std::time::Duration;

use audit_logging::Trail;
use input_validation::{ModelRef, NodeName};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::ApiError;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::active::Active;
use crate::app::App;
use crate::attempt::{Failure, Fault};
use crate::dispatch::Call;
use crate::placement::{Decision, Part, Want, may_go_elsewhere, place};
use crate::starts::Started;
use crate::telemetry;
use crate::turns::{Place, PutBack, Turn};

/// How long a request waits for its turn before it looks whether its workers are
/// still there: machines fall silent without a change.
const TURN_LOOK: Duration = Duration::from_secs(5);

/// A request on its way to a worker.
#[derive(Debug)]
pub(crate) struct Search {
    /// What it needs, and what became of it so far.
    pub(crate) want: Want,
    /// Its place in the queue, once it has one. Kept while it is answered, so
    /// that it comes back to it.
    place: Option<Place>,
    /// Its entries in the audit log.
    trail: Trail,
    /// Its line in the listing of workers.
    active: Active,
}

impl Search {
    pub(crate) fn new(call: &Call, trail: Trail, active: Active) -> Self {
        let want = Want::new(call.model.clone(), call.operation.asks());
        Self { want, place: None, trail, active }
    }

    /// Makes room for others once nothing more is to be tried.
    pub(crate) fn leave_queue(&mut self) {
        self.place = None;
    }
}

/// Whether trying again counts as load of the cluster's own making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Taken out of the budget.
    Paid,
    Free,
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
    let Search { want, place: place_in_queue, trail, active } = search;
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
        trail.assigned(turn.worker.as_str());
        active.is_at(&turn.worker);
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
    let Search { want, place, .. } = search;
    let part = failure.part(turn.had_slot, turn.since.elapsed());
    let Failure { detail, fault, .. } = failure;
    let is_full = detail.code == ErrorCode::AllSlotsBusy;
    let goes_on = if is_full { want.found_full() } else { may_go_elsewhere(detail.code) };
    if !goes_on || call.deadline.is_expired() {
        return Err(detail.into());
    }
    telemetry::attempt_failed(detail.code.as_str());
    if !is_full {
        let (hive, worker) = (&turn.hive, &turn.worker);
        tracing::warn!(%hive, worker_id = %worker, code = %detail.code, "attempt failed; placing again");
        if matches!(fault, Fault::Machine | Fault::NothingSent) {
            app.registry.suspect(hive);
        }
        let to_blame = (fault == Fault::Worker).then(|| worker.clone());
        want.failed(to_blame, detail.clone(), part, Instant::now());
        if retry == Retry::Paid && fault != Fault::NothingSent && !want.is_given_up() {
            pay_for_retry(app, detail)?;
        }
    }
    let why = match (is_full, fault) {
        (true, _) => PutBack::WorkerIsFull,
        (false, Fault::Machine | Fault::NothingSent) => PutBack::MachineIsGone,
        (false, Fault::Connection) => PutBack::ConnectionBroke,
        (false, Fault::Worker) => PutBack::WorkerFailed,
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
            want.failed(None, *detail, Part::Unknown, Instant::now());
        }
        None => {}
    }
}
