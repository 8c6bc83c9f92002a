//! Finds the rules that a lexer may match as a whole. A lexer takes the longest
//! match, so a rule is a terminal only if no text that it matches could go on,
//! within any terminal, with what may follow the rule.

use std::collections::{HashSet, VecDeque};

use super::automaton::{Alphabet, Atom, Automaton, Bits, meet};
use super::flow::Flow;
use super::{Grammar, Node};

/// Steps that the whole analysis may take, well below a second.
const STEPS_MAX: usize = 3_000_000;

/// What is known of each rule.
#[derive(Debug)]
pub(super) struct Terminals {
    reached: Vec<bool>,
    regular: Vec<bool>,
    terminal: Vec<bool>,
    pub(super) empty: Vec<bool>,
}

impl Terminals {
    pub(super) fn is_reached(&self, rule: usize) -> bool {
        self.reached.get(rule).copied().unwrap_or(false)
    }

    /// Whether a rule is free of recursion, itself and all that it names.
    pub(super) fn is_regular(&self, rule: usize) -> bool {
        self.regular.get(rule).copied().unwrap_or(false)
    }

    pub(super) fn is_terminal(&self, rule: usize) -> bool {
        self.terminal.get(rule).copied().unwrap_or(false)
    }

    pub(super) fn may_be_empty(&self, rule: usize) -> bool {
        self.empty.get(rule).copied().unwrap_or(false)
    }
}

/// Sorts the rules of a grammar.
///
/// # Errors
/// The grammar takes too much work.
pub(super) fn find(grammar: &Grammar) -> Result<Terminals, String> {
    let regular = regular_rules(grammar);
    let mut found = Terminals {
        reached: reached_rules(grammar),
        terminal: regular.clone(),
        regular,
        empty: empty_rules(grammar),
    };
    let mut search = Search { grammar, steps_left: STEPS_MAX };
    // Each round takes at least one terminal apart, so there is an end.
    while let Some(rule) = search.conflict(&found)? {
        if let Some(terminal) = found.terminal.get_mut(rule) {
            *terminal = false;
        }
    }
    Ok(found)
}

/// Calls `visit` with every rule named in a part.
fn named(node: &Node, visit: &mut dyn FnMut(usize)) {
    match node {
        Node::One(_) => {}
        Node::Sequence(parts) | Node::Choice(parts) => {
            parts.iter().for_each(|part| named(part, visit));
        }
        Node::Repeat(inner, ..) => named(inner, visit),
        Node::Rule(rule) => visit(*rule),
    }
}

fn reached_rules(grammar: &Grammar) -> Vec<bool> {
    let mut reached = vec![false; grammar.rules.len()];
    let mut waiting = vec![grammar.root];
    while let Some(rule) = waiting.pop() {
        let Some(place @ false) = reached.get_mut(rule) else { continue };
        *place = true;
        if let Some(body) = grammar.rules.get(rule) {
            named(body, &mut |other| waiting.push(other));
        }
    }
    reached
}

/// The rules that reach no recursion: those whose names are all regular,
/// added until no more can be.
fn regular_rules(grammar: &Grammar) -> Vec<bool> {
    grow(grammar, |body, regular| {
        let mut all = true;
        named(body, &mut |rule| all &= regular.get(rule).copied().unwrap_or(false));
        all
    })
}

/// The rules that match the empty text.
fn empty_rules(grammar: &Grammar) -> Vec<bool> {
    grow(grammar, may_be_empty)
}

pub(super) fn may_be_empty(node: &Node, empty: &[bool]) -> bool {
    match node {
        Node::One(_) => false,
        Node::Sequence(parts) => parts.iter().all(|part| may_be_empty(part, empty)),
        Node::Choice(options) => options.iter().any(|option| may_be_empty(option, empty)),
        Node::Repeat(inner, min, _) => *min == 0 || may_be_empty(inner, empty),
        Node::Rule(rule) => empty.get(*rule).copied().unwrap_or(false),
    }
}

/// The smallest set of rules that holds every rule that `belongs` for it.
fn grow(grammar: &Grammar, belongs: impl Fn(&Node, &[bool]) -> bool) -> Vec<bool> {
    let mut set = vec![false; grammar.rules.len()];
    loop {
        let next: Vec<bool> = grammar.rules.iter().map(|body| belongs(body, &set)).collect();
        if next == set {
            return set;
        }
        set = next;
    }
}

/// A search for a terminal that may not be one.
#[derive(Debug)]
pub(super) struct Search<'a> {
    grammar: &'a Grammar,
    steps_left: usize,
}

impl Search<'_> {
    pub(super) fn step(&mut self, steps: usize) -> Result<(), String> {
        self.steps_left = self.steps_left.saturating_sub(steps);
        if self.steps_left == 0 {
            return Err("it takes more work than a request may cost; simplify it".to_owned());
        }
        Ok(())
    }

    /// Returns a rule that may not be a terminal; `None` if all may.
    fn conflict(&mut self, found: &Terminals) -> Result<Option<usize>, String> {
        if found.is_terminal(self.grammar.root) {
            // Nothing follows it, and nothing stands beside it.
            return Ok(None);
        }
        let alphabet = Alphabet::of(self.grammar);
        let mut flow = Flow::new(self.grammar, found, &alphabet);
        while flow.round(self)? {}
        let Flow { atoms, follow, .. } = flow;
        let mut automaton = Automaton::default();
        for atom in &atoms {
            let before = automaton.free.len();
            let built = automaton.add(atom, self.grammar, &alphabet);
            self.step((automaton.free.len() - before) * alphabet.none().len())?;
            match (built, atom) {
                (true, _) => {}
                (false, Atom::Rule(rule)) => return Ok(Some(*rule)),
                (false, Atom::One(_)) => return Err("it is too large".to_owned()),
            }
        }
        for (index, atom) in atoms.iter().enumerate() {
            let Some(follow) = follow.get(index) else { continue };
            if let Some(other) = self.overrun(&automaton, index, follow)? {
                // The longer match is taken apart; a single character cannot be.
                let other = atoms.get(other);
                return match (other, atom) {
                    (Some(Atom::Rule(rule)), _) | (_, Atom::Rule(rule)) => Ok(Some(*rule)),
                    _ => Ok(None),
                };
            }
        }
        Ok(None)
    }

    /// Looks for a text of atom `index` that goes on in some atom with a
    /// character that may follow it; returns that atom.
    fn overrun(
        &mut self,
        automaton: &Automaton,
        index: usize,
        follow: &Bits,
    ) -> Result<Option<usize>, String> {
        let Some((first, last)) = automaton.ends.get(index).copied() else { return Ok(None) };
        let mut seen = HashSet::new();
        // Pairs of states after the same text, and whether it has begun.
        let mut waiting: VecDeque<(usize, usize, usize, bool)> = automaton
            .ends
            .iter()
            .enumerate()
            .map(|(other, (start, _))| (first, *start, other, false))
            .collect();
        while let Some(pair) = waiting.pop_front() {
            if !seen.insert(pair) {
                continue;
            }
            self.step(1)?;
            let (one, two, other, begun) = pair;
            for next in automaton.free.get(one).into_iter().flatten() {
                waiting.push_back((*next, two, other, begun));
            }
            for next in automaton.free.get(two).into_iter().flatten() {
                waiting.push_back((one, *next, other, begun));
            }
            let Some(Some((more, after))) = automaton.edges.get(two) else { continue };
            if begun && one == last && meet(more, follow) {
                return Ok(Some(other));
            }
            if let Some(Some((same, next))) = automaton.edges.get(one)
                && meet(same, more)
            {
                waiting.push_back((*next, *after, other, true));
            }
        }
        Ok(None)
    }
}
