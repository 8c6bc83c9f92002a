//! The connections of one server. Owns how many there may be, which of them
//! wait for a request, and which one has to go when there are too many: slow
//! and idle clients give way to new ones, requests never do.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// All connections of a server. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    permits: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
}

/// The connections without a request, in the order in which they began to wait.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    given_up: BTreeMap<u64, CancellationToken>,
}

impl Connections {
    pub(crate) fn new(max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(max)), waiting: Arc::default() }
    }

    /// Waits for room for one more, and makes it by giving up the connection that has waited longest.
    /// Where all of them are busy, it waits for one to end. Cancel safe.
    pub(crate) async fn enter(&self) -> Place {
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_full) => {
                self.give_up_one();
                // The semaphore is never closed.
                Arc::clone(&self.permits).acquire_owned().await.ok()
            }
        };
        let place = Place {
            seat: Arc::new(Seat {
                waiting: Arc::clone(&self.waiting),
                given_up: CancellationToken::new(),
                turn: Mutex::new(None),
                _permit: permit,
            }),
        };
        place.seat.wait();
        place
    }

    /// Gives up the connection that has waited longest, if one waits.
    pub(crate) fn give_up_one(&self) {
        if let Some((_, given_up)) = lock(&self.waiting).given_up.pop_first() {
            given_up.cancel();
        }
    }
}

/// The room of one connection, left when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    seat: Arc<Seat>,
}

#[derive(Debug)]
struct Seat {
    waiting: Arc<Mutex<Waiting>>,
    given_up: CancellationToken,
    /// Its key among those that wait; none while it is busy.
    turn: Mutex<Option<u64>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Seat {
    fn wait(&self) {
        let mut waiting = lock(&self.waiting);
        let turn = waiting.next;
        waiting.next += 1;
        waiting.given_up.insert(turn, self.given_up.clone());
        *lock(&self.turn) = Some(turn);
    }

    fn stop_waiting(&self) {
        if let Some(turn) = lock(&self.turn).take() {
            lock(&self.waiting).given_up.remove(&turn);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl Place {
    /// Keeps the connection from being given up until dropped.
    pub(crate) fn busy(&self) -> Busy {
        self.seat.stop_waiting();
        Busy { seat: Arc::clone(&self.seat) }
    }

    /// Does `work` to its end, or returns `None` when the connection is given up.
    pub(crate) async fn until_given_up<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.seat.given_up.run_until_cancelled(work).await
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Busy {
    seat: Arc<Seat>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.seat.wait();
    }
}

/// A reply's body that keeps its connection busy until it has been sent or dropped.
#[derive(Debug)]
pub(crate) struct Held {
    body: Body,
    _busy: Busy,
}

impl Held {
    pub(crate) fn new(body: Body, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt as _;

    use super::*;

    fn is_given_up(place: &Place) -> bool {
        place.until_given_up(pending::<()>()).now_or_never().is_some()
    }

    #[tokio::test]
    async fn the_one_that_waits_longest_gives_way_and_a_busy_one_never_does() {
        let connections = Connections::new(3);
        let first = connections.enter().await;
        let second = connections.enter().await;
        let third = connections.enter().await;
        let busy = first.busy();
        let mut fourth = Box::pin(connections.enter());
        assert!(fourth.as_mut().now_or_never().is_none(), "room is there when the other has gone");
        assert_eq!([&first, &second, &third].map(is_given_up), [false, true, false]);
        drop(second);
        let fourth = fourth.await;
        drop(busy);
        // The first has just begun to wait again: the third has waited longer.
        drop(connections.enter().now_or_never());
        assert_eq!([&first, &third, &fourth].map(is_given_up), [false, true, false]);
    }

    #[tokio::test]
    async fn where_all_are_busy_a_new_one_waits_for_the_end_of_one() {
        let connections = Connections::new(1);
        let only = connections.enter().await;
        let busy = only.busy();
        let mut next = Box::pin(connections.enter());
        assert!(next.as_mut().now_or_never().is_none());
        assert!(!is_given_up(&only));
        drop((busy, only));
        assert!(next.now_or_never().is_some());
    }

    #[tokio::test]
    async fn what_has_ended_is_forgotten() {
        let connections = Connections::new(2);
        for _ in 0..10 {
            let place = connections.enter().await;
            drop(place.busy());
            drop(place);
        }
        assert_eq!(lock(&connections.waiting).given_up.len(), 0);
        assert_eq!(connections.permits.available_permits(), 2);
    }
}
