//! One request from its arrival to its end: counted, timed, and written into
//! the metrics exactly once, however it ends. Watches a stream of tokens go by
//! and changes nothing in it but its end, when the queen cannot wait for it or the key is revoked.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use audit_logging::{Outcome, Trail};
use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::Stream;
use input_validation::RequestId;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::{DONE_EVENT, error_event};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::app::draining;
use crate::telemetry::{self, RequestLabels};

/// The outcome of a request that ended well.
const OK: &str = "ok";
/// The outcome of a request whose client left.
const CANCELLED: &str = "cancelled";

/// A request for tokens, counted from its start until dropped. One that is
/// dropped without an outcome was left by its client.
#[derive(Debug)]
pub(crate) struct Running {
    labels: RequestLabels,
    started: Instant,
    deadline: Deadline,
    is_placed: bool,
    outcome: Option<&'static str>,
    trail: Trail,
    _counted: TaskTrackerToken,
}

impl Running {
    pub(crate) fn begin(
        counted: TaskTrackerToken,
        operation: &'static str,
        deadline: Deadline,
        trail: Trail,
    ) -> Self {
        telemetry::request_began();
        Self {
            labels: RequestLabels { model: None, operation },
            started: Instant::now(),
            deadline,
            is_placed: false,
            outcome: None,
            trail,
            _counted: counted,
        }
    }

    /// Notes that a worker was found for it; only the first one ends the wait.
    pub(crate) fn placed(&mut self, model: Option<String>) {
        if !std::mem::replace(&mut self.is_placed, true) {
            self.labels.model = model;
            telemetry::placed(self.started.elapsed());
        }
    }

    /// Notes that the reply's first byte has come.
    pub(crate) fn first_byte(&self) {
        telemetry::first_byte(self.started.elapsed());
    }

    /// What a client is told that waits for its reply when the queen can wait no longer.
    pub(crate) fn cut_off(&self) -> ErrorDetail {
        if self.is_placed {
            let message = format!("{CUT_OFF}, and nothing of it was sent; send the request again");
            ErrorDetail::new(ErrorCode::Draining, message)
        } else {
            draining().into_detail()
        }
    }

    /// Notes that the reply is whole.
    pub(crate) fn completed(&mut self) {
        self.outcome = Some(OK);
    }

    /// Notes that it ended with an error.
    pub(crate) fn failed(&mut self, code: ErrorCode) {
        self.outcome = Some(code.as_str());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let code = self.outcome.unwrap_or(if self.deadline.is_expired() {
            ErrorCode::DeadlineExceeded.as_str()
        } else {
            CANCELLED
        });
        self.trail.ends(if code == OK { Outcome::Success } else { Outcome::Failure }, code);
        telemetry::request_ended(&self.labels, code, self.started.elapsed());
    }
}

/// What clients are told whose reply outlasts the drain time.
const CUT_OFF: &str = "the queen shut down before the reply was complete";
/// What clients are told whose key is revoked while they are answered.
pub(crate) const TAKEN_BACK: &str = "the key was revoked before the reply was complete";

/// The beginning of the event that ends a stream that is not whole.
const ERROR_EVENT: &[u8] = b"data: {\"error\":";

/// Whole events on their way to the client.
pub(crate) struct Watched<S> {
    upstream: S,
    running: Running,
    request_id: RequestId,
    queen_ends: Pin<Box<WaitForCancellationFutureOwned>>,
    key_ends: Pin<Box<WaitForCancellationFutureOwned>>,
    token_seen: bool,
    /// The last event has gone by, and nothing may follow it.
    has_ended: bool,
    /// The stream was cut off.
    is_cut: bool,
}

/// What ends a stream from outside.
#[derive(Debug)]
pub(crate) struct Ends {
    /// The queen cannot wait any longer.
    pub(crate) queen: CancellationToken,
    /// The client's key was revoked.
    pub(crate) key: CancellationToken,
}

impl<S> Watched<S> {
    /// Watches `upstream`, whose pieces are whole events. `ends` ends the stream
    /// early with an error event.
    pub(crate) fn new(upstream: S, running: Running, request_id: RequestId, ends: Ends) -> Self {
        Self {
            upstream,
            running,
            request_id,
            queen_ends: Box::pin(ends.queen.cancelled_owned()),
            key_ends: Box::pin(ends.key.cancelled_owned()),
            token_seen: false,
            has_ended: false,
            is_cut: false,
        }
    }

    fn see(&mut self, events: &[u8]) {
        if !self.token_seen && has_token(events) {
            self.token_seen = true;
            telemetry::first_token(&self.running.labels, self.running.started.elapsed());
        }
        if events.ends_with(DONE_EVENT) {
            self.has_ended = true;
            self.running.completed();
        } else if let Some(code) = last_error(events) {
            self.has_ended = true;
            self.running.failed(code);
        }
    }

    /// Returns the event that ends the stream, where none has yet.
    fn cut_off(&mut self, code: ErrorCode, message: &str) -> Option<Bytes> {
        self.is_cut = true;
        if self.has_ended {
            return None;
        }
        self.running.failed(code);
        let mut detail = ErrorDetail::new(code, message);
        detail.request_id = Some(self.request_id.to_string());
        Some(error_event(detail))
    }
}

impl<S, E> Stream for Watched<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    type Item = Result<Bytes, E>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.is_cut {
            return Poll::Ready(None);
        }
        if this.queen_ends.as_mut().poll(cx).is_ready() {
            return Poll::Ready(this.cut_off(ErrorCode::Draining, CUT_OFF).map(Ok));
        }
        if this.key_ends.as_mut().poll(cx).is_ready() {
            return Poll::Ready(this.cut_off(ErrorCode::Unauthorized, TAKEN_BACK).map(Ok));
        }
        let next = ready!(Pin::new(&mut this.upstream).poll_next(cx));
        if let Some(Ok(events)) = &next {
            this.see(events);
        }
        Poll::Ready(next)
    }
}

/// Returns the code of the error event that `events` end with, if they do.
fn last_error(events: &[u8]) -> Option<ErrorCode> {
    #[derive(Deserialize)]
    struct Event {
        error: Coded,
    }
    #[derive(Deserialize)]
    struct Coded {
        code: ErrorCode,
    }

    let body = events.strip_suffix(b"\n\n")?;
    let start = body.windows(2).rposition(|pair| pair == b"\n\n").map_or(0, |end| end + 2);
    let event = body.get(start..).filter(|event| event.starts_with(ERROR_EVENT))?;
    let json = event.strip_prefix(b"data: ")?;
    // One that cannot be read is an error all the same.
    let code = serde_json::from_slice::<Event>(json).map(|event| event.error.code);
    Some(code.unwrap_or(ErrorCode::InternalError))
}

/// Says whether events hold a token: a delta with text, after the one that only
/// names the role, or a completion with text.
fn has_token(bytes: &[u8]) -> bool {
    [b"\"delta\":{\"content\":\"".as_slice(), b"\"text\":\""].iter().any(|mark| {
        bytes.windows(mark.len() + 1).any(|window| {
            window.starts_with(mark) && window.last().is_some_and(|next| *next != b'"')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_counts_as_a_token() {
        for (event, expected) in [
            (r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#, false),
            (r#"data: {"choices":[{"delta":{"content":""}}]}"#, false),
            (r#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#, false),
            (r#"data: {"choices":[{"delta":{"content":"Hi"}}]}"#, true),
            (r#"data: {"choices":[{"index":0,"text":""}]}"#, false),
            (r#"data: {"choices":[{"index":0,"text":"Hi"}]}"#, true),
            ("data: [DONE]", false),
            ("", false),
        ] {
            assert_eq!(has_token(event.as_bytes()), expected, "{event}");
        }
    }

    #[test]
    fn the_last_event_tells_how_a_stream_ended() {
        let error = r#"data: {"error":{"message":"m","code":"worker_failed"}}"#;
        for (events, expected) in [
            (format!("{error}\n\n"), Some(ErrorCode::WorkerFailed)),
            (format!("data: {{\"a\":1}}\n\n{error}\n\n"), Some(ErrorCode::WorkerFailed)),
            (format!("{error}\n\ndata: {{\"a\":1}}\n\n"), None),
            (
                "data: {\"error\":{\"code\":\"strange\"}}\n\n".to_owned(),
                Some(ErrorCode::InternalError),
            ),
            ("data: [DONE]\n\n".to_owned(), None),
        ] {
            assert_eq!(last_error(events.as_bytes()), expected, "{events}");
        }
    }
}
