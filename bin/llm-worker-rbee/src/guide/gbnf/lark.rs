//! Writes a grammar as Lark: regular rules that may be lexed as a whole as
//! terminals, everything else as rules over single characters.

use super::terminals::Terminals;
use super::{Grammar, Node};

/// Writes the rules that the root reaches.
pub(super) fn write(grammar: &Grammar, terminals: &Terminals) -> String {
    let mut out = format!("start: {}\n", name(grammar.root, terminals));
    for (index, body) in grammar.rules.iter().enumerate() {
        if !terminals.is_reached(index) {
            continue;
        }
        let mut text = String::new();
        if terminals.is_regular(index) {
            // As a part of other terminals it may be empty; as one of its own never.
            write_node(body, &mut text, &|rule| format!("T{rule}"));
            out.push_str(&format!("T{index}: {text}\n"));
            if terminals.is_terminal(index) {
                out.push_str(&format!("N{index}: T{index} & /(?s:.)+/\n"));
            }
        }
        if !terminals.is_regular(index) || !terminals.is_terminal(index) {
            text.clear();
            write_node(body, &mut text, &|rule| name(rule, terminals));
            out.push_str(&format!("r{index}: {text}\n"));
        }
    }
    out
}

/// How a rule is called inside of rules.
fn name(rule: usize, terminals: &Terminals) -> String {
    match (terminals.is_terminal(rule), terminals.may_be_empty(rule)) {
        (true, true) => format!("N{rule}?"),
        (true, false) => format!("N{rule}"),
        (false, _) => format!("r{rule}"),
    }
}

fn write_node(node: &Node, out: &mut String, name: &dyn Fn(usize) -> String) {
    match node {
        Node::One(ranges) => {
            out.push_str("/[");
            for (from, to) in ranges {
                // The ends of a range are characters; there are none from D800 to DFFF.
                let from = if (0xd800..=0xdfff).contains(from) { 0xe000 } else { *from };
                let to = if (0xd800..=0xdfff).contains(to) { 0xd7ff } else { *to };
                out.push_str(&format!("\\x{{{from:x}}}-\\x{{{to:x}}}"));
            }
            out.push_str("]/");
        }
        Node::Sequence(parts) if parts.is_empty() => out.push_str("\"\""),
        Node::Sequence(parts) => {
            out.push('(');
            for part in parts {
                write_node(part, out, name);
                out.push(' ');
            }
            out.push(')');
        }
        Node::Choice(options) => {
            out.push('(');
            for (index, option) in options.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { " | " });
                write_node(option, out, name);
            }
            out.push(')');
        }
        Node::Repeat(inner, min, max) => {
            out.push('(');
            write_node(inner, out, name);
            match (min, max) {
                (0, None) => out.push_str(")*"),
                (1, None) => out.push_str(")+"),
                (0, Some(1)) => out.push_str(")?"),
                (min, Some(max)) => out.push_str(&format!("){{{min},{max}}}")),
                (min, None) => out.push_str(&format!("){{{min},}}")),
            }
        }
        Node::Rule(rule) => out.push_str(&name(*rule)),
    }
}
