//! Passes the events of a pull from the hive to the client and guarantees that
//! they end with `done` or `failed`: a hive that breaks off becomes a `failed`
//! event. Never looks into what it passes on, its kind apart.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::PullEvent;
use rbee_http::json_event;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// A frame larger than this is not an event of a pull.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// The end of one server-sent event.
const FRAME_END: &[u8] = b"\n\n";

/// The events of one pull.
pub(crate) struct PullRelay<S> {
    upstream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The beginning of an event whose end has not come yet.
    partial: BytesMut,
    ready: VecDeque<Bytes>,
    is_over: bool,
    _counted: TaskTrackerToken,
}

impl<S> PullRelay<S> {
    /// `cut` ends it early, for a queen that cannot wait any longer.
    pub(crate) fn new(upstream: S, counted: TaskTrackerToken, cut: CancellationToken) -> Self {
        Self {
            upstream,
            cut: Box::pin(cut.cancelled_owned()),
            partial: BytesMut::new(),
            ready: VecDeque::new(),
            is_over: false,
            _counted: counted,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.partial.extend_from_slice(bytes);
        while !self.is_over
            && let Some(start) =
                self.partial.windows(FRAME_END.len()).position(|pair| pair == FRAME_END)
        {
            let frame = self.partial.split_to(start + FRAME_END.len()).freeze();
            self.is_over = is_last(&frame);
            self.ready.push_back(frame);
        }
        if self.partial.len() > FRAME_BYTES_MAX {
            self.fail("the hive sent something that is not an event of a pull");
        }
    }

    fn fail(&mut self, message: &str) {
        if !self.is_over {
            let error = ErrorDetail::new(ErrorCode::HiveUnreachable, message);
            // Serialising a struct of strings cannot fail.
            self.ready.extend(json_event(&PullEvent::Failed { error }).ok());
            self.is_over = true;
        }
    }
}

/// Says whether an event ends the pull.
fn is_last(frame: &[u8]) -> bool {
    let json = frame.strip_prefix(b"data:").unwrap_or_default();
    match serde_json::from_slice::<PullEvent>(json) {
        Ok(PullEvent::Done { .. } | PullEvent::Failed { .. }) => true,
        Ok(PullEvent::Progress { .. }) | Err(_) => false,
    }
}

impl<S, E> Stream for PullRelay<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::error::Error,
{
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if this.is_over {
                return Poll::Ready(None);
            }
            if this.cut.as_mut().poll(cx).is_ready() {
                this.fail("the queen is shutting down; pull again when it is back");
                continue;
            }
            match ready!(Pin::new(&mut this.upstream).poll_next(cx)) {
                Some(Ok(bytes)) => this.take(&bytes),
                Some(Err(error)) => {
                    tracing::warn!(error = %error, "pull broke off");
                    this.fail("the hive broke off; pull again");
                }
                None => this.fail("the hive broke off; pull again"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use futures_util::{StreamExt as _, stream};
    use tokio_util::task::TaskTracker;

    use super::*;

    const PROGRESS: &str = "data: {\"event\":\"progress\",\"done_bytes\":1,\"total_bytes\":2}\n\n";
    const FAILED: &str = "data: {\"event\":\"failed\",\"error\":{\"message\":\"m\",\"type\":\"api_error\",\
        \"code\":\"insufficient_disk\",\"param\":null,\"request_id\":null,\"retryable\":true,\"details\":null}}\n\n";

    async fn relay(pieces: Vec<io::Result<Bytes>>, cut: bool) -> String {
        let token = CancellationToken::new();
        if cut {
            token.cancel();
        }
        let relay = PullRelay::new(stream::iter(pieces), TaskTracker::new().token(), token);
        let events: Vec<_> = relay.map(|event| event.unwrap()).collect().await;
        String::from_utf8(events.concat()).unwrap()
    }

    fn pieces(text: &str, size: usize) -> Vec<io::Result<Bytes>> {
        text.as_bytes().chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect()
    }

    #[tokio::test]
    async fn whole_pulls_pass_unchanged_however_they_are_cut() {
        let whole = format!("{PROGRESS}{PROGRESS}{FAILED}");
        for size in 1..=whole.len() {
            assert_eq!(relay(pieces(&whole, size), false).await, whole);
        }
    }

    #[tokio::test]
    async fn a_break_becomes_one_failed_event_and_no_half_event_passes() {
        let torn = format!("{PROGRESS}data: {{\"event\":\"pro");
        let broken = [pieces(&torn, 7), vec![Err(io::Error::other("reset"))]];
        for upstream in [pieces(&torn, 7), broken.into_iter().flatten().collect(), Vec::new()] {
            let sent = relay(upstream, false).await;
            let last = sent.strip_prefix(PROGRESS).unwrap_or(&sent);
            assert!(last.starts_with("data: {\"event\":\"failed\""), "{sent}");
            assert_eq!(last.matches("data:").count(), 1, "{sent}");
        }
    }

    #[tokio::test]
    async fn a_queen_that_ends_says_so() {
        let sent = relay(vec![Ok(Bytes::from_static(PROGRESS.as_bytes()))], true).await;
        assert!(sent.contains("shutting down") && sent.contains("failed"), "{sent}");
    }
}
