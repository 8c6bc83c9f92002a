//! Knows which tokens every slot and every stored state holds, and from that
//! where a new prompt is computed and what of it need not be computed again.
//! Bookkeeping only: the runner carries out what is decided here.

mod store;
mod tree;

use std::sync::Arc;

use store::Store;
pub(crate) use store::StoredId;
use tree::{PrefixTree, shared_len};

/// Whose tokens may be shared: prompts of different scopes never meet, so that
/// the time a request takes tells nothing about somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Scope(pub(crate) [u8; 32]);

/// How slots lie in the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Each slot has memory of its own. Neighbours are computed together, so a
    /// gap between busy slots costs a pass over the weights.
    Split,
    /// All slots lie in one memory, and share the tokens they have in common.
    Unified,
}

/// What the context can do and may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryLimits {
    pub(crate) slots: u32,
    pub(crate) layout: Layout,
    /// Whether a slot can be cut back to fewer tokens.
    pub(crate) can_cut: bool,
    /// Most bytes of states outside the context.
    pub(crate) store_bytes_max: u64,
}

/// Tokens of one prompt from which on llama.cpp computes their attention in
/// tiles on a processor: many times faster than one by one.
pub(crate) const TILE: u32 = 64;
/// Tokens of depth at which the attention of one token, outside a tile, takes
/// about as long as all the rest of it.
const TILE_DEPTH: usize = 256;
/// Tokens that a copy must save: below, computing them costs no more.
const COPY_TOKENS_MIN: usize = 16;
/// Tokens that must be lost for a state to be stored.
const STORE_TOKENS_MIN: usize = 32;

/// Who holds a beginning of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Slot(u32),
    Stored(StoredId),
}

/// Where the beginning of a prompt comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// It must be computed.
    Nothing,
    /// The slot holds it already.
    Here { len: usize },
    /// Another slot holds it.
    Slot { from: u32, len: usize },
    /// A stored state holds it.
    Stored { id: StoredId, len: usize },
    /// Another slot is about to have computed more of it than there is now.
    Later,
}

/// What one slot holds.
#[derive(Debug)]
struct Held {
    scope: Scope,
    tokens: Vec<u32>,
    /// How many of them the tree knows.
    indexed: usize,
    busy: bool,
    /// The prompt that is being computed here.
    promise: Option<Arc<[u32]>>,
    /// When it was last busy, in ticks.
    used: u64,
}

/// What all slots and stored states hold.
#[derive(Debug)]
pub(crate) struct Memory {
    limits: MemoryLimits,
    slots: Vec<Held>,
    tree: PrefixTree<Holder>,
    store: Store,
    ticks: u64,
}

impl Memory {
    pub(crate) fn new(limits: MemoryLimits) -> Self {
        let empty = || Held {
            scope: Scope([0; 32]),
            tokens: Vec::new(),
            indexed: 0,
            busy: false,
            promise: None,
            used: 0,
        };
        Self {
            limits,
            slots: (0..limits.slots).map(|_| empty()).collect(),
            tree: PrefixTree::new(),
            store: Store::new(limits.store_bytes_max),
            ticks: 0,
        }
    }

    /// Chooses one of the slots that are not busy, and makes it busy.
    pub(crate) fn occupy(&mut self, scope: Scope, prompt: &[u32]) -> Option<u32> {
        let slot = match self.limits.layout {
            Layout::Unified => self.best_of(scope, prompt, |_| true),
            Layout::Split => self.neighbour_of_busy(scope, prompt),
        }?;
        self.held_mut(slot)?.busy = true;
        Some(slot)
    }

    /// Says where the beginning of `prompt` comes from when it is to be
    /// computed in `slot`. The last token is always computed, since the next
    /// one comes out of it.
    pub(crate) fn source(&self, slot: u32, scope: Scope, prompt: &[u32]) -> Source {
        let wanted = prompt.split_last().map_or(&[][..], |(_, rest)| rest);
        let here = self.held(slot).map_or(0, |held| self.usable(held, scope, wanted));
        let mut best = match here {
            0 => Source::Nothing,
            len => Source::Here { len },
        };
        let mut best_len = here;
        if let Some(found) = self.tree.longest(scope, wanted)
            && found.len >= here + COPY_TOKENS_MIN
            && let Some(source) = self.nearest(&found.holders, found.len)
        {
            best = source;
            best_len = found.len;
        }
        let promised = self.slots.iter().filter(|held| held.scope == scope);
        let promised = promised.filter_map(|held| held.promise.as_ref());
        let promised = promised.map(|promise| shared_len(promise, wanted)).max();
        if self.limits.can_cut && promised.is_some_and(|len| len >= best_len + COPY_TOKENS_MIN) {
            return Source::Later;
        }
        self.leave_a_tile(best, prompt.len())
    }

    /// Uses less of a long beginning where what is left would be too little
    /// for a tile, if computing a whole tile is faster.
    fn leave_a_tile(&self, source: Source, prompt_len: usize) -> Source {
        let shorter = |len: usize| {
            let tile = TILE as usize;
            let missing = tile.saturating_sub(prompt_len - len);
            let slow = (prompt_len - len) * len > missing * TILE_DEPTH;
            let can = self.limits.can_cut && self.limits.layout == Layout::Split;
            if can && slow { len.saturating_sub(missing) } else { len }
        };
        match source {
            Source::Nothing | Source::Later => source,
            Source::Here { len } => Source::Here { len: shorter(len) },
            Source::Slot { from, len } => Source::Slot { from, len: shorter(len) },
            Source::Stored { id, len } => Source::Stored { id, len: shorter(len) },
        }
    }

    /// Notes that `slot` holds the first `len` tokens of `prompt` and is going
    /// to hold all of it.
    pub(crate) fn begin(&mut self, slot: u32, scope: Scope, prompt: &Arc<[u32]>, len: usize) {
        self.forget(slot);
        if let Some(held) = self.held_mut(slot) {
            held.scope = scope;
            held.tokens.extend_from_slice(prompt.get(..len).unwrap_or_default());
            held.promise = Some(Arc::clone(prompt));
        }
        self.index(slot);
    }

    /// Notes that `slot` holds more tokens of its prompt.
    pub(crate) fn prefilled(&mut self, slot: u32, tokens: &[u32]) {
        self.extend(slot, tokens);
        self.index(slot);
        if let Some(held) = self.held_mut(slot)
            && held.promise.as_ref().is_some_and(|promise| promise.len() <= held.tokens.len())
        {
            held.promise = None;
        }
    }

    /// Notes that `slot` holds more tokens of its reply.
    pub(crate) fn extend(&mut self, slot: u32, tokens: &[u32]) {
        if let Some(held) = self.held_mut(slot) {
            held.tokens.extend_from_slice(tokens);
        }
    }

    /// Notes that nothing is computed in `slot` any more. What it holds stays.
    pub(crate) fn end(&mut self, slot: u32) {
        self.ticks += 1;
        let ticks = self.ticks;
        if let Some(held) = self.held_mut(slot) {
            held.busy = false;
            held.promise = None;
            held.used = ticks;
        }
        self.index(slot);
    }

    /// Notes that `slot` holds nothing any more.
    pub(crate) fn forget(&mut self, slot: u32) {
        let Some(held) = self.slots.get_mut(slot as usize) else { return };
        let indexed = held.tokens.get(..held.indexed).unwrap_or_default();
        self.tree.remove(held.scope, indexed, Holder::Slot(slot));
        held.tokens.clear();
        held.indexed = 0;
        held.promise = None;
    }

    /// Notes that what `from` held lies in `to` now, with the work on it.
    pub(crate) fn relocate(&mut self, from: u32, to: u32) {
        self.forget(to);
        let Some(held) = self.held(from) else { return };
        let (scope, promise) = (held.scope, held.promise.clone());
        let (tokens, busy, used) = (held.tokens.clone(), held.busy, held.used);
        self.forget(from);
        if let Some(held) = self.held_mut(from) {
            held.busy = false;
        }
        if let Some(held) = self.held_mut(to) {
            *held = Held { scope, tokens, indexed: 0, busy, promise, used };
        }
        self.index(to);
    }

    /// The busy slot that should move, and the free one it should move to, so
    /// that the busy ones become neighbours.
    pub(crate) fn gap(&self) -> Option<(u32, u32)> {
        if self.limits.layout == Layout::Unified || !self.limits.can_cut {
            return None;
        }
        let (first, last) = self.busy_range()?;
        let hole = (first..last).find(|slot| self.held(*slot).is_some_and(|held| !held.busy))?;
        Some((last, hole))
    }

    /// Slots that nothing is computed in but that hold tokens, the one that
    /// was used longest ago first.
    pub(crate) fn idle_slots(&self) -> Vec<u32> {
        let idle = (0_u32..).zip(&self.slots);
        let mut idle: Vec<(u64, u32)> = idle
            .filter(|(_, held)| !held.busy && !held.tokens.is_empty())
            .map(|(slot, held)| (held.used, slot))
            .collect();
        idle.sort_unstable();
        idle.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Whether a slot holds tokens that nobody else does, beyond the first `kept`.
    pub(crate) fn is_worth_storing(&self, slot: u32, kept: usize) -> bool {
        let Some(held) = self.held(slot) else { return false };
        if !self.store.is_on() || held.tokens.len() < kept + STORE_TOKENS_MIN {
            return false;
        }
        let found = self.tree.longest(held.scope, &held.tokens);
        let elsewhere = |holder: &Holder| *holder != Holder::Slot(slot);
        found.is_none_or(|found| {
            found.len < held.tokens.len() || !found.holders.iter().any(elsewhere)
        })
    }

    /// Keeps the state of a slot outside the context, as long as there is room.
    pub(crate) fn store(&mut self, slot: u32, state: Vec<u8>) {
        let Some(held) = self.slots.get(slot as usize) else { return };
        let (scope, tokens) = (held.scope, held.tokens.clone());
        let stored = self.store.insert(scope, tokens, state);
        for gone in stored.evicted {
            self.tree.remove(gone.scope, &gone.tokens, Holder::Stored(gone.id));
        }
        if let Some(id) = stored.id
            && let Some(kept) = self.store.get(id)
        {
            self.tree.insert(scope, &kept.tokens, Holder::Stored(id));
        }
    }

    /// The bytes of a stored state.
    pub(crate) fn stored(&mut self, id: StoredId) -> Option<&[u8]> {
        self.store.touch(id)
    }

    /// Forgets a stored state.
    pub(crate) fn discard(&mut self, id: StoredId) {
        if let Some(gone) = self.store.remove(id) {
            self.tree.remove(gone.scope, &gone.tokens, Holder::Stored(gone.id));
        }
    }

    /// Tokens that a stored state holds.
    pub(crate) fn stored_len(&self, id: StoredId) -> usize {
        self.store.get(id).map_or(0, |stored| stored.tokens.len())
    }

    /// Bytes of the states outside the context.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.store.bytes()
    }

    /// Tokens that a slot holds.
    pub(crate) fn len(&self, slot: u32) -> usize {
        self.held(slot).map_or(0, |held| held.tokens.len())
    }

    /// Tokens that all slots hold together.
    pub(crate) fn tokens_held(&self) -> usize {
        self.slots.iter().map(|held| held.tokens.len()).sum()
    }

    fn held(&self, slot: u32) -> Option<&Held> {
        self.slots.get(slot as usize)
    }

    fn held_mut(&mut self, slot: u32) -> Option<&mut Held> {
        self.slots.get_mut(slot as usize)
    }

    /// Tells the tree all that a slot holds.
    fn index(&mut self, slot: u32) {
        let Some(held) = self.slots.get_mut(slot as usize) else { return };
        if held.indexed < held.tokens.len() {
            let before = held.tokens.get(..held.indexed).unwrap_or_default();
            self.tree.remove(held.scope, before, Holder::Slot(slot));
            self.tree.insert(held.scope, &held.tokens, Holder::Slot(slot));
            held.indexed = held.tokens.len();
        }
    }

    /// The tokens of `wanted` that a slot can go on from.
    fn usable(&self, held: &Held, scope: Scope, wanted: &[u32]) -> usize {
        if held.scope != scope {
            return 0;
        }
        let len = shared_len(&held.tokens, wanted);
        if self.limits.can_cut || len == held.tokens.len() { len } else { 0 }
    }

    /// The holder to take from: a slot before a stored state.
    fn nearest(&self, holders: &[Holder], len: usize) -> Option<Source> {
        let whole = |holder: &&Holder| {
            let held = match holder {
                Holder::Slot(slot) => self.held(*slot).map_or(0, |held| held.tokens.len()),
                Holder::Stored(id) => self.stored_len(*id),
            };
            self.limits.can_cut || held == len
        };
        let mut usable = holders.iter().filter(whole);
        let is_slot = |holder: &&Holder| matches!(holder, Holder::Slot(_));
        let holder = usable.clone().find(is_slot).or_else(|| usable.next())?;
        Some(match holder {
            Holder::Slot(from) => Source::Slot { from: *from, len },
            Holder::Stored(id) => Source::Stored { id: *id, len },
        })
    }

    fn busy_range(&self) -> Option<(u32, u32)> {
        let mut busy = (0_u32..).zip(&self.slots).filter(|(_, held)| held.busy);
        let (first, _) = busy.next()?;
        Some((first, busy.last().map_or(first, |(last, _)| last)))
    }

    /// A free slot that makes no gap, if there is one: in a gap first, else
    /// beside the busy ones. Without anything busy every slot will do.
    fn neighbour_of_busy(&self, scope: Scope, prompt: &[u32]) -> Option<u32> {
        let Some((first, last)) = self.busy_range() else {
            return self.best_of(scope, prompt, |_| true);
        };
        self.best_of(scope, prompt, |slot| (first..last).contains(&slot))
            .or_else(|| self.best_of(scope, prompt, |slot| slot + 1 == first || slot == last + 1))
            .or_else(|| self.best_of(scope, prompt, |_| true))
    }

    /// Of the free slots wanted: one that holds nothing but a beginning of the
    /// prompt, else an empty one, else the one used longest ago.
    fn best_of(&self, scope: Scope, prompt: &[u32], wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let free = (0_u32..).zip(&self.slots);
        let free = free.filter(|(slot, held)| !held.busy && wanted(*slot));
        let rank = |held: &Held| {
            let goes_on = held.scope == scope && prompt.starts_with(&held.tokens);
            let shared = if goes_on { held.tokens.len() } else { 0 };
            let emptiness = u8::from(!held.tokens.is_empty());
            (std::cmp::Reverse(shared), emptiness, held.used)
        };
        free.min_by_key(|(_, held)| rank(held)).map(|(slot, _)| slot)
    }
}

#[cfg(test)]
mod tests;
