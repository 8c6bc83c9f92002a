//! A request's place in the queue, from its arrival to its end: it waits there, and
//! comes back to it after a turn that was for nothing.

use std::sync::Arc;

use input_validation::ModelRef;
use rbee_http::ApiError;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Outcome, Turn, Turns, Waiter, refusal, tell};
use crate::app::draining;
use crate::placement::Want;
use crate::queue::Ticket;
use crate::telemetry;

/// A request's place in the queue; dropped while it waits, it leaves.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) turns: Arc<Turns>,
    pub(super) ticket: Ticket,
    pub(super) line: Arc<str>,
    pub(super) model: ModelRef,
    pub(super) since: Instant,
    pub(super) outcome: oneshot::Receiver<Outcome>,
}

/// Why a turn was for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PutBack {
    /// The worker has no room.
    WorkerIsFull,
    /// The worker failed.
    WorkerFailed,
    /// Nobody answered at the machine's address.
    MachineIsGone,
    /// The worker lives, and can be asked again.
    ConnectionBroke,
}

impl Place {
    /// Waits for the request's turn. Cancel safe: the place is kept.
    ///
    /// # Errors
    /// `queue_full` for one that had to give way, `draining` when the queen ends.
    pub(crate) async fn turn(&mut self) -> Result<Turn, ApiError> {
        match (&mut self.outcome).await {
            Ok(Ok(turn)) => {
                telemetry::queue_left(&self.line, self.since.elapsed());
                Ok(turn)
            }
            Ok(Err(refusal)) => Err(refusal::told(&refusal, &self.line)),
            Err(_) => Err(draining()),
        }
    }

    /// Puts the request back to where it was in the queue, after a turn that
    /// was for nothing, with what became of it so far.
    pub(crate) fn put_back(&mut self, turn: Turn, why: PutBack, want: &Want) {
        let now = Instant::now();
        let Turn { worker, slots, mut seat, load, .. } = turn;
        seat.ticket = None;
        drop(load);
        let (sender, outcome) = oneshot::channel();
        self.outcome = outcome;
        self.since = now;
        let mut state = self.turns.lock();
        let cluster = self.turns.registry.view();
        state.rooms.suspect_passed(&worker, self.ticket);
        match why {
            PutBack::WorkerIsFull => state.rooms.is_full(&worker, cluster.load_of(&worker), now),
            PutBack::WorkerFailed => state.rooms.failed(&worker, now),
            // The machine is checked before it gets anything.
            PutBack::MachineIsGone | PutBack::ConnectionBroke => {}
        }
        let places = state.capacity(&cluster, &self.line, &self.model, now).places;
        let (line, want) = (Arc::clone(&self.line), want.clone());
        tracing::debug!(worker_id = %worker, slots, ?why, "request put back into the queue");
        state.wait(self.ticket, Waiter { line, want, outcome: sender });
        let gone = state.queue.put_back(self.ticket, places);
        let mut news = state.gave_way(gone);
        news.extend(self.turns.deal_out(&mut state, cluster, now));
        drop(state);
        tell(news);
    }

    /// What the request is answered when its time is over before its turn.
    pub(crate) fn out_of_time(&self) -> ApiError {
        let state = self.turns.lock();
        let cluster = self.turns.registry.view();
        let places = state.capacity(&cluster, &self.line, &self.model, Instant::now()).places;
        let retry_after = state.queue.retry_after(&self.line, places);
        drop(state);
        refusal::out_of_time(&self.line, retry_after)
    }
}

/// A turn that was given and not taken is dropped with the channel after this, when the lock is free.
impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        if state.queue.leave(self.ticket) {
            drop(state.stop_waiting(self.ticket));
        }
    }
}
