//! Carries out what `queue.rs` decides: requests wait here until a worker has
//! room for them and it is their turn. Owns the queue's lock, and the guards
//! with which whatever was taken is given back, however a request ends.
//! Chooses no order; which worker is least loaded stands in `placement.rs`.

mod refusal;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use input_validation::{ModelRef, NodeName, WorkerId};
use rbee_api::queen::QueueInfo;
use rbee_http::ApiError;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::app::draining;
use crate::cluster::Cluster;
use crate::placement::{Want, least_loaded, ready_workers};
use crate::queue::rooms::{Rooms, places};
use crate::queue::{Arrival, Capacity, Limits, Queue, Refusal, Ticket};
use crate::registry::{Load, Registry};
use crate::telemetry;

/// How often the queue is looked at without a cause, so that nothing hangs on
/// one that was missed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The requests that wait for a worker, and those that have one.
#[derive(Debug)]
pub(crate) struct Turns {
    state: Mutex<State>,
    registry: Arc<Registry>,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    rooms: Rooms,
    waiters: HashMap<Ticket, Waiter>,
}

/// What becomes of a request that waits.
type Outcome = Result<Turn, Refusal>;
/// Outcomes to be told once the lock is free: one that nobody hears gives back
/// what it holds, which takes the lock.
type News = Vec<(oneshot::Sender<Outcome>, Outcome)>;

#[derive(Debug)]
struct Waiter {
    line: Arc<str>,
    want: Want,
    outcome: oneshot::Sender<Outcome>,
}

/// A request's place in the queue; dropped while it waits, it leaves.
#[derive(Debug)]
pub(crate) struct Place {
    turns: Arc<Turns>,
    ticket: Ticket,
    line: Arc<str>,
    model: ModelRef,
    since: Instant,
    outcome: oneshot::Receiver<Outcome>,
}

/// A worker with room for a request, held until dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) hive: NodeName,
    pub(crate) worker: WorkerId,
    slots: u32,
    // Given back in this order: what becomes free is dealt out by who has how much.
    seat: Seat,
    load: Load,
}

/// A client's share of a model's slots, held until dropped.
#[derive(Debug)]
struct Seat {
    turns: Arc<Turns>,
    ticket: Option<Ticket>,
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
}

impl Turns {
    pub(crate) fn new(limits: Limits, registry: Arc<Registry>) -> Arc<Self> {
        let (queue, rooms) = (Queue::new(limits), Rooms::default());
        let state = Mutex::new(State { queue, rooms, waiters: HashMap::new() });
        Arc::new(Self { state, registry })
    }

    /// Lets a request into the queue of its model; where a worker has room and
    /// nobody waits, it has its turn at once.
    ///
    /// # Errors
    /// `queue_full` where no more may wait, `all_slots_busy` for one whose turn
    /// would come too late.
    pub(crate) fn enter(
        self: &Arc<Self>,
        want: &Want,
        arrival: Arrival,
    ) -> Result<Place, ApiError> {
        let (now, model) = (Instant::now(), want.model());
        let mut state = self.lock();
        let cluster = self.registry.view();
        let line: Arc<str> = cluster.line_of(model).into();
        let capacity = state.capacity(&cluster, &line, model, now);
        let entered = match state.queue.enter(&line, arrival, capacity, now) {
            Ok(entered) => entered,
            Err(refusal) => {
                drop(state);
                return Err(refusal::told(&refusal, &line));
            }
        };
        let mut news = state.gave_way(entered.gave_way);
        let (sender, outcome) = oneshot::channel();
        let waiter = Waiter { line: Arc::clone(&line), want: want.clone(), outcome: sender };
        state.wait(entered.ticket, waiter);
        news.extend(self.deal_out(&mut state, cluster, now));
        drop(state);
        tell(news);
        let (turns, ticket, model) = (Arc::clone(self), entered.ticket, model.clone());
        Ok(Place { turns, ticket, line, model, since: now, outcome })
    }

    /// Deals out turns whenever room may have come, until dropped.
    pub(crate) async fn keep_dealing(self: Arc<Self>) {
        let mut changes = self.registry.subscribe();
        loop {
            let now = Instant::now();
            let next_try = self.lock().rooms.next_try(now).unwrap_or(now + LOOK_AGAIN);
            tokio::select! {
                () = self.registry.load_fell() => {}
                // The registry outlives this task, so the end of changes is not seen.
                _ = changes.changed() => {}
                () = sleep_until(next_try.min(now + LOOK_AGAIN)) => {}
            }
            let now = Instant::now();
            let mut state = self.lock();
            let cluster = self.registry.view();
            let news = self.deal_out(&mut state, cluster, now);
            drop(state);
            tell(news);
        }
    }

    /// Returns the queue as the status shows it: the models for which requests
    /// wait or run.
    pub(crate) fn infos(&self) -> Vec<QueueInfo> {
        let now = Instant::now();
        let state = self.lock();
        let cluster = self.registry.view();
        let lines = state.queue.state();
        let infos = lines.into_iter().map(|line| {
            let known = line.model.parse::<ModelRef>().ok();
            let capacity = known.map(|model| state.capacity(&cluster, &line.model, &model, now));
            let places = capacity.unwrap_or_default().places;
            QueueInfo {
                requests_waiting: count(line.waiting),
                clients_waiting: count(line.clients_waiting),
                slots_wanted: line.waiting_slots,
                slots_taken: line.slots,
                oldest_wait_ms: line.oldest.map(|at| ms(now.saturating_duration_since(at))),
                service_ms: line.service.map(ms),
                drain_ms: state.queue.time_to_drain(&line.model, places).map(ms),
                model: line.model.to_string(),
            }
        });
        infos.collect()
    }

    /// Returns the bytes of the requests that wait and run.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().queue.bytes()
    }

    /// Gives turns to those whose turn it is, as long as workers have room.
    fn deal_out(self: &Arc<Self>, state: &mut State, mut cluster: Cluster, now: Instant) -> News {
        let mut news = News::new();
        for line in state.queue.models_waited_for() {
            let service = state.queue.service(&line);
            let mut full = HashSet::new();
            loop {
                let State { queue, rooms, waiters } = &mut *state;
                let next = queue.next(&line, now, |ticket, slots| {
                    let waiter = waiters.get(&ticket)?;
                    if full.contains(waiter.want.model()) {
                        return None;
                    }
                    let found = least_loaded(&cluster, &waiter.want, |worker| {
                        let places = places(worker.slots_total, service);
                        let load = cluster.load_of(&worker.id);
                        rooms.has_room(&worker.id, load, places, now)
                    });
                    if found.is_none() && waiter.want.takes_any() {
                        full.insert(waiter.want.model().clone());
                    }
                    found.map(|(hive, worker)| (hive.name.clone(), worker.id.clone(), slots))
                });
                let Some((ticket, (hive, worker, slots))) = next else { break };
                let load = self.registry.load(&worker, slots);
                *cluster.load.entry(worker.clone()).or_insert(0) += slots;
                let seat = Seat { turns: Arc::clone(self), ticket: Some(ticket) };
                let turn = Turn { hive, worker, slots, seat, load };
                news.extend(state.stop_waiting(ticket).map(|waiter| (waiter.outcome, Ok(turn))));
            }
        }
        news
    }

    /// A panic elsewhere leaves no state half-written: each change is one assignment after another.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn capacity(&self, cluster: &Cluster, line: &str, model: &ModelRef, now: Instant) -> Capacity {
        let service = self.queue.service(line);
        let mut capacity = Capacity::default();
        for (_, worker) in ready_workers(cluster, model) {
            let places = places(worker.slots_total, service);
            let load = cluster.load_of(&worker.id);
            capacity.places = capacity.places.saturating_add(places);
            capacity.has_room |= self.rooms.has_room(&worker.id, load, places, now);
        }
        capacity
    }

    fn wait(&mut self, ticket: Ticket, waiter: Waiter) {
        telemetry::queue_grew(&waiter.line);
        self.waiters.insert(ticket, waiter);
    }

    fn stop_waiting(&mut self, ticket: Ticket) -> Option<Waiter> {
        let waiter = self.waiters.remove(&ticket)?;
        telemetry::queue_shrank(&waiter.line);
        Some(waiter)
    }

    fn gave_way(&mut self, gone: impl IntoIterator<Item = (Ticket, Refusal)>) -> News {
        let told = gone.into_iter().filter_map(|(ticket, refusal)| {
            Some((self.stop_waiting(ticket)?.outcome, Err(refusal)))
        });
        told.collect()
    }
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
        match why {
            PutBack::WorkerIsFull => state.rooms.is_full(&worker, cluster.load_of(&worker), now),
            PutBack::WorkerFailed => state.rooms.failed(&worker, now),
            // The machine is checked before it gets anything.
            PutBack::MachineIsGone => {}
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

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.turns.lock().queue.ended(ticket, Instant::now());
        }
    }
}

fn tell(news: News) {
    for (waiter, outcome) in news {
        // Nobody listens where the client has just left; what comes back is given back here.
        drop(waiter.send(outcome));
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
