//! Finds, for a sequence of tokens, who holds the longest beginning of it: a
//! radix tree over tokens, one for each scope, so that nothing is found across
//! scopes. Knows names of holders, never what they hold.

use std::collections::HashMap;

use super::Scope;

/// Holders returned for one beginning: enough to have a choice of places.
const FOUND_MAX: usize = 32;

/// All scopes' trees.
#[derive(Debug)]
pub(super) struct PrefixTree<H> {
    roots: HashMap<Scope, Node<H>>,
}

/// A stretch of tokens without a branch. Below every node but a root there is
/// at least one holder.
#[derive(Debug)]
struct Node<H> {
    label: Vec<u32>,
    /// By the first token of their labels.
    children: HashMap<u32, Node<H>>,
    /// Who holds everything from the root to the end of the label, and no more.
    holders: Vec<H>,
}

/// The longest beginning that somebody holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found<H> {
    /// Its length in tokens; at least 1.
    pub(super) len: usize,
    /// Who holds it, possibly with more after it; at least one.
    pub(super) holders: Vec<H>,
}

impl<H: Copy + Eq> PrefixTree<H> {
    pub(super) fn new() -> Self {
        Self { roots: HashMap::new() }
    }

    /// Notes that `holder` holds `tokens`. Nothing is noted of nothing.
    pub(super) fn insert(&mut self, scope: Scope, tokens: &[u32], holder: H) {
        if !tokens.is_empty() {
            self.roots.entry(scope).or_insert_with(Node::empty).insert(tokens, holder);
        }
    }

    /// Takes back what [`Self::insert`] noted with the same arguments.
    pub(super) fn remove(&mut self, scope: Scope, tokens: &[u32], holder: H) {
        let Some(root) = self.roots.get_mut(&scope) else { return };
        root.remove(tokens, holder);
        if root.children.is_empty() {
            self.roots.remove(&scope);
        }
    }

    /// Finds who holds the longest beginning of `tokens`; `None` if nobody
    /// holds even the first.
    pub(super) fn longest(&self, scope: Scope, tokens: &[u32]) -> Option<Found<H>> {
        let mut node = self.roots.get(&scope)?;
        let mut len = 0;
        loop {
            let rest = tokens.get(len..).unwrap_or_default();
            let Some(child) = rest.first().and_then(|first| node.children.get(first)) else {
                break;
            };
            let shared = shared_len(&child.label, rest);
            len += shared;
            node = child;
            if shared < child.label.len() {
                break;
            }
        }
        if len == 0 {
            return None;
        }
        let mut holders = Vec::new();
        node.collect(&mut holders);
        Some(Found { len, holders })
    }

    /// Finds everybody who holds nothing but a beginning of `tokens`, or all of
    /// them; the shortest first.
    pub(super) fn on_the_way(&self, scope: Scope, tokens: &[u32]) -> Vec<H> {
        let mut found = Vec::new();
        let mut rest = tokens;
        let mut node = self.roots.get(&scope);
        while let Some(here) = node {
            found.extend_from_slice(&here.holders);
            let child = rest.first().and_then(|first| here.children.get(first));
            node = child.filter(|child| rest.starts_with(&child.label));
            rest = rest.get(node.map_or(0, |child| child.label.len())..).unwrap_or_default();
        }
        found
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

impl<H: Copy + Eq> Node<H> {
    fn empty() -> Self {
        Self { label: Vec::new(), children: HashMap::new(), holders: Vec::new() }
    }

    fn insert(&mut self, tokens: &[u32], holder: H) {
        let Some(first) = tokens.first() else {
            self.holders.push(holder);
            return;
        };
        let Some(child) = self.children.get_mut(first) else {
            let leaf =
                Self { label: tokens.to_vec(), children: HashMap::new(), holders: vec![holder] };
            self.children.insert(*first, leaf);
            return;
        };
        let shared = shared_len(&child.label, tokens);
        if shared < child.label.len() {
            child.split(shared);
        }
        child.insert(tokens.get(shared..).unwrap_or_default(), holder);
    }

    /// Cuts the label after `len` tokens, of which there are more, and at least 1.
    fn split(&mut self, len: usize) {
        let label = self.label.split_off(len);
        let Some(first) = label.first().copied() else { return };
        let lower = Self {
            label,
            children: std::mem::take(&mut self.children),
            holders: std::mem::take(&mut self.holders),
        };
        self.children.insert(first, lower);
    }

    fn remove(&mut self, tokens: &[u32], holder: H) {
        let Some(first) = tokens.first() else {
            if let Some(index) = self.holders.iter().position(|other| *other == holder) {
                self.holders.swap_remove(index);
            }
            return;
        };
        let Some(child) = self.children.get_mut(first) else { return };
        let Some(rest) = tokens.strip_prefix(child.label.as_slice()) else { return };
        child.remove(rest, holder);
        if child.holders.is_empty() {
            match child.children.len() {
                0 => {
                    self.children.remove(first);
                }
                1 => child.join_only_child(),
                _ => {}
            }
        }
    }

    /// Joins a node that nobody ends at with its only child.
    fn join_only_child(&mut self) {
        let Some((_, lower)) = self.children.drain().next() else { return };
        self.label.extend_from_slice(&lower.label);
        self.children = lower.children;
        self.holders = lower.holders;
    }

    fn collect(&self, found: &mut Vec<H>) {
        let room = FOUND_MAX.saturating_sub(found.len());
        found.extend(self.holders.iter().take(room));
        for child in self.children.values() {
            if found.len() >= FOUND_MAX {
                return;
            }
            child.collect(found);
        }
    }
}

/// The number of tokens that both begin with.
pub(super) fn shared_len(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scope(number: u8) -> Scope {
        Scope([number; 32])
    }

    /// Every node but a root has a holder below it, and none could be joined.
    fn check_shape(node: &Node<u32>) {
        for (first, child) in &node.children {
            assert_eq!(child.label.first(), Some(first));
            assert!(!child.holders.is_empty() || child.children.len() > 1);
            check_shape(child);
        }
    }

    #[test]
    fn of_many_holders_some_are_found() {
        let mut tree = PrefixTree::new();
        (0..40).for_each(|holder| tree.insert(scope(0), &[1, 2], holder));
        (40..80).for_each(|holder| tree.insert(scope(0), &[1, 2, holder], holder));
        assert_eq!(
            tree.longest(scope(0), &[1, 2]).map(|found| found.holders.len()),
            Some(FOUND_MAX)
        );
        assert_eq!(
            tree.longest(scope(0), &[1, 2, 41, 9]).map(|found| found.holders),
            Some(vec![41])
        );
    }

    proptest! {
        #[test]
        fn it_finds_what_a_search_through_all_holders_finds(
            // Few tokens and scopes, so that beginnings are shared.
            actions in proptest::collection::vec(
                (0..2_u8, proptest::collection::vec(0..3_u32, 0..8), prop::bool::ANY), 1..60),
            wanted in proptest::collection::vec(0..3_u32, 0..10),
        ) {
            let mut tree = PrefixTree::new();
            let mut all: Vec<(u8, Vec<u32>, u32)> = Vec::new();
            for (index, (in_scope, tokens, adds)) in (0_u32..).zip(actions) {
                if adds || all.is_empty() {
                    tree.insert(scope(in_scope), &tokens, index);
                    if !tokens.is_empty() {
                        all.push((in_scope, tokens, index));
                    }
                } else {
                    let gone = all.swap_remove(index as usize % all.len());
                    tree.remove(scope(gone.0), &gone.1, gone.2);
                }
                tree.roots.values().for_each(check_shape);
                for in_scope in 0..2 {
                    let on_the_way = all.iter()
                        .filter(|(s, tokens, _)| *s == in_scope && wanted.starts_with(tokens));
                    let mut on_the_way: Vec<u32> = on_the_way.map(|(_, _, holder)| *holder).collect();
                    on_the_way.sort_unstable();
                    let mut found = tree.on_the_way(scope(in_scope), &wanted);
                    found.sort_unstable();
                    prop_assert_eq!(found, on_the_way);
                    let lens = all.iter().filter(|(s, _, _)| *s == in_scope)
                        .map(|(_, tokens, holder)| (shared_len(tokens, &wanted), *holder));
                    let best = lens.clone().map(|(len, _)| len).max().unwrap_or(0);
                    match tree.longest(scope(in_scope), &wanted) {
                        None => prop_assert_eq!(best, 0),
                        Some(found) => {
                            prop_assert_eq!(found.len, best);
                            let mut expected: Vec<u32> = lens
                                .filter(|(len, _)| *len == best).map(|(_, holder)| holder).collect();
                            let mut holders = found.holders;
                            expected.sort_unstable();
                            holders.sort_unstable();
                            prop_assert!(holders == expected || holders.len() == FOUND_MAX);
                        }
                    }
                }
            }
            for (in_scope, tokens, holder) in all {
                tree.remove(scope(in_scope), &tokens, holder);
            }
            prop_assert!(tree.is_empty(), "something stays behind");
        }
    }
}
