//! Server-sent events from the queen, one typed value at a time. Owns their end: `[DONE]`, an error event, a limit on
//! size, the deadline. Never prints.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::{Stream, StreamExt as _};
use rbee_api::error::ErrorBody;
use serde::de::DeserializeOwned;
use sseer::EventStream;
use sseer::event::Event;

use crate::error::KeeperError;

/// An event larger than this is not one of ours; the queen relays none larger.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Broken>> + Send>>;

/// The connection broke, or sent something endless.
#[derive(Debug)]
struct Broken;

/// What came next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next<T> {
    /// An event.
    Event(T),
    /// `[DONE]`.
    Done,
    /// The connection ended without `[DONE]`.
    End,
}

/// Reads events off a reply.
pub(crate) struct EventReader {
    events: EventStream<Pieces>,
    /// Bytes that have come since the last whole event.
    pending: Arc<AtomicUsize>,
    deadline: Deadline,
    seconds: u64,
}

impl EventReader {
    /// `seconds` is the time the request was given, for the error that says it is over.
    pub(crate) fn new<S, E>(body: S, deadline: Deadline, seconds: u64) -> Self
    where
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    {
        let pending = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&pending);
        let pieces = body.map(move |piece| {
            let piece = piece.map_err(|_error| Broken)?;
            let so_far = counter.fetch_add(piece.len(), Ordering::Relaxed);
            if so_far > EVENT_BYTES_MAX { Err(Broken) } else { Ok(piece) }
        });
        Self { events: EventStream::new(Box::pin(pieces)), pending, deadline, seconds }
    }

    /// Waits for the next event. Cancel safe.
    ///
    /// # Errors
    /// [`KeeperError::Refused`] for an error event, [`KeeperError::TimedOut`], [`KeeperError::BrokenOff`], and
    /// [`KeeperError::Garbled`] for what is no `T`.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Next<T>, KeeperError> {
        match self.next_raw().await? {
            None => Ok(Next::End),
            Some(event) => parse(&event.data),
        }
    }

    /// Waits for the next event and leaves its data unparsed; `None` where the connection ended. Cancel safe.
    ///
    /// # Errors
    /// [`KeeperError::TimedOut`] and [`KeeperError::BrokenOff`].
    pub(crate) async fn next_raw(&mut self) -> Result<Option<Event>, KeeperError> {
        let event = tokio::time::timeout_at(self.deadline.instant(), self.events.next()).await;
        match event {
            Err(_elapsed) => Err(KeeperError::TimedOut { seconds: self.seconds }),
            Ok(None) => Ok(None),
            Ok(Some(Err(_broken))) => Err(KeeperError::BrokenOff),
            Ok(Some(Ok(event))) => {
                self.pending.store(0, Ordering::Relaxed);
                Ok(Some(event))
            }
        }
    }
}

fn parse<T: DeserializeOwned>(data: &str) -> Result<Next<T>, KeeperError> {
    if data == "[DONE]" {
        return Ok(Next::Done);
    }
    if let Ok(body) = serde_json::from_str::<ErrorBody>(data) {
        return Err(KeeperError::Refused(Box::new(body.error)));
    }
    serde_json::from_str(data).map(Next::Event).map_err(KeeperError::Garbled)
}

/// Reads a stream that comes in these pieces to its end or to the first error: each event as JSON text, then how it ended.
///
/// # Errors
/// [`std::io::Error`] when there can be no timer.
pub fn read_events(pieces: Vec<Bytes>) -> std::io::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    Ok(runtime.block_on(async {
        let body =
            futures_util::stream::iter(pieces.into_iter().map(Ok::<_, std::convert::Infallible>));
        let mut reader = EventReader::new(body, Deadline::after(Duration::from_secs(60)), 60);
        let mut read = Vec::new();
        loop {
            match reader.next::<serde_json::Value>().await {
                Ok(Next::Event(value)) => read.push(value.to_string()),
                Ok(Next::Done) => read.push("done".to_owned()),
                Ok(Next::End) => {
                    read.push("end".to_owned());
                    return read;
                }
                Err(error) => {
                    read.push(error.to_string());
                    return read;
                }
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    fn reader(pieces: Vec<&'static [u8]>) -> EventReader {
        let body = stream::iter(pieces).map(|p| Ok::<_, Infallible>(Bytes::from_static(p)));
        EventReader::new(body, Deadline::after(Duration::from_secs(60)), 60)
    }

    #[tokio::test]
    async fn events_come_whole_however_the_bytes_are_cut() {
        let text: &'static [u8] =
            "data: \"grü\"\n\n: ping\n\ndata: \"ß\"\r\n\r\ndata: [DONE]\n\n".as_bytes();
        for size in 1..text.len() {
            let mut events = reader(text.chunks(size).collect());
            let mut seen = Vec::new();
            while let Next::Event(word) = events.next::<String>().await.unwrap() {
                seen.push(word);
            }
            assert_eq!(seen, ["grü", "ß"], "cut every {size} bytes");
            assert_eq!(events.next::<String>().await.unwrap(), Next::End);
        }
    }

    #[tokio::test]
    async fn an_error_event_is_the_error_and_garbage_is_one_too() {
        let mut events = reader(vec![
            b"data: {\"error\":{\"message\":\"gone\",\"type\":\"api_error\",\"code\":\"worker_failed\",\"param\":null,\"request_id\":null,\"retryable\":true,\"details\":null}}\n\n",
            b"data: nonsense\n\n",
        ]);
        let refused = events.next::<String>().await.unwrap_err();
        assert!(matches!(refused, KeeperError::Refused(_)), "{refused}");
        let garbled = events.next::<String>().await.unwrap_err();
        assert!(matches!(garbled, KeeperError::Garbled(_)), "{garbled}");
    }

    #[tokio::test]
    async fn an_event_without_end_is_refused() {
        let endless =
            stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 4096])));
        let mut events = EventReader::new(endless, Deadline::after(Duration::from_secs(60)), 60);
        assert!(matches!(events.next::<String>().await, Err(KeeperError::BrokenOff)));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_with_the_deadline() {
        let silent = stream::pending::<Result<Bytes, Infallible>>();
        let mut events = EventReader::new(silent, Deadline::after(Duration::from_secs(3)), 3);
        assert!(matches!(events.next::<String>().await, Err(KeeperError::TimedOut { seconds: 3 })));
    }
}
