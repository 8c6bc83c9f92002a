//! What lies outside the context: states in the worker's own memory, and
//! states on disk. Says what is worth a place there; moves nothing.

use std::sync::Arc;

use super::archive::KeptId;
use super::store::StoredId;
use super::{Holder, Memory, STORE_TOKENS_MIN, Scope};

/// A state that has left the worker's memory, or found no room there.
#[derive(Debug)]
pub(crate) struct Displaced {
    pub(crate) scope: Scope,
    pub(crate) tokens: Vec<u32>,
    pub(crate) state: Arc<Vec<u8>>,
}

/// What is not on disk yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsaved {
    Slot(u32),
    Stored(StoredId),
}

/// A state that is to be written to disk: its name, and those it replaces.
#[derive(Debug)]
pub(crate) struct Keeping {
    pub(crate) id: KeptId,
    pub(crate) replaces: Vec<KeptId>,
}

impl Memory {
    /// Whether a slot holds tokens that nobody else does, beyond the first `kept`.
    pub(crate) fn is_worth_storing(&self, slot: u32, kept: usize) -> bool {
        let Some(held) = self.held(slot) else { return false };
        if held.tokens.len() < kept + STORE_TOKENS_MIN {
            return false;
        }
        let has_room =
            self.store.is_on() || self.has_disk && !self.is_settled(held.scope, &held.tokens);
        let found = self.tree.longest(held.scope, &held.tokens);
        let elsewhere = |holder: &Holder| *holder != Holder::Slot(slot);
        has_room
            && found.is_none_or(|found| {
                found.len < held.tokens.len() || !found.holders.iter().any(elsewhere)
            })
    }

    /// Keeps the state of a slot outside the context, as long as there is room,
    /// and returns what there is no room for.
    pub(crate) fn store(&mut self, slot: u32, state: Vec<u8>) -> Vec<Displaced> {
        let Some(held) = self.slots.get(slot as usize) else { return Vec::new() };
        let (scope, tokens) = (held.scope, held.tokens.clone());
        let stored = self.store.insert(scope, tokens, state);
        for gone in &stored.evicted {
            self.tree.remove(gone.scope, &gone.tokens, Holder::Stored(gone.id));
        }
        if let Some(id) = stored.id
            && let Some(kept) = self.store.get(id)
        {
            self.tree.insert(scope, &kept.tokens, Holder::Stored(id));
        }
        let displaced = stored.evicted.into_iter().chain(stored.refused);
        displaced
            .map(|gone| Displaced { scope: gone.scope, tokens: gone.tokens, state: gone.state })
            .collect()
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

    /// Says whether states on disk can be used now.
    pub(crate) fn set_disk(&mut self, has_disk: bool) {
        self.has_disk = has_disk;
    }

    /// Notes that a state lies on disk.
    pub(crate) fn found_kept(&mut self, id: KeptId, scope: Scope, tokens: Vec<u32>) {
        self.archive.insert(id, scope, tokens);
    }

    /// Notes that a state is being written to disk.
    pub(crate) fn begin_keeping(&mut self, scope: Scope, tokens: &[u32]) -> Keeping {
        let id = KeptId::of(scope, tokens);
        // A state that cannot be cut back does not serve for its beginnings.
        let replaces = match self.limits.can_cut {
            true => self.archive.continued_by(scope, tokens),
            false => Vec::new(),
        };
        self.archive.begin(id, scope, tokens.to_vec());
        Keeping { id, replaces }
    }

    /// Notes that a state has been written.
    pub(crate) fn keeping_done(&mut self, id: KeptId) {
        self.archive.complete(id);
    }

    /// Notes that a state has not been written.
    pub(crate) fn keeping_failed(&mut self, id: KeptId) {
        self.archive.fail(id);
    }

    /// Notes that a state is too big to be written.
    pub(crate) fn keeping_refused(&mut self, id: KeptId) {
        self.archive.refuse(id);
    }

    /// Notes that a state does not lie on disk any more.
    pub(crate) fn forget_kept(&mut self, id: KeptId) {
        self.archive.remove(id);
    }

    /// States on disk that can be used.
    pub(crate) fn kept_len(&self) -> usize {
        self.archive.len()
    }

    /// Whether all of `tokens` can be had from disk, or soon, or never.
    pub(crate) fn is_settled(&self, scope: Scope, tokens: &[u32]) -> bool {
        self.archive.is_settled(scope, tokens, self.limits.can_cut)
    }

    /// What should be written to disk next: slots that are not busy before
    /// stored states, and what was used last before the rest.
    pub(crate) fn unsaved(&self) -> Option<Unsaved> {
        let is_unsaved = |scope: Scope, tokens: &[u32]| {
            tokens.len() >= STORE_TOKENS_MIN && !self.is_settled(scope, tokens)
        };
        let mut slots = self.idle_slots().into_iter().rev();
        let slot = slots
            .find(|slot| self.held(*slot).is_some_and(|held| is_unsaved(held.scope, &held.tokens)));
        slot.map(Unsaved::Slot).or_else(|| {
            let unsaved =
                self.store.all().filter(|stored| is_unsaved(stored.scope, &stored.tokens));
            unsaved.max_by_key(|stored| stored.used()).map(|stored| Unsaved::Stored(stored.id))
        })
    }

    /// What a slot holds, and whose it is.
    pub(crate) fn contents(&self, slot: u32) -> Option<(Scope, &[u32])> {
        self.held(slot).map(|held| (held.scope, held.tokens.as_slice()))
    }

    /// A stored state with all that it holds. It counts as little used as before.
    pub(crate) fn stored_whole(&self, id: StoredId) -> Option<Displaced> {
        let stored = self.store.get(id)?;
        let (scope, tokens) = (stored.scope, stored.tokens.clone());
        Some(Displaced { scope, tokens, state: Arc::clone(&stored.state) })
    }
}
