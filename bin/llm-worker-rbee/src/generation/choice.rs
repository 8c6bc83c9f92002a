//! One of the replies of a request: its job in the engine, and what has come
//! from there and was not told yet.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;

use crate::engine::{End, Event};
use crate::scheduler::JobId;

/// Events taken from the engine at once, to be written together.
const EVENTS_AT_ONCE_MAX: usize = 16;

/// One job and its events.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) job: JobId,
    events: mpsc::Receiver<Event>,
    /// Events that have been received together and not yet returned.
    ready: VecDeque<Event>,
    received: Vec<Event>,
    has_ended: bool,
}

impl Choice {
    pub(super) fn new(job: JobId, events: mpsc::Receiver<Event>) -> Self {
        Self { job, events, ready: VecDeque::new(), received: Vec::new(), has_ended: false }
    }

    /// One whose end a client has, and of which nothing comes any more. Its job
    /// is one that the engine never gets.
    pub(super) fn ended(job: JobId) -> Self {
        let (_, events) = mpsc::channel(1);
        Self { has_ended: true, ..Self::new(job, events) }
    }

    /// Whether its end has been returned.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Takes no more events; the engine ends the job.
    pub(super) fn close(&mut self) {
        self.events.close();
    }

    /// Returns the next event, which may not be asked for after the end; `None`
    /// where the engine broke off without one.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ready.is_empty() {
            ready!(self.events.poll_recv_many(cx, &mut self.received, EVENTS_AT_ONCE_MAX));
            self.ready.extend(self.received.drain(..));
        }
        let event = self.ready.pop_front();
        self.has_ended = match &event {
            Some(Event::Text { .. } | Event::Replayed(_)) => false,
            Some(Event::End(End::Finished { .. } | End::Failed(_))) | None => true,
        };
        Poll::Ready(event)
    }
}
