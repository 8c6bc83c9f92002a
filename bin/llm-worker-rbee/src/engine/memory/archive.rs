//! Knows which states lie on disk, are being written there, or cannot be. Never
//! reads or writes one, and never decides what is worth keeping.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use super::Scope;
use super::tree::PrefixTree;

/// Most states that are remembered to be too big.
const TOO_BIG_MAX: usize = 1 << 10;

/// Names a kept state by what it holds, in every process and at every time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeptId(pub(crate) [u8; 32]);

impl KeptId {
    pub(crate) fn of(scope: Scope, tokens: &[u32]) -> Self {
        let mut hasher = Sha256::new().chain_update(scope.0);
        tokens.iter().for_each(|token| hasher.update(token.to_le_bytes()));
        Self(hasher.finalize().into())
    }
}

/// What one state holds.
#[derive(Debug)]
struct Contents {
    scope: Scope,
    tokens: Vec<u32>,
}

/// All kept states.
#[derive(Debug)]
pub(super) struct Archive {
    tree: PrefixTree<KeptId>,
    kept: HashMap<KeptId, Contents>,
    /// Those that are being written.
    coming: HashMap<KeptId, Contents>,
    too_big: HashSet<KeptId>,
}

/// The kept state that holds the longest beginning.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Longest {
    pub(super) id: KeptId,
    pub(super) len: usize,
}

impl Archive {
    pub(super) fn new() -> Self {
        Self {
            tree: PrefixTree::new(),
            kept: HashMap::new(),
            coming: HashMap::new(),
            too_big: HashSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Notes that a state lies on disk.
    pub(super) fn insert(&mut self, id: KeptId, scope: Scope, tokens: Vec<u32>) {
        if !self.kept.contains_key(&id) {
            self.tree.insert(scope, &tokens, id);
            self.kept.insert(id, Contents { scope, tokens });
        }
    }

    /// Notes that a state does not lie on disk any more.
    pub(super) fn remove(&mut self, id: KeptId) {
        if let Some(Contents { scope, tokens }) = self.kept.remove(&id) {
            self.tree.remove(scope, &tokens, id);
        }
    }

    /// Notes that a state is being written.
    pub(super) fn begin(&mut self, id: KeptId, scope: Scope, tokens: Vec<u32>) {
        self.coming.insert(id, Contents { scope, tokens });
    }

    /// Notes that a state has been written.
    pub(super) fn complete(&mut self, id: KeptId) {
        if let Some(Contents { scope, tokens }) = self.coming.remove(&id) {
            self.insert(id, scope, tokens);
        }
    }

    /// Notes that a state was not written.
    pub(super) fn fail(&mut self, id: KeptId) {
        self.coming.remove(&id);
    }

    /// Notes that a state will never be written.
    pub(super) fn refuse(&mut self, id: KeptId) {
        self.coming.remove(&id);
        if self.too_big.len() >= TOO_BIG_MAX {
            self.too_big.clear();
        }
        self.too_big.insert(id);
    }

    /// Finds the longest beginning of `tokens`; a state that cannot be cut
    /// counts only if it ends there.
    pub(super) fn longest(&self, scope: Scope, tokens: &[u32], can_cut: bool) -> Option<Longest> {
        let ids = if can_cut {
            let found = self.tree.longest(scope, tokens)?;
            return Some(Longest { id: *found.holders.first()?, len: found.len });
        } else {
            self.tree.on_the_way(scope, tokens)
        };
        let len = |id: &KeptId| self.kept.get(id).map_or(0, |kept| kept.tokens.len());
        let id = ids.into_iter().max_by_key(len)?;
        Some(Longest { id, len: len(&id) })
    }

    /// Whether all of `tokens` can be had from disk, or soon, or never.
    pub(super) fn is_settled(&self, scope: Scope, tokens: &[u32], can_cut: bool) -> bool {
        let holds = |coming: &Contents| {
            let whole = coming.tokens.len() == tokens.len();
            coming.scope == scope && (can_cut || whole) && coming.tokens.starts_with(tokens)
        };
        let longest = self.longest(scope, tokens, can_cut);
        longest.is_some_and(|longest| longest.len == tokens.len())
            || self.coming.values().any(holds)
            || self.too_big.contains(&KeptId::of(scope, tokens))
    }

    /// The kept states of which `tokens` are a continuation.
    pub(super) fn continued_by(&self, scope: Scope, tokens: &[u32]) -> Vec<KeptId> {
        let mut ids = self.tree.on_the_way(scope, tokens);
        ids.retain(|id| self.kept.get(id).is_some_and(|kept| kept.tokens.len() < tokens.len()));
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: Scope = Scope([0; 32]);

    fn archive_of(all: &[&[u32]]) -> Archive {
        let mut archive = Archive::new();
        for tokens in all {
            archive.insert(KeptId::of(SCOPE, tokens), SCOPE, tokens.to_vec());
        }
        archive
    }

    #[test]
    fn a_state_that_cannot_be_cut_is_found_only_whole() {
        let archive = archive_of(&[&[1, 2], &[1, 2, 3], &[1, 2, 3, 4, 5]]);
        let wanted = [1, 2, 3, 4, 9];
        let longest = |can_cut| archive.longest(SCOPE, &wanted, can_cut).unwrap();
        let id = KeptId::of(SCOPE, &[1, 2, 3, 4, 5]);
        assert_eq!(longest(true), Longest { id, len: 4 });
        let id = KeptId::of(SCOPE, &[1, 2, 3]);
        assert_eq!(longest(false), Longest { id, len: 3 });
        assert_eq!(archive.longest(Scope([1; 32]), &wanted, true), None);
        assert!(archive.is_settled(SCOPE, &[1, 2, 3, 4], true));
        assert!(!archive.is_settled(SCOPE, &[1, 2, 3, 4], false));
    }

    #[test]
    fn a_continuation_replaces_what_it_continues_and_nothing_else() {
        let archive = archive_of(&[&[1, 2], &[1, 2, 3], &[1, 2, 3, 4], &[1, 3], &[2]]);
        let mut replaced = archive.continued_by(SCOPE, &[1, 2, 3, 4]);
        let mut expected = [KeptId::of(SCOPE, &[1, 2]), KeptId::of(SCOPE, &[1, 2, 3])];
        replaced.sort_unstable_by_key(|id| id.0);
        expected.sort_unstable_by_key(|id| id.0);
        assert_eq!(replaced, expected);
        assert_eq!(archive.continued_by(Scope([1; 32]), &[1, 2, 3, 4]), []);
    }

    #[test]
    fn a_state_counts_as_kept_once_it_is_written() {
        let mut archive = Archive::new();
        let id = KeptId::of(SCOPE, &[1, 2]);
        archive.begin(id, SCOPE, vec![1, 2]);
        assert!(archive.is_settled(SCOPE, &[1, 2], true), "it is not written twice");
        assert_eq!(archive.longest(SCOPE, &[1, 2], true), None, "it cannot be read yet");
        archive.fail(id);
        assert!(!archive.is_settled(SCOPE, &[1, 2], true));
        archive.begin(id, SCOPE, vec![1, 2]);
        archive.complete(id);
        assert_eq!((archive.len(), archive.longest(SCOPE, &[1], true).unwrap().len), (1, 1));
        archive.remove(id);
        assert_eq!((archive.len(), archive.longest(SCOPE, &[1], true)), (0, None));
        archive.refuse(id);
        assert!(archive.is_settled(SCOPE, &[1, 2], true), "it is not tried again");
        assert!(!archive.is_settled(SCOPE, &[1], true));
    }
}
