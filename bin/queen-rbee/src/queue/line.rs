//! The requests that wait for one model, and in what order they get their
//! turns. The next turn goes to the key that has the fewest slots now, of equal
//! ones to the one whose last turn is longest ago, in the same way to one of
//! its users, and to that user's oldest request. As slots are held for as long
//! as a reply takes, equal slots are equal shares of the machine, however long
//! the replies are. Pure bookkeeping.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use auth_min::Fingerprint;
use tokio::time::Instant;

use super::Ticket;
use super::client::{Client, User};
use super::pace::Pace;

/// How long a request waits before turns are given by age alone, too.
const AGED_AFTER: Duration = Duration::from_secs(10);
/// Turns given by share for each one that is given by age: nobody waits for
/// ever while others keep coming who have fewer slots.
const TURNS_BY_SHARE: u32 = 3;

/// A request in the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    /// Grows with each arrival.
    pub(super) ticket: Ticket,
    pub(super) client: Client,
    pub(super) slots: u32,
    pub(super) bytes: u64,
    pub(super) arrived: Instant,
}

/// Where a client stood before its turn, to be put back there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    key: u64,
    user: u64,
}

/// What one key has, or one user of a key.
#[derive(Debug, Default)]
struct Share<T> {
    /// Slots it has now.
    slots: u32,
    /// When it had its last turn, or joined the round; counted in turns.
    since: u64,
    below: T,
}

type Users = BTreeMap<User, Share<VecDeque<Waiting>>>;

/// One model's line.
#[derive(Debug, Default)]
pub(super) struct Line {
    keys: BTreeMap<Fingerprint, Share<Users>>,
    /// Counts turns and arrivals of clients.
    clock: u64,
    by_share: u32,
    pub(super) pace: Pace,
}

impl Line {
    /// Puts a request where it belongs by its age among those of its client.
    pub(super) fn push(&mut self, waiting: Waiting) {
        self.clock += 1;
        let since = self.clock;
        let fresh_key = || Share { slots: 0, since, below: Users::new() };
        let fresh_user = || Share { slots: 0, since, below: VecDeque::new() };
        let key = self.keys.entry(waiting.client.key).or_insert_with(fresh_key);
        let user = key.below.entry(waiting.client.user).or_insert_with(fresh_user);
        let place = user.below.partition_point(|other| other.ticket < waiting.ticket);
        user.below.insert(place, waiting);
    }

    /// Takes a request out that waits.
    pub(super) fn remove(&mut self, client: Client, ticket: Ticket) -> Option<Waiting> {
        let user = self.user_mut(client)?;
        let place = user.below.iter().position(|waiting| waiting.ticket == ticket)?;
        let removed = user.below.remove(place);
        self.forget_idle(client);
        removed
    }

    /// Gives the next turn to a request for which `fits` finds something.
    pub(super) fn next<T>(
        &mut self,
        now: Instant,
        mut fits: impl FnMut(&Waiting) -> Option<T>,
    ) -> Option<(Waiting, Standing, T)> {
        let is_aged = |waiting: &&Waiting| now >= waiting.arrived + AGED_AFTER;
        let aged = self.oldest().filter(is_aged).filter(|_| self.by_share >= TURNS_BY_SHARE);
        let by_age = aged.and_then(|waiting| Some((*waiting, fits(waiting)?)));
        self.by_share = if by_age.is_some() { 0 } else { self.by_share };
        let (waiting, found) = match by_age {
            Some(next) => next,
            None => {
                let next = self.fairest(fits)?;
                self.by_share = self.by_share.saturating_add(1);
                next
            }
        };
        let standing = self.take(&waiting)?;
        Some((waiting, standing, found))
    }

    /// Takes back the turn of a request and puts it where it was.
    pub(super) fn put_back(&mut self, waiting: Waiting, standing: Standing) {
        self.ended(waiting.client, waiting.slots);
        self.push(waiting);
        if let Some(key) = self.keys.get_mut(&waiting.client.key) {
            key.since = key.since.min(standing.key);
            if let Some(user) = key.below.get_mut(&waiting.client.user) {
                user.since = user.since.min(standing.user);
            }
        }
    }

    /// Notes that a client has `slots` less.
    pub(super) fn ended(&mut self, client: Client, slots: u32) {
        if let Some(key) = self.keys.get_mut(&client.key) {
            key.slots = key.slots.saturating_sub(slots);
            if let Some(user) = key.below.get_mut(&client.user) {
                user.slots = user.slots.saturating_sub(slots);
            }
        }
        self.forget_idle(client);
    }

    /// Returns the request that goes so that one of `newcomer` can stay: the
    /// youngest of the user with the most waiting, of the key with the most,
    /// provided that the newcomer's then still have no more.
    pub(super) fn to_make_room(&self, newcomer: Client) -> Option<Waiting> {
        let mine = self.keys.get(&newcomer.key);
        let keys_waiting = mine.map_or(0, Share::waiting);
        let (key, share) = self.keys.iter().max_by_key(|(_, share)| share.waiting())?;
        if *key != newcomer.key && share.waiting() > keys_waiting + 1 {
            return share.youngest_of_most();
        }
        let mine = mine?;
        let users_waiting = mine.below.get(&newcomer.user).map_or(0, |share| share.below.len());
        let most = mine.below.values().map(|share| share.below.len()).max()?;
        if most > users_waiting + 1 { mine.youngest_of_most() } else { None }
    }

    /// Returns the request that goes when one too many waits.
    pub(super) fn to_give_way(&self) -> Option<Waiting> {
        self.keys.values().max_by_key(|share| share.waiting())?.youngest_of_most()
    }

    /// Returns how many slots are given away before a request of `client` that
    /// arrives now has its turn, if all who wait take turns.
    pub(super) fn ahead(&self, client: Client, slots: u32) -> u32 {
        let own_key = self.keys.get(&client.key);
        let own = own_key.and_then(|key| key.below.get(&client.user));
        let own = own.map_or(0, |user| slots_of(&user.below));
        let up_to = |limit: u32, slots: u32| slots.min(limit);
        let users = own_key.into_iter().flat_map(|key| &key.below);
        let others = users.filter(|(user, _)| **user != client.user);
        let within = others.map(|(_, user)| up_to(own + slots, slots_of(&user.below))).sum::<u32>();
        let within = own.saturating_add(within);
        let keys = self.keys.iter().filter(|(key, _)| **key != client.key);
        let others = keys.map(|(_, key)| up_to(within.saturating_add(slots), key.waiting_slots()));
        others.fold(within, u32::saturating_add)
    }

    /// Counts the requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.keys.values().map(Share::waiting).sum()
    }

    /// Counts the users who have requests waiting.
    pub(super) fn clients_waiting(&self) -> usize {
        self.keys.values().map(|key| key.users_waiting().count()).sum()
    }

    /// Counts the slots that those who wait will take.
    pub(super) fn waiting_slots(&self) -> u32 {
        self.keys.values().map(Share::waiting_slots).fold(0, u32::saturating_add)
    }

    /// Counts the slots that requests have.
    pub(super) fn slots(&self) -> u32 {
        self.keys.values().map(|key| key.slots).fold(0, u32::saturating_add)
    }

    /// Returns the request that has waited longest.
    pub(super) fn oldest(&self) -> Option<&Waiting> {
        let users = self.keys.values().flat_map(Share::users_waiting);
        users.filter_map(|(_, user)| user.below.front()).min_by_key(|waiting| waiting.ticket)
    }

    /// Says whether nobody waits and nobody has a slot.
    pub(super) fn is_idle(&self) -> bool {
        self.keys.is_empty()
    }

    fn fairest<T>(&self, mut fits: impl FnMut(&Waiting) -> Option<T>) -> Option<(Waiting, T)> {
        let mut keys: Vec<_> = self.keys.values().filter(|key| key.waiting() > 0).collect();
        keys.sort_unstable_by_key(|key| (key.slots, key.since));
        for key in keys {
            let mut users: Vec<_> = key.users_waiting().map(|(_, user)| user).collect();
            users.sort_unstable_by_key(|user| (user.slots, user.since));
            for waiting in users.into_iter().flat_map(|user| &user.below) {
                if let Some(found) = fits(waiting) {
                    return Some((*waiting, found));
                }
            }
        }
        None
    }

    /// Moves a request from those that wait to those that have slots.
    fn take(&mut self, waiting: &Waiting) -> Option<Standing> {
        self.clock += 1;
        let now = self.clock;
        let key = self.keys.get_mut(&waiting.client.key)?;
        let user = key.below.get_mut(&waiting.client.user)?;
        user.below.retain(|other| other.ticket != waiting.ticket);
        let standing = Standing { key: key.since, user: user.since };
        (key.since, user.since) = (now, now);
        key.slots = key.slots.saturating_add(waiting.slots);
        user.slots = user.slots.saturating_add(waiting.slots);
        Some(standing)
    }

    fn user_mut(&mut self, client: Client) -> Option<&mut Share<VecDeque<Waiting>>> {
        self.keys.get_mut(&client.key)?.below.get_mut(&client.user)
    }

    /// Who has nothing here is not known here, so that the line is never larger than its requests.
    fn forget_idle(&mut self, client: Client) {
        let Some(key) = self.keys.get_mut(&client.key) else { return };
        let is_idle = |user: &Share<VecDeque<Waiting>>| user.slots == 0 && user.below.is_empty();
        if key.below.get(&client.user).is_some_and(is_idle) {
            key.below.remove(&client.user);
        }
        if key.below.is_empty() {
            self.keys.remove(&client.key);
        }
    }
}

impl Share<Users> {
    fn users_waiting(&self) -> impl Iterator<Item = (&User, &Share<VecDeque<Waiting>>)> {
        self.below.iter().filter(|(_, user)| !user.below.is_empty())
    }

    fn waiting(&self) -> usize {
        self.below.values().map(|user| user.below.len()).sum()
    }

    fn waiting_slots(&self) -> u32 {
        self.below.values().map(|user| slots_of(&user.below)).fold(0, u32::saturating_add)
    }

    /// Of several users with equally many, the one who came last.
    fn youngest_of_most(&self) -> Option<Waiting> {
        let youngest = |user: &Share<VecDeque<Waiting>>| {
            user.below.back().map(|waiting| (user.below.len(), waiting.ticket, *waiting))
        };
        let most = self.below.values().filter_map(youngest);
        most.max_by_key(|(len, ticket, _)| (*len, *ticket)).map(|(_, _, waiting)| waiting)
    }
}

fn slots_of(waiting: &VecDeque<Waiting>) -> u32 {
    waiting.iter().map(|waiting| waiting.slots).fold(0, u32::saturating_add)
}
