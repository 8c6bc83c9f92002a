//! Passes a stream of events from the next hop to the client, frame by frame.
//! Guarantees that what the client sees ends either with `[DONE]`, or with one
//! error event: never silently, never in the middle of a frame.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::response::Response;
use bytes::{Bytes, BytesMut};
use deadline_propagation::Deadline;
use futures_util::Stream;
use input_validation::RequestId;
use rbee_api::error::{ErrorCode, ErrorDetail};
use tokio::time::{Sleep, sleep_until};

use crate::sse::{DONE_EVENT, error_event, event_stream_response};

/// A frame larger than this is not an event of ours.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// How one relayed stream is to end when it cannot end well.
pub struct Relay<G> {
    /// Stands in the error event.
    pub request_id: RequestId,
    /// What is said of a next hop that breaks off. Asked for once it has.
    pub broken: Pin<Box<dyn Future<Output = ErrorDetail> + Send>>,
    /// When the request's time is over.
    pub deadline: Deadline,
    /// Held until the stream ends or the client leaves: counts, permits.
    pub guard: G,
}

impl<G> fmt::Debug for Relay<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request_id, deadline, .. } = self;
        f.debug_struct("Relay")
            .field("request_id", request_id)
            .field("deadline", deadline)
            .finish_non_exhaustive()
    }
}

/// Relays `upstream` as a response.
pub fn relay_events<S, E, G>(upstream: S, relay: Relay<G>) -> Response
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
    G: Send + Unpin + 'static,
{
    event_stream_response(FrameRelay {
        upstream: Box::pin(upstream),
        expiry: Box::pin(sleep_until(relay.deadline.instant())),
        relay,
        tail: BytesMut::new(),
        last: Last::Event,
        ready: VecDeque::new(),
        state: State::Passing,
    })
}

/// What the last whole frame was.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Event,
    Terminal,
}

/// How far a relay is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Passing,
    /// The next hop broke off, and it is asked why.
    Broken,
    Finished,
}

struct FrameRelay<S, G> {
    upstream: Pin<Box<S>>,
    expiry: Pin<Box<Sleep>>,
    relay: Relay<G>,
    /// The beginning of a frame whose end has not come yet.
    tail: BytesMut,
    last: Last,
    ready: VecDeque<Bytes>,
    state: State,
}

impl<S, E, G> Stream for FrameRelay<S, G>
where
    S: Stream<Item = Result<Bytes, E>>,
    E: std::error::Error,
    G: Unpin,
{
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if this.state == State::Finished {
                return Poll::Ready(None);
            }
            if this.expiry.as_mut().poll(cx).is_ready() {
                let message = "the time for this request is over";
                this.end_with(ErrorDetail::new(ErrorCode::DeadlineExceeded, message));
                continue;
            }
            if this.state == State::Broken {
                let why = std::task::ready!(this.relay.broken.as_mut().poll(cx));
                this.end_with(why);
                continue;
            }
            match std::task::ready!(this.upstream.as_mut().poll_next(cx)) {
                Some(Ok(bytes)) => this.take(bytes),
                Some(Err(error)) => {
                    tracing::warn!(request_id = %this.relay.request_id, error = %error, "stream broke off");
                    this.breaks_off();
                }
                None => this.breaks_off(),
            }
        }
    }
}

impl<S, G> FrameRelay<S, G> {
    /// Forwards the whole frames of `bytes`, keeps the rest.
    fn take(&mut self, bytes: Bytes) {
        let whole = if self.tail.is_empty() && bytes.ends_with(b"\n\n") {
            bytes
        } else {
            self.tail.extend_from_slice(&bytes);
            match find_last_frame_end(&self.tail) {
                Some(end) => self.tail.split_to(end).freeze(),
                None if self.tail.len() > FRAME_BYTES_MAX => {
                    tracing::warn!(request_id = %self.relay.request_id, "the stream is not made of events");
                    self.breaks_off();
                    return;
                }
                None => return,
            }
        };
        self.last = if is_terminal(&whole) { Last::Terminal } else { Last::Event };
        self.ready.push_back(whole);
    }

    /// Passes nothing on any more; after the end of a stream nothing needs to be said.
    fn breaks_off(&mut self) {
        self.tail.clear();
        self.state = match self.last {
            Last::Terminal => State::Finished,
            Last::Event => State::Broken,
        };
    }

    fn end_with(&mut self, mut detail: ErrorDetail) {
        self.tail.clear();
        self.state = State::Finished;
        if self.last == Last::Terminal {
            return;
        }
        detail.request_id = Some(self.relay.request_id.to_string());
        self.ready.push_back(error_event(detail));
    }
}

/// Returns the position after the last blank line.
fn find_last_frame_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).rposition(|pair| pair == b"\n\n").map(|start| start + 2)
}

/// Says whether the last frame of `frames` ends a stream: `[DONE]` or an error.
fn is_terminal(frames: &[u8]) -> bool {
    let body = frames.strip_suffix(b"\n\n").unwrap_or(frames);
    let start = find_last_frame_end(body).unwrap_or(0);
    frames.ends_with(DONE_EVENT)
        || body.get(start..).is_some_and(|frame| frame.starts_with(b"data: {\"error\":"))
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::stream;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    use super::*;

    const WHOLE: &str = "data: {\"a\":1}\n\ndata: {\"b\":\"\u{1f41d}\"}\n\ndata: [DONE]\n\n";

    /// Known only a while after the end of the stream.
    fn broke_off() -> Pin<Box<dyn Future<Output = ErrorDetail> + Send>> {
        Box::pin(async {
            tokio::task::yield_now().await;
            let mut detail = ErrorDetail::new(ErrorCode::WorkerFailed, "the worker broke off");
            detail.details = Some(serde_json::json!({"cause": "killed"}));
            detail
        })
    }

    fn relayed(chunks: Vec<io::Result<Bytes>>) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let relay = Relay {
                request_id: "r-1".parse().unwrap(),
                broken: broke_off(),
                deadline: Deadline::after(std::time::Duration::from_secs(60)),
                guard: (),
            };
            let response = relay_events(stream::iter(chunks), relay);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            String::from_utf8(body.to_vec()).unwrap()
        })
    }

    fn cut(text: &[u8], at: &[usize]) -> Vec<io::Result<Bytes>> {
        let mut points: Vec<usize> = at.iter().map(|i| i % text.len()).collect();
        points.extend([0, text.len()]);
        points.sort_unstable();
        points.windows(2).map(|w| Ok(Bytes::copy_from_slice(&text[w[0]..w[1]]))).collect()
    }

    proptest! {
        #[test]
        fn a_whole_stream_arrives_unchanged_however_it_is_cut(at: Vec<usize>) {
            prop_assert_eq!(relayed(cut(WHOLE.as_bytes(), &at)), WHOLE);
        }

        #[test]
        fn a_stream_that_ends_early_ends_with_one_error_after_whole_frames(
            at: Vec<usize>, end in 0..WHOLE.len() - 1, fails: bool,
        ) {
            let mut chunks = cut(&WHOLE.as_bytes()[..end.max(1)], &at);
            if fails {
                chunks.push(Err(io::Error::other("reset")));
            }
            let seen = relayed(chunks);
            let frames: Vec<&str> = seen.split_terminator("\n\n").collect();
            let (last, before) = frames.split_last().unwrap();
            prop_assert!(last.contains("\"code\":\"worker_failed\""));
            prop_assert!(last.contains("\"cause\":\"killed\""));
            prop_assert!(last.contains("\"request_id\":\"r-1\""));
            let passed: String = before.iter().flat_map(|frame| [frame, "\n\n"]).collect();
            prop_assert!(WHOLE.starts_with(&passed));
            prop_assert!(!seen.contains("[DONE]"));
        }
    }

    #[test]
    fn an_error_event_of_the_next_hop_is_passed_on_and_not_doubled() {
        let text = "data: {\"a\":1}\n\ndata: {\"error\":{\"code\":\"x\"}}\n\n";
        assert_eq!(relayed(vec![Ok(text.into())]), text);
        assert_eq!(relayed(vec![Ok(text.into()), Err(io::Error::other("reset"))]), text);
    }

    #[test]
    fn a_frame_without_end_is_cut_off() {
        let chunk = Bytes::from(vec![b'x'; FRAME_BYTES_MAX / 2]);
        let seen = relayed(vec![Ok(chunk.clone()), Ok(chunk.clone()), Ok(chunk)]);
        assert!(seen.starts_with("data: {\"error\":"), "{}", &seen[..60]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_a_stream_that_says_nothing() {
        let relay = Relay {
            request_id: "r-1".parse().unwrap(),
            broken: broke_off(),
            deadline: Deadline::after(std::time::Duration::from_secs(5)),
            guard: (),
        };
        let silent = stream::pending::<io::Result<Bytes>>();
        let body = relay_events(silent, relay).into_body().collect().await.unwrap().to_bytes();
        assert!(body.starts_with(b"data: {\"error\":"));
        assert!(String::from_utf8_lossy(&body).contains("deadline_exceeded"));
    }
}
