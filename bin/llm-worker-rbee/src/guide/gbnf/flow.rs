//! What may follow what in a grammar, in characters: learnt by walking its
//! rules until nothing new is found.

use super::automaton::{Alphabet, Atom, Bits, unite};
use super::terminals::{Search, Terminals, may_be_empty};
use super::{Grammar, Node};

/// Which characters rules begin with, and which may follow rules and atoms.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    grammar: &'a Grammar,
    found: &'a Terminals,
    alphabet: &'a Alphabet,
    first: Vec<Bits>,
    /// What may follow each rule that is no terminal.
    after: Vec<Bits>,
    pub(super) atoms: Vec<Atom>,
    pub(super) follow: Vec<Bits>,
    grown: bool,
}

impl<'a> Flow<'a> {
    pub(super) fn new(grammar: &'a Grammar, found: &'a Terminals, alphabet: &'a Alphabet) -> Self {
        let sets = vec![alphabet.none(); grammar.rules.len()];
        let (first, after) = (sets.clone(), sets);
        let (atoms, follow) = (Vec::new(), Vec::new());
        Self { grammar, found, alphabet, first, after, atoms, follow, grown: false }
    }

    /// Walks all rules once; says whether anything was learnt.
    pub(super) fn round(&mut self, search: &mut Search<'_>) -> Result<bool, String> {
        self.grown = false;
        for (rule, body) in self.grammar.rules.iter().enumerate() {
            let begins = self.first_of(body, search)?;
            self.grown |= self.first.get_mut(rule).is_some_and(|set| unite(set, &begins));
            if self.found.is_reached(rule) && !self.found.is_terminal(rule) {
                let after = self.after.get(rule).cloned().unwrap_or_default();
                self.walk(body, &after, search)?;
            }
        }
        Ok(self.grown)
    }

    fn first_of(&self, node: &Node, search: &mut Search<'_>) -> Result<Bits, String> {
        search.step(1)?;
        let mut set = self.alphabet.none();
        match node {
            Node::One(ranges) => set = self.alphabet.bits(ranges),
            Node::Sequence(parts) => {
                for part in parts {
                    unite(&mut set, &self.first_of(part, search)?);
                    if !may_be_empty(part, &self.found.empty) {
                        break;
                    }
                }
            }
            Node::Choice(options) => {
                for option in options {
                    unite(&mut set, &self.first_of(option, search)?);
                }
            }
            Node::Repeat(inner, ..) => set = self.first_of(inner, search)?,
            Node::Rule(rule) => {
                if let Some(first) = self.first.get(*rule) {
                    set.clone_from(first);
                }
            }
        }
        Ok(set)
    }

    /// Learns from a part what follows what, where `after` follows the part.
    fn walk(&mut self, node: &Node, after: &Bits, search: &mut Search<'_>) -> Result<(), String> {
        search.step(1)?;
        match node {
            Node::One(ranges) => self.learn(Atom::One(ranges.clone()), after, search)?,
            Node::Rule(rule) if self.found.is_terminal(*rule) => {
                self.learn(Atom::Rule(*rule), after, search)?;
            }
            Node::Rule(rule) => {
                self.grown |= self.after.get_mut(*rule).is_some_and(|set| unite(set, after));
            }
            Node::Choice(options) => {
                for option in options {
                    self.walk(option, after, search)?;
                }
            }
            Node::Sequence(parts) => {
                let mut after = after.clone();
                for part in parts.iter().rev() {
                    self.walk(part, &after, search)?;
                    let mut begins = self.first_of(part, search)?;
                    if may_be_empty(part, &self.found.empty) {
                        unite(&mut begins, &after);
                    }
                    after = begins;
                }
            }
            Node::Repeat(inner, _, max) => {
                let mut after = after.clone();
                if *max != Some(1) {
                    unite(&mut after, &self.first_of(inner, search)?);
                }
                self.walk(inner, &after, search)?;
            }
        }
        Ok(())
    }

    fn learn(&mut self, atom: Atom, after: &Bits, search: &mut Search<'_>) -> Result<(), String> {
        search.step(self.atoms.len() / 16)?;
        let index = self.atoms.iter().position(|known| *known == atom).unwrap_or_else(|| {
            self.atoms.push(atom);
            self.follow.push(self.alphabet.none());
            self.grown = true;
            self.atoms.len() - 1
        });
        self.grown |= self.follow.get_mut(index).is_some_and(|set| unite(set, after));
        Ok(())
    }
}
