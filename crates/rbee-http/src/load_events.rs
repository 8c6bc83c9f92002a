//! How far a worker's load is, as a stream of events: one at once, one at each
//! change, and an end that tells what became of it. Knows no worker itself.

use std::convert::Infallible;

use axum::response::Response;
use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::{Stream, stream};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::worker::{LoadEvent, WorkerInfo};
use tokio::sync::watch;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use crate::sse::{event_stream_response, json_event};

/// When a stream of events has to end although the load goes on.
#[derive(Debug)]
pub struct LoadWatch {
    /// When the request's time is over.
    pub deadline: Deadline,
    /// Cancelled when the server is to end.
    pub stop: CancellationToken,
}

/// Answers with [`LoadEvent`]s. `look` tells the worker as it is now, `None`
/// once its row is gone; it is asked at each of `changes`.
pub fn load_events<C, L>(changes: watch::Receiver<C>, watch: LoadWatch, look: L) -> Response
where
    C: Send + Sync + 'static,
    L: FnMut() -> Option<WorkerInfo> + Send + 'static,
{
    event_stream_response(frames(Follower { changes, watch, look, last: None }))
}

struct Follower<C, L> {
    changes: watch::Receiver<C>,
    watch: LoadWatch,
    look: L,
    last: Option<LoadEvent>,
}

impl<C, L: FnMut() -> Option<WorkerInfo>> Follower<C, L> {
    /// Waits for the next event; `None` after the last one.
    async fn next(&mut self) -> Option<LoadEvent> {
        if self.last.as_ref().is_some_and(LoadEvent::is_last) {
            return None;
        }
        let event = loop {
            self.changes.mark_unchanged();
            let event = LoadEvent::of((self.look)());
            if self.last.as_ref() != Some(&event) {
                break event;
            }
            let change = timeout_at(self.watch.deadline.instant(), self.changes.changed());
            match self.watch.stop.run_until_cancelled(change).await {
                Some(Ok(Ok(()))) => {}
                Some(Err(_)) => {
                    let message = "the time for this request is over; the load goes on";
                    break failed(ErrorCode::DeadlineExceeded, message);
                }
                Some(Ok(Err(_))) | None => {
                    break failed(ErrorCode::Draining, "the server is shutting down");
                }
            }
        };
        self.last = Some(event.clone());
        Some(event)
    }
}

fn failed(code: ErrorCode, message: &str) -> LoadEvent {
    LoadEvent::Failed { error: ErrorDetail::new(code, message) }
}

fn frames<C, L>(follower: Follower<C, L>) -> impl Stream<Item = Result<Bytes, Infallible>>
where
    L: FnMut() -> Option<WorkerInfo>,
{
    stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        // An event is made of texts and numbers, which always have a form in JSON.
        Some((Ok(json_event(&event).unwrap_or_default()), follower))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn follower(stop: &CancellationToken) -> (watch::Sender<()>, LoadWatch) {
        let deadline = Deadline::after(Duration::from_secs(60));
        (watch::Sender::new(()), LoadWatch { deadline, stop: stop.clone() })
    }

    fn worker() -> WorkerInfo {
        serde_json::from_value(serde_json::json!({
            "id": "w-1", "model_ref": "file:/m.gguf", "alias": null, "backend": "echo",
            "device": "cpu", "url": "", "state": "starting", "slots_total": 0,
            "slots_available": 0, "pid": null, "started_at_ms": 1, "last_heartbeat_ms": null,
            "failure": null,
        }))
        .unwrap()
    }

    fn code(event: Option<LoadEvent>) -> Option<ErrorCode> {
        match event {
            Some(LoadEvent::Failed { error }) => Some(error.code),
            Some(LoadEvent::Progress { .. } | LoadEvent::Ready { .. }) | None => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_stands_still_ends_with_the_deadline_and_with_the_server() {
        let stop = CancellationToken::new();
        for (stops, expected) in [(false, ErrorCode::DeadlineExceeded), (true, ErrorCode::Draining)]
        {
            let (sender, watch) = follower(&stop);
            let mut follower = Follower {
                changes: sender.subscribe(),
                watch,
                look: || Some(worker()),
                last: None,
            };
            assert_eq!(follower.next().await, Some(LoadEvent::Progress { load_progress: 0.0 }));
            if stops {
                stop.cancel();
            }
            assert_eq!(code(follower.next().await), Some(expected));
            assert_eq!(follower.next().await, None);
        }
    }
}
