//! Who waits for a worker and whose turn is next: the queen's queue, a pure
//! function of what comes and goes and of the time. One line for each model,
//! bounded in requests, in bytes and by the time that requests have. Carries
//! nothing out and never waits; `turns.rs` does what is decided here.

mod client;
mod line;
mod pace;
pub(crate) mod rooms;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub(crate) use client::Client;
use line::{Line, Standing, Waiting};

/// Lines that are kept for their measured pace alone; beyond it, those are forgotten.
const LINES_MAX: usize = 256;
/// Longest time that a client is told to wait: what clients and proxies heed.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);
/// What it is told while nothing has been measured, and at least.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// Names a request from its arrival to its end; a later one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

/// What the queue may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Requests that wait for one model.
    pub(crate) requests_max: usize,
    /// Bytes of all requests from their arrival to their end: those that run
    /// are kept, too, as they may have to be sent again.
    pub(crate) bytes_max: u64,
    /// Longest wait that a request is let into, by what is measured.
    pub(crate) wait_max: Duration,
}

/// A request that comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) client: Client,
    pub(crate) slots: u32,
    pub(crate) bytes: u64,
    /// The time it has.
    pub(crate) remaining: Duration,
}

/// What the ready workers of a model can take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Slots' worth of requests that they are given at once.
    pub(crate) places: u32,
    /// Whether one of them has room now.
    pub(crate) has_room: bool,
}

/// Why a request may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// As many wait as may.
    Requests,
    /// The bodies of those that wait and run are as large as they may be.
    Bytes,
    /// Its turn would come too late.
    Time,
    /// It waited, and gave way to one of a client that had fewer waiting.
    GaveWay,
}

/// The answer to a request that may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// Requests that wait for the same model.
    pub(crate) waiting: usize,
    /// When its turn would have come, where that is known.
    pub(crate) expected_wait: Option<Duration>,
    /// When it is worth trying again.
    pub(crate) retry_after: Duration,
}

/// A request that is in, and those that had to go for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entered {
    pub(crate) ticket: Ticket,
    pub(crate) gave_way: Vec<(Ticket, Refusal)>,
}

/// One line as the status shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LineState {
    pub(crate) model: Arc<str>,
    pub(crate) waiting: usize,
    pub(crate) clients_waiting: usize,
    pub(crate) waiting_slots: u32,
    pub(crate) slots: u32,
    pub(crate) oldest: Option<Instant>,
    pub(crate) service: Option<Duration>,
}

/// Where a request is.
#[derive(Debug, Clone)]
enum Place {
    Waits { line: Arc<str>, client: Client, bytes: u64 },
    Runs { line: Arc<str>, waiting: Waiting, standing: Standing, since: Instant },
}

impl Place {
    fn waits(line: Arc<str>, waiting: &Waiting) -> Self {
        Self::Waits { line, client: waiting.client, bytes: waiting.bytes }
    }
}

/// The requests that wait, and those that had their turn and have not ended.
#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    lines: BTreeMap<Arc<str>, Line>,
    places: HashMap<Ticket, Place>,
    bytes: u64,
    tickets: u64,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, lines: BTreeMap::new(), places: HashMap::new(), bytes: 0, tickets: 0 }
    }

    /// Lets a request into the line for `model`, or refuses it at once. One
    /// that finds nobody waiting and a worker with room is always let in.
    ///
    /// # Errors
    /// The line is full, or the turn would come too late.
    pub(crate) fn enter(
        &mut self,
        model: &str,
        arrival: Arrival,
        capacity: Capacity,
        now: Instant,
    ) -> Result<Entered, Refusal> {
        let line = self.line(model);
        let at_once = capacity.has_room && self.waiting_in(&line) == 0;
        let gave_way =
            if at_once { Vec::new() } else { self.make_room(&line, arrival, capacity.places)? };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let Arrival { client, slots, bytes, .. } = arrival;
        let waiting = Waiting { ticket, client, slots, bytes, arrived: now };
        self.push(line, waiting);
        Ok(Entered { ticket, gave_way })
    }

    /// Takes out a request that waits, because its client left or its time is
    /// over; says whether it waited.
    pub(crate) fn leave(&mut self, ticket: Ticket) -> bool {
        let Some(Place::Waits { line, client, .. }) = self.places.get(&ticket).cloned() else {
            return false;
        };
        self.places.remove(&ticket);
        let removed = self.lines.get_mut(&line).and_then(|line| line.remove(client, ticket));
        self.bytes -= removed.map_or(0, |waiting| waiting.bytes);
        removed.is_some()
    }

    /// Gives the next turn in the line for `model` to a request for which
    /// `fits`, told its slots, finds a worker.
    pub(crate) fn next<T>(
        &mut self,
        model: &str,
        now: Instant,
        mut fits: impl FnMut(Ticket, u32) -> Option<T>,
    ) -> Option<(Ticket, T)> {
        let (name, _) = self.lines.get_key_value(model)?;
        let name = Arc::clone(name);
        let line = self.lines.get_mut(model)?;
        let (waiting, standing, found) =
            line.next(now, |waiting| fits(waiting.ticket, waiting.slots))?;
        let place = Place::Runs { line: name, waiting, standing, since: now };
        self.places.insert(waiting.ticket, place);
        Some((waiting.ticket, found))
    }

    /// Puts a request that had its turn for nothing back to where it was, and
    /// returns the one that has to go if now one too many waits.
    pub(crate) fn put_back(&mut self, ticket: Ticket, places: u32) -> Option<(Ticket, Refusal)> {
        let Some(Place::Runs { line, waiting, standing, .. }) = self.places.get(&ticket).cloned()
        else {
            return None;
        };
        self.lines.get_mut(&line)?.put_back(waiting, standing);
        self.places.insert(ticket, Place::waits(Arc::clone(&line), &waiting));
        let is_over = self.waiting_in(&line) > self.limits.requests_max;
        let last = self.lines.get(&line)?.to_give_way().filter(|_| is_over)?;
        self.leave(last.ticket);
        Some((last.ticket, self.refusal(&line, Reason::GaveWay, None, places)))
    }

    /// Notes that a request that had its turn has ended.
    pub(crate) fn ended(&mut self, ticket: Ticket, now: Instant) {
        if !matches!(self.places.get(&ticket), Some(Place::Runs { .. })) {
            return;
        }
        if let Some(Place::Runs { line, waiting, since, .. }) = self.places.remove(&ticket) {
            self.bytes -= waiting.bytes;
            if let Some(line) = self.lines.get_mut(&line) {
                line.ended(waiting.client, waiting.slots);
                line.pace.note(now.saturating_duration_since(since));
            }
        }
    }

    /// Returns the bytes of all requests that wait or run.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the models for which requests wait.
    pub(crate) fn models_waited_for(&self) -> Vec<Arc<str>> {
        let waited = self.lines.iter().filter(|(_, line)| line.oldest().is_some());
        waited.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Returns the mean time for which requests for `model` hold their slots.
    pub(crate) fn service(&self, model: &str) -> Option<Duration> {
        self.lines.get(model).and_then(|line| line.pace.service())
    }

    /// Returns how long it takes until all who wait for `model` had their turn.
    pub(crate) fn time_to_drain(&self, model: &str, places: u32) -> Option<Duration> {
        let line = self.lines.get(model)?;
        line.pace.wait(line.waiting_slots(), places)
    }

    /// Returns when one who waits for `model` in vain should try again.
    pub(crate) fn retry_after(&self, model: &str, places: u32) -> Duration {
        let drained = self.time_to_drain(model, places).unwrap_or(RETRY_AFTER_MIN);
        drained.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }

    /// Returns the lines in which requests wait or have slots.
    pub(crate) fn state(&self) -> Vec<LineState> {
        let busy = self.lines.iter().filter(|(_, line)| !line.is_idle());
        busy.map(|(model, line)| LineState {
            model: Arc::clone(model),
            waiting: line.waiting(),
            clients_waiting: line.clients_waiting(),
            waiting_slots: line.waiting_slots(),
            slots: line.slots(),
            oldest: line.oldest().map(|waiting| waiting.arrived),
            service: line.pace.service(),
        })
        .collect()
    }

    /// Checks the bounds. In a full line the newest request of the client with
    /// the most of them gives way to one of a client with fewer, and where the
    /// bytes are used up, the newest of the client with the most bytes waiting,
    /// so that nobody can shut the others out.
    fn make_room(
        &mut self,
        name: &Arc<str>,
        arrival: Arrival,
        places: u32,
    ) -> Result<Vec<(Ticket, Refusal)>, Refusal> {
        let refuse =
            |queue: &Self, reason, expected| Err(queue.refusal(name, reason, expected, places));
        let expected = self.expected_wait(name, arrival, places);
        if expected.is_some_and(|wait| self.is_too_late(name, wait, arrival.remaining)) {
            return refuse(self, Reason::Time, expected);
        }
        let Some(mut goes) = self.to_make_bytes(arrival) else {
            return refuse(self, Reason::Bytes, expected);
        };
        let goes_from_here = goes.iter().filter(|ticket| self.waits_in(name, **ticket)).count();
        if self.waiting_in(name) - goes_from_here >= self.limits.requests_max {
            let heaviest = self.lines.get(name).and_then(|line| line.to_make_room(arrival.client));
            match heaviest {
                Some(heaviest) => goes.push(heaviest.ticket),
                None => return refuse(self, Reason::Requests, expected),
            }
        }
        let refusal = self.refusal(name, Reason::GaveWay, None, places);
        let gone = goes.into_iter().filter(|ticket| self.leave(*ticket));
        Ok(gone.map(|ticket| (ticket, refusal)).collect())
    }

    /// Returns the requests that go so that the bytes of this one can stay, the
    /// newest of the client with the most bytes waiting, as long as that one
    /// then still has as many as the newcomer; `None` if that is not enough.
    fn to_make_bytes(&self, arrival: Arrival) -> Option<Vec<Ticket>> {
        let mut over =
            self.bytes.saturating_add(arrival.bytes).saturating_sub(self.limits.bytes_max);
        if over == 0 {
            return Some(Vec::new());
        }
        let mut clients: BTreeMap<Client, (u64, Vec<(Ticket, u64)>)> = BTreeMap::new();
        for (ticket, place) in &self.places {
            if let Place::Waits { client, bytes, .. } = place {
                let (sum, requests) = clients.entry(*client).or_default();
                *sum += bytes;
                requests.push((*ticket, *bytes));
            }
        }
        let mine = clients.get(&arrival.client).map_or(0, |(sum, _)| *sum) + arrival.bytes;
        let (mut theirs, mut requests) = clients.into_values().max_by_key(|(sum, _)| *sum)?;
        requests.sort_unstable();
        let mut goes = Vec::new();
        while over > 0 {
            let (ticket, bytes) = requests.pop()?;
            theirs = theirs.checked_sub(bytes).filter(|left| *left >= mine)?;
            over = over.saturating_sub(bytes);
            goes.push(ticket);
        }
        Some(goes)
    }

    fn expected_wait(&self, name: &Arc<str>, arrival: Arrival, places: u32) -> Option<Duration> {
        let line = self.lines.get(name)?;
        let ahead = line.ahead(arrival.client, arrival.slots);
        line.pace.wait(ahead.saturating_add(arrival.slots), places)
    }

    /// Says whether a request that waits so long would have too little time
    /// left: less than nearly all get by with. A quarter of its time may always
    /// be spent on waiting, since what others took says little about this one. The
    /// wait is taken a quarter longer than measured, so that those who are let
    /// in at the edge do not run out of time at their end.
    fn is_too_late(&self, name: &Arc<str>, wait: Duration, remaining: Duration) -> bool {
        let ample = self.lines.get(name).map_or(Duration::ZERO, |line| line.pace.ample());
        let may_wait = remaining.saturating_sub(ample).max(remaining / 4);
        wait.saturating_add(wait / 4) > may_wait.min(self.limits.wait_max)
    }

    fn refusal(
        &self,
        name: &Arc<str>,
        reason: Reason,
        expected_wait: Option<Duration>,
        places: u32,
    ) -> Refusal {
        let waiting = self.waiting_in(name);
        Refusal { reason, waiting, expected_wait, retry_after: self.retry_after(name, places) }
    }

    fn waits_in(&self, name: &Arc<str>, ticket: Ticket) -> bool {
        matches!(self.places.get(&ticket), Some(Place::Waits { line, .. }) if line == name)
    }

    fn waiting_in(&self, name: &Arc<str>) -> usize {
        self.lines.get(name).map_or(0, Line::waiting)
    }

    fn push(&mut self, line: Arc<str>, waiting: Waiting) {
        self.bytes += waiting.bytes;
        self.lines.entry(Arc::clone(&line)).or_default().push(waiting);
        self.places.insert(waiting.ticket, Place::waits(line, &waiting));
    }

    fn line(&mut self, model: &str) -> Arc<str> {
        if let Some((name, _)) = self.lines.get_key_value(model) {
            return Arc::clone(name);
        }
        if self.lines.len() >= LINES_MAX {
            self.lines.retain(|_, line| !line.is_idle());
        }
        let name: Arc<str> = model.into();
        self.lines.insert(Arc::clone(&name), Line::default());
        name
    }
}

#[cfg(test)]
mod tests;
