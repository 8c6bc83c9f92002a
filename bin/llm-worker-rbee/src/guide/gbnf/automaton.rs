//! Automata over the characters that a grammar tells apart, for the search for
//! terminals. Never run on output.

use super::{Grammar, Node, Ranges};

/// Most states of one rule's automaton; a rule beyond them is no terminal.
const STATES_MAX: usize = 2000;

/// What is matched as a whole: a rule, or a single character of a rule's body.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Atom {
    Rule(usize),
    One(Ranges),
}

/// A set of characters as one bit for each class of characters that no part of
/// the grammar tells apart.
pub(super) type Bits = Vec<u64>;

/// An automaton over several atoms. State 0 is unused.
#[derive(Debug, Default)]
pub(super) struct Automaton {
    /// Where each state goes without a character.
    pub(super) free: Vec<Vec<usize>>,
    /// Where each state goes with one.
    pub(super) edges: Vec<Option<(Bits, usize)>>,
    /// For each atom its first and last state.
    pub(super) ends: Vec<(usize, usize)>,
}

impl Automaton {
    fn state(&mut self) -> usize {
        self.free.push(Vec::new());
        self.edges.push(None);
        self.free.len() - 1
    }

    fn link(&mut self, from: usize, to: usize) {
        if let Some(free) = self.free.get_mut(from) {
            free.push(to);
        }
    }

    /// Adds an atom; `false` if it would take too many states.
    pub(super) fn add(&mut self, atom: &Atom, grammar: &Grammar, alphabet: &Alphabet) -> bool {
        let limit = self.free.len() + STATES_MAX;
        let first = self.state();
        let last = match atom {
            Atom::One(ranges) => self.one(first, alphabet.bits(ranges)),
            Atom::Rule(rule) => {
                match self.build(&Node::Rule(*rule), first, limit, grammar, alphabet) {
                    Some(last) => last,
                    None => return false,
                }
            }
        };
        self.ends.push((first, last));
        true
    }

    fn one(&mut self, from: usize, bits: Bits) -> usize {
        let to = self.state();
        if let Some(edge) = self.edges.get_mut(from) {
            *edge = Some((bits, to));
        }
        to
    }

    /// Builds a part from a state on that has no edge yet; returns where it ends.
    fn build(
        &mut self,
        node: &Node,
        from: usize,
        limit: usize,
        grammar: &Grammar,
        alphabet: &Alphabet,
    ) -> Option<usize> {
        if self.free.len() > limit {
            return None;
        }
        match node {
            Node::One(ranges) => Some(self.one(from, alphabet.bits(ranges))),
            Node::Rule(rule) => {
                self.build(grammar.rules.get(*rule)?, from, limit, grammar, alphabet)
            }
            Node::Sequence(parts) => parts
                .iter()
                .try_fold(from, |from, part| self.build(part, from, limit, grammar, alphabet)),
            Node::Choice(options) => {
                let end = self.state();
                for option in options {
                    let start = self.state();
                    self.link(from, start);
                    let last = self.build(option, start, limit, grammar, alphabet)?;
                    self.link(last, end);
                }
                Some(end)
            }
            Node::Repeat(inner, min, max) => {
                let mut at = from;
                for _ in 0..*min {
                    at = self.build(inner, at, limit, grammar, alphabet)?;
                }
                let end = self.state();
                self.link(at, end);
                for _ in 0..max.map_or(1, |max| max - min) {
                    let start = self.state();
                    self.link(at, start);
                    let last = self.build(inner, start, limit, grammar, alphabet)?;
                    at = if max.is_some() { last } else { end };
                    self.link(last, end);
                    if max.is_none() {
                        self.link(end, start);
                    }
                }
                Some(end)
            }
        }
    }
}

/// The classes of characters that a grammar tells apart.
#[derive(Debug)]
pub(super) struct Alphabet {
    /// The first character of each class.
    starts: Vec<u32>,
}

impl Alphabet {
    pub(super) fn of(grammar: &Grammar) -> Self {
        fn collect(node: &Node, starts: &mut Vec<u32>) {
            match node {
                Node::One(ranges) => {
                    starts.extend(ranges.iter().flat_map(|(from, to)| [*from, to + 1]));
                }
                Node::Sequence(parts) | Node::Choice(parts) => {
                    parts.iter().for_each(|part| collect(part, starts));
                }
                Node::Repeat(inner, ..) => collect(inner, starts),
                Node::Rule(_) => {}
            }
        }
        let mut starts = vec![0];
        grammar.rules.iter().for_each(|body| collect(body, &mut starts));
        starts.sort_unstable();
        starts.dedup();
        Self { starts }
    }

    pub(super) fn none(&self) -> Bits {
        vec![0; self.starts.len().div_ceil(64)]
    }

    pub(super) fn bits(&self, ranges: &Ranges) -> Bits {
        let mut bits = self.none();
        for (from, to) in ranges {
            let first = self.starts.partition_point(|start| start < from);
            let end = self.starts.partition_point(|start| start <= to);
            for class in first..end {
                if let Some(word) = bits.get_mut(class / 64) {
                    *word |= 1 << (class % 64);
                }
            }
        }
        bits
    }
}

pub(super) fn meet(one: &Bits, two: &Bits) -> bool {
    one.iter().zip(two).any(|(one, two)| one & two != 0)
}

/// Adds to a set; says whether it has grown.
pub(super) fn unite(set: &mut Bits, more: &Bits) -> bool {
    let mut grown = false;
    for (word, more) in set.iter_mut().zip(more) {
        grown |= *more & !*word != 0;
        *word |= more;
    }
    grown
}
