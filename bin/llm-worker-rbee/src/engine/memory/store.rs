//! States of slots kept outside the context, within a bound of bytes: the one
//! that was used longest ago goes first. Never decides what is worth keeping.

use std::collections::HashMap;
use std::sync::Arc;

use super::Scope;

/// Names a stored state for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StoredId(u64);

/// A state and what it holds.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) id: StoredId,
    pub(super) scope: Scope,
    pub(super) tokens: Vec<u32>,
    pub(super) state: Arc<Vec<u8>>,
    /// When it was last used, in ticks.
    used: u64,
}

/// What came of storing a state.
#[derive(Debug)]
pub(super) struct Insertion {
    /// `None` for a state that is too big.
    pub(super) id: Option<StoredId>,
    /// That state.
    pub(super) refused: Option<Stored>,
    /// What had to go for it.
    pub(super) evicted: Vec<Stored>,
}

/// All stored states.
#[derive(Debug)]
pub(super) struct Store {
    bytes_max: u64,
    bytes: u64,
    states: HashMap<StoredId, Stored>,
    ticks: u64,
}

impl Store {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: 0, states: HashMap::new(), ticks: 0 }
    }

    /// Whether anything can be stored at all.
    pub(super) fn is_on(&self) -> bool {
        self.bytes_max > 0
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn insert(
        &mut self,
        scope: Scope,
        tokens: Vec<u32>,
        mut state: Vec<u8>,
    ) -> Insertion {
        state.shrink_to_fit();
        self.ticks += 1;
        let id = StoredId(self.ticks);
        let stored = Stored { id, scope, tokens, state: Arc::new(state), used: self.ticks };
        let mut evicted = Vec::new();
        if stored.bytes() > self.bytes_max {
            return Insertion { id: None, refused: Some(stored), evicted };
        }
        while self.bytes + stored.bytes() > self.bytes_max {
            let Some(oldest) = self.states.values().min_by_key(|stored| stored.used) else { break };
            evicted.extend(self.remove(oldest.id));
        }
        self.bytes += stored.bytes();
        self.states.insert(id, stored);
        Insertion { id: Some(id), refused: None, evicted }
    }

    pub(super) fn get(&self, id: StoredId) -> Option<&Stored> {
        self.states.get(&id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Stored> {
        self.states.values()
    }

    /// Returns a state that is about to be used.
    pub(super) fn touch(&mut self, id: StoredId) -> Option<&[u8]> {
        self.ticks += 1;
        let stored = self.states.get_mut(&id)?;
        stored.used = self.ticks;
        Some(&stored.state)
    }

    pub(super) fn remove(&mut self, id: StoredId) -> Option<Stored> {
        let gone = self.states.remove(&id)?;
        self.bytes -= gone.bytes();
        Some(gone)
    }
}

impl Stored {
    /// When it was last used: the larger, the later.
    pub(super) fn used(&self) -> u64 {
        self.used
    }

    fn bytes(&self) -> u64 {
        (self.state.len() + size_of_val(self.tokens.as_slice())) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: Scope = Scope([0; 32]);

    #[test]
    fn the_bound_holds_and_what_was_used_longest_ago_goes_first() {
        let mut store = Store::new(300);
        let insert = |store: &mut Store, bytes| store.insert(SCOPE, Vec::new(), vec![7; bytes]);
        let first = insert(&mut store, 100).id.unwrap();
        let second = insert(&mut store, 100).id.unwrap();
        assert_eq!(store.touch(first), Some(&[7; 100][..]));
        assert_eq!(store.bytes(), 200);
        let third = insert(&mut store, 150);
        assert_eq!(third.evicted.iter().map(|gone| gone.id).collect::<Vec<_>>(), [second]);
        assert_eq!(store.bytes(), 250);
        let huge = insert(&mut store, 301);
        assert!(huge.id.is_none() && huge.evicted.is_empty(), "nothing goes for what never fits");
        assert!(store.remove(first).is_some() && store.remove(first).is_none());
        assert_eq!(store.bytes(), 150);
        assert!(!Store::new(0).is_on());
        let with_tokens = store.insert(SCOPE, vec![1; 10], vec![7; 100]);
        assert_eq!((with_tokens.evicted.len(), store.bytes()), (0, 290), "tokens count too");
    }
}
