//! One attempt at a request: sends it to one worker and waits for the first
//! byte of the reply. Chooses no worker and tries nothing twice.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use rbee_api::continuation::Delivered;
use rbee_api::error::{CAUSE, ErrorCode, ErrorDetail, LIVES, TAKEN};
use rbee_api::worker_exit::ExitCause;
use rbee_http::{CallError, HopClient, collect};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::app::App;
use crate::dispatch::Call;
use crate::placement::Part;
use crate::turns::Turn;
use crate::usage;

/// What clients are told when a machine breaks off. The end of a worker is told
/// by its machine, and passed on.
pub(crate) const BROKE_OFF: &str = "the machine broke off before the reply was complete";

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) detail: ErrorDetail,
    pub(crate) fault: Fault,
    pub(crate) reached: Reached,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The worker's, as far as is known.
    Worker,
    /// The connection's between the worker, which lives, and its machine.
    Connection,
    /// Its machine's: it was sent the request and did not answer, or it broke off.
    Machine,
    /// Its machine's, to which the request never came: that cost nobody anything.
    NothingSent,
}

/// How far the worker had come, as far as was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Nothing had come from it.
    Nothing,
    /// Nothing had come of the rest of a reply that began elsewhere: it may have been on
    /// the way to where that broke off.
    NothingNew,
    /// It had begun to answer, which it does not before it computes.
    Computing,
}

impl Fault {
    /// Whose fault it is that a machine tells of.
    pub(crate) fn told_by(detail: &ErrorDetail) -> Self {
        match figure(detail, LIVES) {
            Some(&Value::Bool(true)) if detail.code == ErrorCode::WorkerFailed => Self::Connection,
            _ => Self::Worker,
        }
    }
}

fn figure<'a>(detail: &'a ErrorDetail, name: &str) -> Option<&'a Value> {
    detail.details.as_ref().and_then(|figures| figures.get(name))
}

impl Failure {
    /// What a request had to do with it that was given to the worker so long before. A
    /// worker is given a little more than its slots take, which waits there.
    pub(crate) fn part(&self, had_slot: bool, since_given: Duration) -> Part {
        let was_taken = figure(&self.detail, TAKEN) != Some(&false.into());
        // No request has its worker killed or stopped. What the kernel kills for want of memory has a
        // cause of its own.
        let was_outside = [ExitCause::Killed, ExitCause::Stopped]
            .iter()
            .any(|cause| figure(&self.detail, CAUSE) == Some(&cause.as_str().into()));
        if self.detail.code != ErrorCode::WorkerFailed || self.fault == Fault::Connection {
            return Part::Unknown;
        }
        let suspect = match was_outside {
            true => Part::Unknown,
            false => Part::Suspect { computed_for: since_given },
        };
        match self.reached {
            Reached::Computing => suspect,
            Reached::Nothing | Reached::NothingNew if was_taken && had_slot => suspect,
            Reached::NothingNew if was_taken => Part::Unknown,
            Reached::Nothing | Reached::NothingNew => Part::Bystander,
        }
    }

    /// The same of a reply that was to go on.
    pub(crate) fn before_the_rest(self) -> Self {
        Self { reached: Reached::NothingNew, ..self }
    }
}

/// The events of a stream, as they come from a worker.
pub(crate) type Events = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// The answer of a worker, its first byte at hand.
pub(crate) enum Answer {
    Whole(Response),
    Events(Events),
}

/// Forwards the request to one worker and waits for the first byte of its reply,
/// or of the rest of it after what was delivered; no longer than until its machine
/// is stale, which may have stopped with the connection open.
pub(crate) async fn attempt(
    app: &App,
    call: &Call,
    turn: &Turn,
    delivered: Option<&Delivered>,
) -> Result<Answer, Failure> {
    let client =
        app.registry.client(&turn.hive).ok_or_else(|| machine_is_gone(Fault::NothingSent))?;
    tokio::select! {
        biased;
        answered = ask(client, call, turn, delivered) => answered,
        () = app.registry.falls_silent(&turn.hive, Instant::now()) => {
            Err(machine_is_gone(Fault::Machine))
        }
    }
}

async fn ask(
    client: HopClient,
    call: &Call,
    turn: &Turn,
    delivered: Option<&Delivered>,
) -> Result<Answer, Failure> {
    let client = client.within(Some(call.spending.cache_scope()));
    let path = format!("/api/v1/workers/{}/{}", turn.worker, call.operation.path());
    let (id, deadline) = (&call.id, call.deadline);
    let sent = if call.streams {
        let body = body_after(call, delivered);
        client.forward_marked(&path, body, call.body.len(), id, deadline).await
    } else {
        client.forward(&path, call.body.clone(), id, deadline).await
    };
    let mut response = sent.map_err(|error| match error {
        error if !error.was_sent() => machine_is_gone(Fault::NothingSent),
        CallError::Unreachable(_) => machine_is_gone(Fault::Machine),
        error => broke_off(error),
    })?;
    if !call.streams {
        let body = collect(response, call.deadline).await.map_err(broke_off)?;
        call.spending.add(usage::of_reply(&body));
        return Ok(Answer::Whole(json_response(body)));
    }
    let first = timeout_at(call.deadline.instant(), response.chunk()).await;
    let first = first
        .map_err(|_| CallError::TimedOut)
        .and_then(|chunk| chunk.map_err(CallError::Unreachable));
    let first = first.map_err(broke_off)?.ok_or_else(nothing_came)?;
    let rest = response.bytes_stream().map_err(io::Error::other);
    Ok(Answer::Events(Box::pin(stream::iter([Ok(first)]).chain(rest))))
}

/// The client's body, and after it what the client has of the reply.
fn body_after(call: &Call, delivered: Option<&Delivered>) -> Bytes {
    let Some(delivered) = delivered else { return call.body.clone() };
    let mut both = BytesMut::from(call.body.as_ref());
    // Serialising numbers and strings cannot fail.
    both.extend_from_slice(&serde_json::to_vec(delivered).unwrap_or_default());
    both.freeze()
}

pub(crate) fn machine_is_gone(fault: Fault) -> Failure {
    Failure { detail: no_answer(), fault, reached: Reached::Nothing }
}

/// What is said of a machine that does not answer.
pub(crate) fn no_answer() -> ErrorDetail {
    let message = "the machine that has the model does not answer";
    ErrorDetail::new(ErrorCode::HiveUnreachable, message)
}

fn broke_off(error: CallError) -> Failure {
    let detail = error.into_detail(ErrorCode::HiveUnreachable, BROKE_OFF);
    let fault = Fault::told_by(&detail);
    Failure { detail, fault, reached: Reached::Nothing }
}

pub(crate) fn nothing_came() -> Failure {
    let detail = ErrorDetail::new(ErrorCode::HiveUnreachable, BROKE_OFF);
    Failure { detail, fault: Fault::Worker, reached: Reached::Nothing }
}

fn json_response(body: Bytes) -> Response {
    let mut response = Body::from(body).into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_a_slot_is_a_suspect_whether_or_not_its_reply_began_elsewhere() {
        let since = Duration::from_millis(7);
        let suspect = Part::Suspect { computed_for: since };
        let part = |reached, taken: Option<bool>, had_slot| {
            let mut detail = ErrorDetail::new(ErrorCode::WorkerFailed, "gone");
            detail.details = taken.map(|taken| serde_json::json!({ TAKEN: taken }));
            Failure { detail, fault: Fault::Worker, reached }.part(had_slot, since)
        };
        for reached in [Reached::Nothing, Reached::NothingNew] {
            assert_eq!(part(reached, None, true), suspect, "{reached:?}");
            assert_eq!(part(reached, Some(false), true), Part::Bystander, "{reached:?}");
        }
        assert_eq!(part(Reached::Nothing, None, false), Part::Bystander);
        assert_eq!(part(Reached::NothingNew, None, false), Part::Unknown);
        assert_eq!(part(Reached::Computing, None, false), suspect);
        for (cause, expected) in [
            ("killed", Part::Unknown),
            ("stopped", Part::Unknown),
            ("aborted", suspect),
            ("hung", suspect),
            ("out_of_memory", suspect),
        ] {
            let mut detail = ErrorDetail::new(ErrorCode::WorkerFailed, "gone");
            detail.details = Some(serde_json::json!({ CAUSE: cause }));
            for reached in [Reached::Computing, Reached::NothingNew, Reached::Nothing] {
                let failure = Failure { detail: detail.clone(), fault: Fault::Worker, reached };
                assert_eq!(failure.part(true, since), expected, "{cause} {reached:?}");
            }
        }
        assert_eq!(machine_is_gone(Fault::Machine).part(true, since), Part::Unknown);
        let mut detail = ErrorDetail::new(ErrorCode::WorkerFailed, "gone");
        assert_eq!(Fault::told_by(&detail), Fault::Worker);
        detail.details = Some(serde_json::json!({ LIVES: true }));
        let fault = Fault::told_by(&detail);
        assert_eq!(fault, Fault::Connection, "no worker ended of it");
        let failure = Failure { detail, fault, reached: Reached::Computing };
        assert_eq!(failure.part(true, since), Part::Unknown);
    }
}
