//! One request from its arrival to its end: counted, timed, and written into
//! the metrics exactly once, however it ends. Watches a stream of tokens go by
//! and changes nothing in it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::Stream;
use rbee_api::error::ErrorCode;
use rbee_http::DONE_EVENT;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::registry::Load;
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
    _counted: TaskTrackerToken,
}

impl Running {
    pub(crate) fn begin(
        counted: TaskTrackerToken,
        operation: &'static str,
        deadline: Deadline,
    ) -> Self {
        telemetry::request_began();
        Self {
            labels: RequestLabels { model: None, operation },
            started: Instant::now(),
            deadline,
            is_placed: false,
            outcome: None,
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
        telemetry::request_ended(&self.labels, code, self.started.elapsed());
    }
}

/// A stream of events on its way to the client.
pub(crate) struct Watched<S> {
    upstream: S,
    running: Running,
    /// The worker's count, for as long as it works on this request.
    _load: Load,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    token_seen: bool,
    /// The last bytes that went by, as many as `DONE_EVENT` has.
    tail: Vec<u8>,
}

impl<S> Watched<S> {
    /// `cut` ends the stream early, for a queen that cannot wait any longer.
    pub(crate) fn new(upstream: S, running: Running, load: Load, cut: CancellationToken) -> Self {
        Self {
            upstream,
            running,
            _load: load,
            cut: Box::pin(cut.cancelled_owned()),
            token_seen: false,
            tail: Vec::with_capacity(2 * DONE_EVENT.len()),
        }
    }

    fn see(&mut self, bytes: &[u8]) {
        if !self.token_seen && has_token(bytes) {
            self.token_seen = true;
            telemetry::first_token(&self.running.labels, self.running.started.elapsed());
        }
        let kept = bytes.len().saturating_sub(DONE_EVENT.len());
        self.tail.extend_from_slice(bytes.get(kept..).unwrap_or_default());
        let excess = self.tail.len().saturating_sub(DONE_EVENT.len());
        self.tail.drain(..excess);
        if self.tail == DONE_EVENT {
            self.running.completed();
        }
    }

    /// Notes that nothing more comes, which is only right after the last event.
    fn end(&mut self) {
        if self.tail != DONE_EVENT {
            self.running.failed(ErrorCode::WorkerFailed);
        }
    }
}

impl<S: Stream<Item = io::Result<Bytes>> + Unpin> Stream for Watched<S> {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(cx).is_ready() {
            this.running.failed(ErrorCode::Draining);
            return Poll::Ready(Some(Err(io::Error::other("the queen is shutting down"))));
        }
        match ready!(Pin::new(&mut this.upstream).poll_next(cx)) {
            Some(Ok(bytes)) => {
                this.see(&bytes);
                Poll::Ready(Some(Ok(bytes)))
            }
            Some(Err(error)) => {
                this.end();
                Poll::Ready(Some(Err(error)))
            }
            None => {
                this.end();
                Poll::Ready(None)
            }
        }
    }
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
}
