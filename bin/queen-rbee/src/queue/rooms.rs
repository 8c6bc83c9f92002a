//! How many requests a worker is given at once: its slots, a few more so that
//! none stands empty while the next request is on its way, and fewer for a
//! while after it said that it is full, or none after it failed. Of the requests that
//! workers may have ended of, one at a time. Takes `now`, never looks at a clock.

use std::collections::BTreeMap;
use std::time::Duration;

use input_validation::WorkerId;
use tokio::time::Instant;

use super::Ticket;

/// The time that the requests given ahead have to cover: a reply's way to the
/// queen and the next request's way to the worker, with some delay on both.
const ON_ITS_WAY: Duration = Duration::from_millis(20);
/// Shortest and longest time for which a worker that said it is full gets no
/// more than it had then; doubled each time that it says so again.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// How long a worker gets nothing that failed a request: until its machine has
/// told whether it is still there. Without it, all who wait would be sent into
/// the arms of a worker that has just ended.
const DOUBT: Duration = Duration::from_millis(250);

/// The workers that lately said they are full, or failed.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    ceilings: BTreeMap<WorkerId, Ceiling>,
    /// Until when workers get nothing.
    doubted: BTreeMap<WorkerId, Instant>,
    /// The suspect that a worker has, and until when it gets no other.
    suspects: BTreeMap<WorkerId, (Ticket, Instant)>,
}

#[derive(Debug, Clone, Copy)]
struct Ceiling {
    /// Slots that it had taken when it said so.
    slots: u32,
    pause: Duration,
    until: Instant,
}

/// Returns how many slots' worth of requests a worker with `slots` is given,
/// whose requests take `service` each. Those ahead of the slots are out of the
/// queue's order, so there are as few as keep the slots taken: what ends within
/// [`ON_ITS_WAY`], at least one for each eight slots, at most one for each.
pub(crate) fn places(slots: u32, service: Option<Duration>) -> u32 {
    let least = slots.div_ceil(8);
    let ahead = service.map_or(least, |service| {
        let ended = u128::from(slots) * ON_ITS_WAY.as_nanos();
        let ended = ended.div_ceil(service.as_nanos().max(1));
        u32::try_from(ended).unwrap_or(u32::MAX).clamp(least, slots)
    });
    slots.saturating_add(ahead)
}

impl Rooms {
    /// Says whether a worker that has `load` of `places` taken is given one
    /// more request. A request of several slots may go beyond the places: it
    /// would starve otherwise, and the worker's own queue has room for it.
    pub(crate) fn has_room(&self, worker: &WorkerId, load: u32, places: u32, now: Instant) -> bool {
        let is_doubted = self.doubted.get(worker).is_some_and(|until| now < *until);
        let ceiling = self.ceilings.get(worker).filter(|ceiling| now < ceiling.until);
        !is_doubted && load < ceiling.map_or(places, |ceiling| ceiling.slots.min(places))
    }

    /// Notes that `worker` had no room for a request beside `load` slots.
    pub(crate) fn is_full(&mut self, worker: &WorkerId, load: u32, now: Instant) {
        let recent = |ceiling: &Ceiling| now < ceiling.until + 2 * ceiling.pause;
        self.ceilings.retain(|_, ceiling| recent(ceiling));
        let pause = match self.ceilings.get(worker) {
            // Requests that were on their way together are one answer.
            Some(ceiling) if now < ceiling.until => ceiling.pause,
            Some(ceiling) => (2 * ceiling.pause).min(PAUSE_MAX),
            None => PAUSE_MIN,
        };
        let ceiling = Ceiling { slots: load, pause, until: now + pause };
        self.ceilings.insert(worker.clone(), ceiling);
    }

    /// Notes that `worker` failed a request.
    pub(crate) fn failed(&mut self, worker: &WorkerId, now: Instant) {
        self.doubted.retain(|_, until| now < *until);
        self.doubted.insert(worker.clone(), now + DOUBT);
    }

    /// Says whether `worker` can be given a request that one before it may have
    /// ended of: two of them at one worker, and it would not be known whose fault it is.
    pub(crate) fn takes_suspect(&self, worker: &WorkerId, now: Instant) -> bool {
        self.suspects.get(worker).is_none_or(|(_, until)| *until <= now)
    }

    /// Notes that `worker` is given a suspect, and no other before `until`.
    pub(crate) fn suspect_comes(&mut self, worker: &WorkerId, suspect: Ticket, until: Instant) {
        self.suspects.insert(worker.clone(), (suspect, until));
    }

    /// Notes that a suspect has got on, or has left `worker`.
    pub(crate) fn suspect_passed(&mut self, worker: &WorkerId, suspect: Ticket) {
        if self.suspects.get(worker).is_some_and(|(there, _)| *there == suspect) {
            self.suspects.remove(worker);
        }
    }

    /// Returns when the next worker may be tried again.
    pub(crate) fn next_try(&self, now: Instant) -> Option<Instant> {
        let ceilings = self.ceilings.values().map(|ceiling| ceiling.until);
        let suspects = self.suspects.values().map(|(_, until)| *until);
        let all = ceilings.chain(self.doubted.values().copied()).chain(suspects);
        all.filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_requests_are_given_ahead_of_the_slots() {
        let ms = Duration::from_millis;
        for (slots, service, expected) in [
            (0, None, 0),
            (1, None, 2),
            (8, None, 9),
            (9, None, 11),
            (64, Some(ms(10_000)), 72),
            (8, Some(ms(40)), 12),
            (8, Some(ms(1)), 16),
            (8, Some(Duration::ZERO), 16),
        ] {
            assert_eq!(places(slots, service), expected, "{slots} {service:?}");
        }
    }

    #[test]
    fn a_worker_gets_one_suspect_at_a_time() {
        let (id, other): (WorkerId, WorkerId) = ("w-1".parse().unwrap(), "w-2".parse().unwrap());
        let (mut rooms, now) = (Rooms::default(), Instant::now());
        let until = now + Duration::from_secs(1);
        rooms.suspect_comes(&id, Ticket(1), until);
        assert!(!rooms.takes_suspect(&id, now) && rooms.takes_suspect(&other, now));
        assert!(rooms.has_room(&id, 0, 9, now), "others are no suspects");
        assert_eq!(rooms.next_try(now), Some(until));
        assert!(rooms.takes_suspect(&id, until));
        rooms.suspect_comes(&id, Ticket(2), until);
        rooms.suspect_passed(&id, Ticket(1));
        assert!(!rooms.takes_suspect(&id, now), "another one is there");
        rooms.suspect_passed(&id, Ticket(2));
        assert!(rooms.takes_suspect(&id, now));
    }

    #[test]
    fn a_worker_that_failed_gets_nothing_until_more_is_known_of_it() {
        let (id, other): (WorkerId, WorkerId) = ("w-1".parse().unwrap(), "w-2".parse().unwrap());
        let (mut rooms, now) = (Rooms::default(), Instant::now());
        rooms.failed(&id, now);
        assert!(!rooms.has_room(&id, 0, 9, now) && rooms.has_room(&other, 0, 9, now));
        assert_eq!(rooms.next_try(now), Some(now + DOUBT));
        assert!(rooms.has_room(&id, 0, 9, now + DOUBT), "it lives, as it turned out");
        rooms.failed(&other, now + DOUBT);
        assert_eq!(rooms.doubted.len(), 1, "the past is forgotten");
    }

    #[test]
    fn a_worker_that_is_full_gets_no_more_for_a_while() {
        let (id, other): (WorkerId, WorkerId) = ("w-1".parse().unwrap(), "w-2".parse().unwrap());
        let mut rooms = Rooms::default();
        let mut now = Instant::now();
        assert!(rooms.has_room(&id, 8, 9, now) && !rooms.has_room(&id, 9, 9, now));
        rooms.is_full(&id, 4, now);
        assert!(!rooms.has_room(&id, 4, 9, now), "as full as it was");
        assert!(rooms.has_room(&id, 3, 9, now), "one of its requests has ended");
        assert!(rooms.has_room(&other, 8, 9, now));
        let until = rooms.next_try(now).unwrap();
        assert_eq!(until, now + PAUSE_MIN);
        now = until;
        assert!(rooms.has_room(&id, 8, 9, now) && rooms.next_try(now).is_none());
        rooms.is_full(&id, 4, now);
        assert_eq!(rooms.next_try(now), Some(now + 2 * PAUSE_MIN), "said again");
        for _ in 0..10 {
            now = rooms.next_try(now).unwrap();
            rooms.is_full(&id, 4, now);
        }
        assert_eq!(rooms.next_try(now), Some(now + PAUSE_MAX));
        now += 3 * PAUSE_MAX;
        rooms.is_full(&id, 4, now);
        assert_eq!(rooms.next_try(now), Some(now + PAUSE_MIN), "long forgotten");
    }
}
