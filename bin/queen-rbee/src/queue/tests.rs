//! Properties and tables of the queue.

use std::collections::BTreeMap;

use auth_min::TokenDigest;
use proptest::prelude::*;

use super::*;

const MODEL: &str = "tiny";

fn client(key: u8, user: u8) -> Client {
    let key = TokenDigest::of(&format!("key-{key}")).fingerprint();
    let user = format!("user-{user}");
    Client::new(key, (user != "user-0").then_some(&user))
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn limits(requests_max: usize) -> Limits {
    Limits { requests_max, bytes_max: 1_000, wait_max: seconds(600) }
}

fn arrival(client: Client) -> Arrival {
    Arrival { client, slots: 1, bytes: 1, remaining: seconds(600) }
}

const FULL: Capacity = Capacity { places: 4, has_room: false };
const COLD: Capacity = Capacity { places: 0, has_room: false };

/// A queue and what a test knows about it.
struct World {
    queue: Queue,
    now: Instant,
    waiting: BTreeMap<Ticket, Arrival>,
    running: BTreeMap<Ticket, Arrival>,
    ended: usize,
    entered: usize,
}

impl World {
    fn new(limits: Limits) -> Self {
        let (waiting, running) = (BTreeMap::new(), BTreeMap::new());
        let queue = Queue::new(limits);
        Self { queue, now: Instant::now(), waiting, running, ended: 0, entered: 0 }
    }

    fn enter(&mut self, arrival: Arrival, capacity: Capacity) -> Result<Ticket, Refusal> {
        let entered = self.queue.enter(MODEL, arrival, capacity, self.now)?;
        assert!(self.waiting.insert(entered.ticket, arrival).is_none(), "a ticket is given once");
        self.entered += 1;
        self.gave_way(entered.gave_way);
        Ok(entered.ticket)
    }

    fn gave_way(&mut self, gone: impl IntoIterator<Item = (Ticket, Refusal)>) {
        for (ticket, refusal) in gone {
            assert_eq!(refusal.reason, Reason::GaveWay);
            assert!(self.waiting.remove(&ticket).is_some(), "only one that waits gives way");
            self.ended += 1;
        }
    }

    fn next(&mut self) -> Option<Ticket> {
        let (ticket, slots) = self.queue.next(MODEL, self.now, |_, slots| Some(slots))?;
        let arrival = self.waiting.remove(&ticket).expect("one that waits has its turn");
        assert_eq!(slots, arrival.slots);
        self.running.insert(ticket, arrival);
        Some(ticket)
    }

    /// The client of the next turn.
    fn served(&mut self) -> Option<Client> {
        self.next().map(|ticket| self.running[&ticket].client)
    }

    fn leave(&mut self, ticket: Ticket) {
        let waited = self.waiting.remove(&ticket).is_some();
        assert_eq!(self.queue.leave(ticket), waited);
        assert!(!self.queue.leave(ticket), "nobody leaves twice");
        self.ended += usize::from(waited);
    }

    fn end(&mut self, ticket: Ticket) {
        self.queue.ended(ticket, self.now);
        self.ended += usize::from(self.running.remove(&ticket).is_some());
    }

    fn put_back(&mut self, ticket: Ticket) {
        let arrival = self.running.remove(&ticket).expect("one that runs");
        self.waiting.insert(ticket, arrival);
        let gone = self.queue.put_back(ticket, 4);
        self.gave_way(gone);
    }

    fn slots(&self, of: impl Fn(&Client) -> bool) -> u32 {
        self.running.values().filter(|arrival| of(&arrival.client)).map(|a| a.slots).sum()
    }

    /// What the queue says must be what the test counted.
    fn check(&self) {
        let held = self.waiting.values().chain(self.running.values());
        assert_eq!(self.queue.bytes(), held.map(|arrival| arrival.bytes).sum::<u64>());
        let state = self.queue.state();
        let line = state.first();
        assert_eq!(line.map_or(0, |line| line.waiting), self.waiting.len());
        assert_eq!(line.map_or(0, |line| line.slots), self.slots(|_| true));
        assert_eq!(self.entered, self.waiting.len() + self.running.len() + self.ended);
    }
}

#[derive(Debug, Clone)]
enum Event {
    Comes { key: u8, user: u8, slots: u32, bytes: u64, seconds: u64 },
    Turn,
    Ends(prop::sample::Index),
    IsPutBack(prop::sample::Index),
    Leaves(prop::sample::Index),
    TimePasses(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let index = any::<prop::sample::Index>;
    let event = prop_oneof![
        4 => (0..3_u8, 0..3_u8, 1..5_u32, 0..200_u64, 0..60_u64).prop_map(
            |(key, user, slots, bytes, seconds)| Event::Comes { key, user, slots, bytes, seconds }
        ),
        2 => Just(Event::Turn),
        2 => index().prop_map(Event::Ends),
        1 => index().prop_map(Event::IsPutBack),
        1 => index().prop_map(Event::Leaves),
        1 => (0..15_u64).prop_map(Event::TimePasses),
    ];
    prop::collection::vec(event, 0..200)
}

fn pick(index: &prop::sample::Index, from: &BTreeMap<Ticket, Arrival>) -> Option<Ticket> {
    (!from.is_empty()).then(|| *from.keys().nth(index.index(from.len())).expect("inside"))
}

proptest! {
    #[test]
    fn every_request_leaves_exactly_once_and_no_bound_is_passed(events in events()) {
        let (requests_max, bytes_max, places) = (6, 1_000, 4);
        let mut world = World::new(limits(requests_max));
        for event in events {
            match event {
                Event::Comes { key, user, slots, bytes, seconds: time } => {
                    let has_room = world.slots(|_| true) < places;
                    let at_once = has_room && world.waiting.is_empty();
                    let (client, remaining) = (client(key, user), seconds(time));
                    let came = Arrival { client, slots, bytes, remaining };
                    let entered = world.enter(came, Capacity { places, has_room });
                    if at_once {
                        prop_assert_eq!(world.next(), Some(entered.expect("it has its turn at once")));
                    } else if entered.is_ok() {
                        prop_assert!(world.queue.bytes() <= bytes_max);
                    }
                }
                Event::Turn => {
                    let waited = !world.waiting.is_empty();
                    prop_assert_eq!(world.next().is_some(), waited);
                }
                Event::Ends(index) => {
                    pick(&index, &world.running).into_iter().for_each(|ticket| world.end(ticket));
                }
                Event::IsPutBack(index) => {
                    pick(&index, &world.running).into_iter().for_each(|t| world.put_back(t));
                }
                Event::Leaves(index) => {
                    let all = world.waiting.iter().chain(&world.running);
                    let all = all.map(|(ticket, arrival)| (*ticket, *arrival)).collect();
                    pick(&index, &all).into_iter().for_each(|ticket| world.leave(ticket));
                }
                Event::TimePasses(time) => world.now += seconds(time),
            }
            prop_assert!(world.waiting.len() <= requests_max);
            world.check();
        }
        while world.next().is_some() {}
        for ticket in world.running.keys().copied().collect::<Vec<_>>() {
            world.end(ticket);
        }
        world.check();
        prop_assert_eq!(world.ended, world.entered);
        prop_assert_eq!(world.queue.bytes(), 0);
        prop_assert!(world.queue.state().is_empty() && world.queue.places.is_empty());
    }

    #[test]
    fn a_turn_goes_to_the_key_and_the_user_with_the_fewest_slots(events in events()) {
        let mut world = World::new(Limits { bytes_max: u64::MAX, ..limits(1_000) });
        for event in events {
            match event {
                Event::Comes { key, user, slots, .. } => {
                    let came = Arrival { slots, ..arrival(client(key, user)) };
                    world.enter(came, COLD).expect("there is room");
                }
                Event::Ends(index) => {
                    pick(&index, &world.running).into_iter().for_each(|ticket| world.end(ticket));
                }
                Event::Turn | Event::IsPutBack(_) | Event::Leaves(_) | Event::TimePasses(_) => {
                    let before: Vec<Client> = world.waiting.values().map(|a| a.client).collect();
                    let held: BTreeMap<Client, (u32, u32)> = before
                        .into_iter()
                        .map(|client| {
                            let key = world.slots(|other| other.key == client.key);
                            (client, (key, world.slots(|other| *other == client)))
                        })
                        .collect();
                    let oldest = |world: &World, client: Client| {
                        let mut all = world.waiting.iter().filter(|(_, a)| a.client == client);
                        all.next().map(|(ticket, _)| *ticket)
                    };
                    let expected: BTreeMap<Client, _> =
                        held.keys().map(|client| (*client, oldest(&world, *client))).collect();
                    let Some(ticket) = world.next() else { continue };
                    let client = world.running[&ticket].client;
                    prop_assert_eq!(expected[&client], Some(ticket), "the oldest of its client");
                    let (key, user) = held[&client];
                    prop_assert!(held.values().all(|(other, _)| key <= *other));
                    let same_key = held.iter().filter(|(other, _)| other.key == client.key);
                    prop_assert!(same_key.into_iter().all(|(_, (_, other))| user <= *other));
                }
            }
        }
    }

    #[test]
    fn with_one_slot_nobody_gets_a_second_turn_before_the_others_had_one(
        backlog in prop::collection::vec(1..40_usize, 2..8),
    ) {
        let mut world = World::new(Limits { bytes_max: u64::MAX, ..limits(1_000) });
        for (user, count) in (1..).zip(&backlog) {
            for _ in 0..*count {
                world.enter(arrival(client(0, user)), COLD).expect("there is room");
            }
        }
        let mut turns: BTreeMap<Client, usize> = BTreeMap::new();
        while let Some(ticket) = world.next() {
            *turns.entry(world.running[&ticket].client).or_default() += 1;
            world.end(ticket);
            let still: Vec<usize> =
                world.waiting.values().map(|a| turns.get(&a.client).copied().unwrap_or(0)).collect();
            let (least, most) = (still.iter().min(), turns.values().max());
            if let (Some(least), Some(most)) = (least, most) {
                prop_assert!(most - least <= 1, "{turns:?}");
            }
        }
    }
}

#[test]
fn equal_slots_are_given_to_those_with_long_and_with_short_replies() {
    let mut world = World::new(limits(1_000));
    let (long, short) = (client(0, 1), client(0, 2));
    for client in [long, short] {
        for _ in 0..50 {
            world.enter(arrival(client), COLD).unwrap();
        }
    }
    for _ in 0..8 {
        world.next().unwrap();
    }
    for _ in 0..30 {
        // All long replies go on; a short one ends, and its slot is given away again.
        let (ticket, _) = world.running.iter().find(|(_, a)| a.client == short).unwrap();
        world.end(*ticket);
        assert_eq!(world.served(), Some(short));
    }
    assert_eq!((world.slots(|c| *c == long), world.slots(|c| *c == short)), (4, 4));
}

#[test]
fn a_key_gets_no_more_by_naming_more_users() {
    let mut world = World::new(limits(1_000));
    for user in 1..100 {
        world.enter(arrival(client(1, user)), COLD).unwrap();
    }
    for _ in 0..10 {
        world.enter(arrival(client(2, 0)), COLD).unwrap();
    }
    for _ in 0..8 {
        world.next().unwrap();
    }
    assert_eq!(world.slots(|of| of.key == client(2, 0).key), 4);
}

#[test]
fn nobody_starves_behind_clients_that_keep_coming() {
    let mut world = World::new(limits(1_000));
    let regular = client(0, 1);
    world.enter(arrival(regular), COLD).unwrap();
    world.next().unwrap();
    world.enter(arrival(regular), COLD).unwrap();
    let mut turns = 0;
    for fresh in 2..=200 {
        world.now += seconds(1);
        world.enter(arrival(client(0, fresh)), COLD).unwrap();
        let ticket = world.next().unwrap();
        if world.running[&ticket].client == regular {
            turns = fresh - 1;
            break;
        }
        world.end(ticket);
    }
    // Ten seconds until it counts as old; then one turn of four goes by age.
    assert!((10..=14).contains(&turns), "{turns}");
}

#[test]
fn turns_by_age_do_not_undo_the_shares() {
    let mut world = World::new(limits(1_000));
    let (flood, other) = (client(0, 1), client(0, 2));
    for _ in 0..100 {
        world.enter(arrival(flood), COLD).unwrap();
    }
    world.now += seconds(60);
    for _ in 0..50 {
        world.enter(arrival(other), COLD).unwrap();
    }
    let mut turns = 0;
    for _ in 0..40 {
        let ticket = world.next().unwrap();
        turns += usize::from(world.running[&ticket].client == other);
        world.end(ticket);
    }
    assert!(turns >= 15, "of 40 turns the newcomer had {turns}");
}

#[test]
fn a_request_that_is_put_back_is_the_next_of_its_client_and_its_client_the_next() {
    for (one, two) in [(client(0, 1), client(0, 2)), (client(0, 1), client(1, 1))] {
        let mut world = World::new(limits(10));
        let first = world.enter(arrival(one), COLD).unwrap();
        world.enter(arrival(one), COLD).unwrap();
        world.enter(arrival(two), COLD).unwrap();
        assert_eq!(world.next(), Some(first));
        world.put_back(first);
        world.check();
        assert_eq!(world.next(), Some(first));
        assert_eq!(world.served(), Some(two));
    }
}

#[test]
fn in_a_full_line_the_client_with_most_makes_room() {
    let mut world = World::new(limits(4));
    let flood: Vec<_> = (0..4).map(|_| world.enter(arrival(client(0, 1)), COLD).unwrap()).collect();
    let refused = world.enter(arrival(client(0, 1)), COLD).unwrap_err();
    assert_eq!((refused.reason, refused.waiting), (Reason::Requests, 4));
    // Its newest gives way, until others have as many.
    for key in [0, 1] {
        world.enter(arrival(client(key, 2)), COLD).unwrap();
    }
    assert!(!world.waiting.contains_key(&flood[3]) && !world.waiting.contains_key(&flood[2]));
    assert_eq!(world.waiting.len(), 4);
    let refused = world.enter(arrival(client(0, 2)), COLD).unwrap_err();
    assert_eq!(refused.reason, Reason::Requests, "two and one are as even as they get");
    world.check();
}

#[test]
fn bytes_are_bounded_from_arrival_to_end() {
    let mut world = World::new(limits(100));
    let large = Arrival { bytes: 600, ..arrival(client(0, 0)) };
    let first = world.enter(large, FULL).unwrap();
    assert_eq!(world.enter(large, FULL).unwrap_err().reason, Reason::Bytes);
    world.next().unwrap();
    assert_eq!(world.enter(large, FULL).unwrap_err().reason, Reason::Bytes, "it may be put back");
    let at_once = world.enter(large, Capacity { places: 4, has_room: true });
    let at_once = at_once.expect("who does not wait is not refused");
    for ticket in [first, at_once] {
        world.end(ticket);
        world.leave(ticket);
    }
    world.enter(large, FULL).unwrap();
}

#[test]
fn large_requests_of_one_client_do_not_shut_the_others_out() {
    let mut world = World::new(limits(100));
    let sized = |of, bytes| Arrival { bytes, ..arrival(of) };
    let (flood, other) = (client(0, 1), client(0, 2));
    let large: Vec<_> = (0..5).map(|_| world.enter(sized(flood, 200), FULL).unwrap()).collect();
    assert_eq!(world.enter(sized(flood, 1), FULL).unwrap_err().reason, Reason::Bytes);
    world.enter(sized(other, 300), FULL).unwrap();
    let left: Vec<_> = world.waiting.keys().copied().filter(|t| large.contains(t)).collect();
    assert_eq!(left, large[..3], "the newest two gave way");
    // 600 and 300: another 300 would leave the first with less than the second.
    assert_eq!(world.enter(sized(other, 300), FULL).unwrap_err().reason, Reason::Bytes);
    world.enter(sized(other, 100), FULL).unwrap();
    assert_eq!(world.waiting.len(), 5);
    world.check();
}

#[test]
fn a_request_whose_turn_would_come_too_late_is_refused_at_once() {
    let mut world = World::new(Limits { wait_max: seconds(40), ..limits(1_000) });
    let someone = client(0, 0);
    let ticket = world.enter(arrival(someone), FULL).unwrap();
    world.next().unwrap();
    world.now += seconds(8);
    world.end(ticket);
    assert_eq!(world.queue.service(MODEL), Some(seconds(8)));
    // Four places of eight seconds each: a turn every two seconds.
    let with_time = |remaining| Arrival { remaining: seconds(remaining), ..arrival(someone) };
    for _ in 0..3 {
        world.enter(with_time(600), FULL).unwrap();
    }
    // The fourth in line waits eight seconds, taken as ten.
    for (remaining, expected) in [(600, true), (18, true), (17, false), (1, false)] {
        let asked = world.queue.enter(MODEL, with_time(remaining), FULL, world.now);
        assert_eq!(asked.is_ok(), expected, "{remaining}");
        match asked {
            Ok(entered) => assert!(world.queue.leave(entered.ticket)),
            Err(refusal) => {
                assert_eq!(refusal.reason, Reason::Time);
                assert_eq!(refusal.expected_wait, Some(seconds(8)));
                assert_eq!(refusal.retry_after, seconds(6), "when the three have had their turns");
            }
        }
    }
    // Somebody else shares the turns with the three and is served second.
    let other = Arrival { remaining: seconds(13), ..arrival(client(1, 0)) };
    world.enter(other, FULL).expect("two turns are four seconds");
    for _ in 0..12 {
        world.enter(with_time(3600), FULL).unwrap();
    }
    let refused = world.enter(with_time(3600), FULL).unwrap_err();
    assert_eq!(refused.reason, Reason::Time, "40 seconds are the most: {refused:?}");
    let idle = Capacity { places: 4, has_room: true };
    let mut fresh = World::new(limits(1));
    assert!(fresh.enter(with_time(0), idle).is_ok(), "who does not wait is not refused");
}

#[test]
fn clients_are_told_to_wait_for_one_second_to_two_minutes() {
    let mut world = World::new(limits(100_000));
    assert_eq!(world.queue.retry_after(MODEL, 4), seconds(1), "nothing is known");
    let ticket = world.enter(arrival(client(0, 0)), FULL).unwrap();
    world.next().unwrap();
    world.now += seconds(40);
    world.end(ticket);
    for (more, expected) in [(1, 10), (1, 20), (9, 110), (1, 120), (50, 120)] {
        for _ in 0..more {
            world.enter(arrival(client(0, 0)), COLD).unwrap();
        }
        assert_eq!(world.queue.retry_after(MODEL, 4), seconds(expected));
    }
}

#[test]
fn only_requests_that_fit_are_given_turns() {
    let mut world = World::new(limits(10));
    let first = world.enter(arrival(client(0, 1)), COLD).unwrap();
    let second = world.enter(arrival(client(0, 1)), COLD).unwrap();
    let not_the_first = |ticket: Ticket, _| (ticket != first).then_some(());
    assert_eq!(world.queue.next(MODEL, world.now, not_the_first), Some((second, ())));
    assert_eq!(world.queue.next(MODEL, world.now, not_the_first), None);
    assert_eq!(world.queue.models_waited_for().len(), 1);
    assert_eq!(world.queue.next("other", world.now, |_, _| Some(())), None);
}
