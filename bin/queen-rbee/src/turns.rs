//! Carries out what `queue.rs` decides: requests wait here until a worker has
//! room for them and it is their turn. Owns the queue's lock, and the guards
//! with which whatever was taken is given back, however a request ends.
//! Chooses no order; which worker is least loaded stands in `placement.rs`.

mod place;
mod refusal;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use input_validation::{ModelRef, NodeName, WorkerId};
use rbee_api::queen::QueueInfo;
use rbee_http::ApiError;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::cluster::Cluster;
use crate::placement::{Want, least_loaded, ready_workers};
use crate::queue::rooms::{Rooms, places};
use crate::queue::{Arrival, Capacity, Limits, Queue, Refusal, Ticket};
use crate::registry::{Load, Registry};
use crate::telemetry;
pub(crate) use place::{Place, PutBack};

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

/// A worker with room for a request, held until dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) hive: NodeName,
    pub(crate) worker: WorkerId,
    /// Whether the worker had a free slot for it, and so computed it at once.
    pub(crate) had_slot: bool,
    /// When it was given.
    pub(crate) since: Instant,
    slots: u32,
    // Given back in this order: what becomes free is dealt out by who has how much.
    seat: Seat,
    load: Load,
}

/// A client's share of a model's slots, held until dropped.
#[derive(Debug)]
struct Seat {
    turns: Arc<Turns>,
    worker: WorkerId,
    ticket: Option<Ticket>,
    /// Whether no other suspect is given to the worker meanwhile.
    is_apart: bool,
}

/// What is given to a request.
struct Given {
    hive: NodeName,
    worker: WorkerId,
    had_slot: bool,
    slots: u32,
    /// How long no other suspect is given to the worker.
    apart: Option<Duration>,
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
                    let apart = waiter.want.time_apart();
                    let found = least_loaded(&cluster, &waiter.want, |worker| {
                        let places = places(worker.slots_total, service);
                        let load = cluster.load_of(&worker.id);
                        rooms.has_room(&worker.id, load, places, now)
                            && (apart.is_none() || rooms.takes_suspect(&worker.id, now))
                    });
                    if found.is_none() && waiter.want.takes_any() {
                        full.insert(waiter.want.model().clone());
                    }
                    found.map(|(hive, worker)| Given {
                        hive: hive.name.clone(),
                        had_slot: cluster.load_of(&worker.id) + slots <= worker.slots_total,
                        worker: worker.id.clone(),
                        slots,
                        apart,
                    })
                });
                let Some((ticket, given)) = next else { break };
                let Given { hive, worker, had_slot, slots, apart } = given;
                if let Some(time) = apart {
                    rooms.suspect_comes(&worker, ticket, now + time);
                }
                let load = self.registry.load(&worker, slots);
                *cluster.load.entry(worker.clone()).or_insert(0) += slots;
                let seat = Seat {
                    turns: Arc::clone(self),
                    worker: worker.clone(),
                    ticket: Some(ticket),
                    is_apart: apart.is_some(),
                };
                let turn = Turn { hive, worker, had_slot, since: now, slots, seat, load };
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

impl Turn {
    /// Notes that the request got past what its worker before ended of, so that
    /// the next suspect may come.
    pub(crate) fn passed(&mut self) {
        if let Some(ticket) = self.seat.ticket
            && std::mem::take(&mut self.seat.is_apart)
        {
            self.seat.turns.lock().rooms.suspect_passed(&self.worker, ticket);
            self.seat.turns.registry.look_for_room();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.turns.lock();
            state.rooms.suspect_passed(&self.worker, ticket);
            state.queue.ended(ticket, Instant::now());
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
