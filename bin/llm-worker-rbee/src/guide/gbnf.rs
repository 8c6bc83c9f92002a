//! Reads GBNF, llama.cpp's grammar notation, and rewrites it as llguidance's
//! Lark. Bounded in rules, nesting and repetition; a mistake names its line.

mod automaton;
mod flow;
mod lark;
mod parse;
mod terminals;

#[cfg(test)]
mod tests;

/// Most rules of a grammar; each may be a level of recursion in the compiler.
const RULES_MAX: usize = 256;
/// Deepest nesting of parentheses.
const NESTING_MAX: usize = 32;
/// Most repetitions that a bound may ask for.
const REPEAT_MAX: u32 = 1000;
/// Most parts of all rules together.
const NODES_MAX: usize = 10_000;

/// Inclusive ranges of characters, sorted, not touching.
type Ranges = Vec<(u32, u32)>;

/// A part of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// One character of these.
    One(Ranges),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    /// At least so often, at most so often; `None` for any number.
    Repeat(Box<Node>, u32, Option<u32>),
    /// Another rule, by its index.
    Rule(usize),
}

/// A parsed grammar. All rules that are named exist.
#[derive(Debug)]
struct Grammar {
    rules: Vec<Node>,
    root: usize,
}

/// Rewrites a GBNF grammar as Lark.
///
/// # Errors
/// What is wrong with it, with the line.
pub(super) fn to_lark(source: &str) -> Result<String, String> {
    let grammar = parse::parse(source)?;
    let terminals = terminals::find(&grammar)?;
    Ok(lark::write(&grammar, &terminals))
}
