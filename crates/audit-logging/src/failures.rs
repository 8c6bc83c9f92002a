//! Failed credentials, counted by address and second, so that whoever tries many of them gets few entries. Owns the
//! counts; writes nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::event::{Actor, Event, Kind, Outcome};

/// Addresses that get an entry of their own within one second; those beyond share one.
const ADDRESSES_MAX: usize = 64;

/// The failures of the current second.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    second: i64,
    addresses: HashMap<(Option<IpAddr>, &'static str), Repeated>,
    others: u64,
}

/// Failures of one address after its first, and the last of them.
#[derive(Debug, Default)]
struct Repeated {
    count: u64,
    last: Option<Event>,
}

impl Failures {
    /// Takes a failure in. Returns it where it is the first of its address in this second; the others are told by
    /// [`Self::take_due`] once the second is over.
    pub(crate) fn add(&self, actor: Actor, event: Event, now: Timestamp) -> Vec<Event> {
        let mut window = self.lock();
        let mut due = window.close(now.as_second());
        let address = actor.address.map(|address| address.ip().to_canonical());
        let address = (address, event.kind().as_str());
        if let Some(repeated) = window.addresses.get_mut(&address) {
            repeated.count += 1;
            repeated.last = Some(event);
        } else if window.addresses.len() < ADDRESSES_MAX {
            window.addresses.insert(address, Repeated::default());
            due.push(event);
        } else {
            window.others += 1;
        }
        due
    }

    /// Returns what the seconds before `now` have left to be told.
    pub(crate) fn take_due(&self, now: Timestamp) -> Vec<Event> {
        self.lock().close(now.as_second())
    }

    /// Says whether something may have to be told once this second is over: further failures wake nobody.
    pub(crate) fn is_pending(&self) -> bool {
        !self.lock().addresses.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Begins a new second, and tells of the one before.
    fn close(&mut self, second: i64) -> Vec<Event> {
        if second == self.second {
            return Vec::new();
        }
        self.second = second;
        let repeated = self
            .addresses
            .drain()
            .filter_map(|(_, Repeated { count, last })| Some(last?.with_number("repeated", count)));
        let mut due: Vec<Event> = repeated.collect();
        let others = std::mem::take(&mut self.others);
        if others > 0 {
            let event = Event::new(Kind::AuthFailure, Outcome::Denied);
            due.push(event.with("reason", "many addresses").with_number("repeated", others));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::event::ActorKind;

    fn fail(failures: &Failures, address: u32, second: i64) -> usize {
        let address = SocketAddr::new(IpAddr::V4(address.into()), 1);
        let actor = Actor { kind: ActorKind::Unknown, key: None, address: Some(address) };
        let event = Event::new(Kind::AuthFailure, Outcome::Denied).by(actor);
        failures.add(actor, event, Timestamp::from_second(second).unwrap()).len()
    }

    #[test]
    fn one_address_gets_two_entries_a_second_however_often_it_tries() {
        let failures = Failures::default();
        let told: usize = (0..10_000).map(|_| fail(&failures, 1, 5)).sum();
        assert_eq!(told, 1);
        assert!(failures.is_pending());
        let due = failures.take_due(Timestamp::from_second(6).unwrap());
        assert_eq!(due.len(), 1);
        assert!(due[0].body("s").contains("\"repeated\":9999"), "{}", due[0].body("s"));
        assert!(!failures.is_pending());
        assert_eq!(failures.take_due(Timestamp::from_second(7).unwrap()).len(), 0);
    }

    #[test]
    fn many_addresses_get_a_bounded_number_of_entries() {
        let failures = Failures::default();
        let told: usize = (0..10_000).map(|address| fail(&failures, address, 5)).sum();
        assert_eq!(told, ADDRESSES_MAX);
        let due = failures.take_due(Timestamp::from_second(6).unwrap());
        assert_eq!(due.len(), 1);
        assert!(due[0].body("s").contains(&format!("\"repeated\":{}", 10_000 - ADDRESSES_MAX)));
    }

    #[test]
    fn addresses_that_fail_seldom_are_told_each_time() {
        let failures = Failures::default();
        let told: usize = (1..100).map(|second| fail(&failures, 1, second)).sum();
        assert_eq!(told, 99);
    }
}
