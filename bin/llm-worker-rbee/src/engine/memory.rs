//! Knows which tokens every slot and every state outside holds, and from that
//! where a new prompt is computed and what of it need not be computed again.
//! Bookkeeping only: the runner carries out what is decided here.

mod archive;
mod keeping;
mod placing;
mod store;
mod tree;

use std::sync::Arc;

use archive::Archive;
pub(crate) use archive::KeptId;
pub(crate) use keeping::{Displaced, Unsaved};
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
    /// Tokens of one prompt that are computed much faster together; 1 where
    /// no number of them is.
    pub(crate) tile_tokens: u32,
}

/// Tokens of depth at which the attention of one token, outside a tile, takes
/// about as long as all the rest of it.
pub(crate) const TILE_DEPTH: u16 = 1024;
/// Tokens that a copy must save: below, computing them costs no more.
const COPY_TOKENS_MIN: usize = 16;
/// Tokens more than elsewhere that a state on disk must hold to be read.
const READ_TOKENS_MIN: usize = 32;
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
    /// A state on disk holds it.
    Kept { id: KeptId, len: usize },
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

/// What all slots, stored states and kept ones hold.
#[derive(Debug)]
pub(crate) struct Memory {
    limits: MemoryLimits,
    slots: Vec<Held>,
    tree: PrefixTree<Holder>,
    store: Store,
    archive: Archive,
    /// Whether states on disk can be used now.
    has_disk: bool,
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
            archive: Archive::new(),
            has_disk: false,
            ticks: 0,
        }
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
        if self.has_disk
            && let Some(kept) = self.archive.longest(scope, wanted, self.limits.can_cut)
            && kept.len >= best_len + READ_TOKENS_MIN
        {
            best = Source::Kept { id: kept.id, len: kept.len };
            best_len = kept.len;
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
            let tile = self.limits.tile_tokens as usize;
            let missing = tile.saturating_sub(prompt_len - len);
            let slow = (prompt_len - len) * len > missing * usize::from(TILE_DEPTH);
            if self.limits.can_cut && slow { len.saturating_sub(missing) } else { len }
        };
        match source {
            Source::Nothing | Source::Later => source,
            Source::Here { len } => Source::Here { len: shorter(len) },
            Source::Slot { from, len } => Source::Slot { from, len: shorter(len) },
            Source::Stored { id, len } => Source::Stored { id, len: shorter(len) },
            Source::Kept { id, len } => Source::Kept { id, len: shorter(len) },
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

    /// Tokens of a prompt from which on they are computed in another way than
    /// one by one; 1 where any two are.
    pub(crate) fn tile_tokens(&self) -> u32 {
        self.limits.tile_tokens
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
}

#[cfg(test)]
mod tests;
