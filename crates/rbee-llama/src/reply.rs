//! Reads what a model wrote under its chat template: what it thought, what it
//! says, which tools it calls; by llama.cpp's own parsers. Knows nothing of
//! streams: every call reads a text from its beginning.
#![expect(unsafe_code, reason = "owns a parser of the C++ shim")]

use std::ffi::CString;
use std::ptr::NonNull;

use serde::Deserialize;

use crate::chat::ToolCall;
use crate::ffi::{self, ShimString};

/// Deepest nesting of brackets in a text given to the parser, which recurses.
const NESTING_MAX: usize = 256;

/// How a reply is to be read, as rendering its prompt told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ReplyFormat {
    /// What the prompt ends with that belongs to the reply.
    pub generation_prompt: String,
    /// Texts of control tokens that the parser has to see.
    pub preserved: Vec<String>,
    /// What thinking begins with; empty for nothing.
    pub thinking_start: String,
    /// What thinking ends with, any of them.
    pub thinking_end: Vec<String>,
    /// Most calls of tools that the reply may hold.
    #[serde(skip)]
    pub calls_max: usize,
    parser: String,
    format: i32,
    grammar: String,
    /// Whether the grammar begins at a trigger; otherwise at the beginning,
    /// with the generation prompt.
    lazy: bool,
    triggers: Vec<String>,
    /// Regular expressions that stand for triggers.
    patterns: Vec<String>,
    #[serde(skip)]
    pub(crate) special: bool,
    #[serde(skip)]
    pub(crate) stops: Vec<String>,
    /// Whether it was found out with another template than the prompt's.
    #[serde(skip)]
    pub(crate) borrowed: bool,
}

/// The grammar that the calls in a reply follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyGrammar {
    /// In GBNF.
    pub source: String,
    /// Text to go on by before the first token of the reply.
    pub prefill: String,
    /// Texts of which the first to come begins the grammar, and is part of it;
    /// none when it holds from the beginning.
    pub triggers: Vec<String>,
}

impl ReplyFormat {
    /// Texts before which the reply is what the model says, and from which on
    /// only the parser knows; `None` when it has to see the reply from its beginning.
    #[must_use]
    pub fn call_markers(&self) -> Option<Vec<String>> {
        if self.special {
            return None;
        }
        if self.calls_max == 0 {
            return Some(Vec::new());
        }
        match (self.triggers.is_empty(), self.grammar.is_empty()) {
            (false, _) => Some(self.triggers.clone()),
            // A model whose calls have no marker answers with a bare object.
            (true, true) => Some(vec!["{".to_owned()]),
            (true, false) => None,
        }
    }

    /// Whether the prompt ends with what thinking begins with.
    #[must_use]
    pub fn begins_thinking(&self) -> bool {
        let start = self.thinking_start.as_str();
        let Some(at) = self.generation_prompt.rfind(start).filter(|_| !start.is_empty()) else {
            return false;
        };
        let after = self.generation_prompt.get(at + start.len()..).unwrap_or_default();
        !self.thinking_end.iter().any(|end| after.contains(end.as_str()))
    }

    /// The grammar of calls, if there is one to hold the reply to.
    ///
    /// A reply that must call tools goes to them at once: the grammar lets the
    /// model write anything before, which a model that rambles never ends.
    #[must_use]
    pub fn grammar(&self) -> Option<ReplyGrammar> {
        if self.grammar.is_empty() || (self.lazy && self.triggers.is_empty()) {
            return None;
        }
        let source = self.grammar.lines().map(|line| self.held_rule(line)).collect();
        if self.lazy {
            let triggers = self.triggers.clone();
            return Some(ReplyGrammar { source, prefill: String::new(), triggers });
        }
        let prefill = if self.borrowed { String::new() } else { self.generation_prompt.clone() };
        Some(ReplyGrammar { source, prefill, triggers: Vec::new() })
    }

    fn held_rule(&self, line: &str) -> String {
        let (name, rule) = line.split_once(" ::= ").unwrap_or((line, ""));
        let rule = match name {
            "root" if !self.lazy && self.borrowed => {
                without_literal(&without_free_text(rule)).to_owned()
            }
            "root" if !self.lazy => without_free_text(rule),
            "tool-calls" if self.calls_max == 1 => without_repetition(rule).to_owned(),
            _ => return format!("{line}\n"),
        };
        format!("{name} ::= {rule}\n")
    }
}

/// The rule without its optional part that stands for any text.
fn without_free_text(rule: &str) -> String {
    let is_free = |word: &&str| {
        let number = word.strip_prefix("until-").and_then(|rest| rest.strip_suffix('?'));
        !number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    rule.split(' ').filter(is_free).collect::<Vec<_>>().join(" ")
}

/// The rule once, if it is one that may come again and again.
fn without_repetition(rule: &str) -> &str {
    rule.strip_suffix(")+").and_then(|rest| rest.strip_prefix('(')).unwrap_or(rule)
}

/// The rule without the literal that it begins with.
fn without_literal(rule: &str) -> &str {
    let literal = rule.strip_prefix('"').and_then(|rest| rest.split_once("\" "));
    literal.map_or(rule, |(_, rest)| rest)
}

/// A reply, read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Reply {
    /// What the model says.
    pub content: String,
    /// What it thought before.
    pub reasoning_content: String,
    /// The tools it calls.
    pub tool_calls: Vec<ToolCall>,
}

/// Why a text cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The format did not come from rendering.
    #[error("the format of the reply is not valid: {reason}")]
    Format {
        /// What the parser said.
        reason: String,
    },
    /// The model did not keep to its format.
    #[error("the reply does not follow its format: {reason}")]
    Malformed {
        /// What the parser said.
        reason: String,
    },
}

/// Reads replies of one format. Usable from any number of threads at once.
#[derive(Debug)]
pub struct ReplyParser {
    raw: NonNull<ffi::ReplyParserHandle>,
}

// SAFETY: the shim's parser is a C++ object without ties to a thread.
unsafe impl Send for ReplyParser {}
// SAFETY: parsing takes it as const and keeps its state on the stack.
unsafe impl Sync for ReplyParser {}

impl Drop for ReplyParser {
    fn drop(&mut self) {
        // SAFETY: `raw` was returned by the shim and is freed once.
        unsafe { ffi::rbee_reply_parser_free(self.raw.as_ptr()) }
    }
}

impl ReplyParser {
    /// Makes the parser of a format.
    ///
    /// # Errors
    /// The format did not come from rendering.
    pub fn new(format: &ReplyFormat) -> Result<Self, ReplyError> {
        let invalid = |reason: String| ReplyError::Format { reason };
        let parser =
            CString::new(format.parser.as_str()).map_err(|error| invalid(error.to_string()))?;
        let generation_prompt = CString::new(format.generation_prompt.as_str())
            .map_err(|error| invalid(error.to_string()))?;
        let mut error = ShimString::null();
        // SAFETY: both strings are NUL-terminated and copied.
        let raw = unsafe {
            ffi::rbee_reply_parser_new(
                parser.as_ptr(),
                format.format,
                generation_prompt.as_ptr(),
                error.as_out(),
            )
        };
        NonNull::new(raw).map(|raw| Self { raw }).ok_or_else(|| invalid(error.reason()))
    }

    /// Reads a reply from its beginning, also one whose end is still to come:
    /// what is read of that only grows with the text, as far as the model's
    /// format allows.
    ///
    /// # Errors
    /// The text does not follow the format, however it may go on, or nests
    /// deeper than any sensible one.
    pub fn parse(&self, text: &str) -> Result<Reply, ReplyError> {
        let malformed = |reason: String| ReplyError::Malformed { reason };
        if nesting(text) > NESTING_MAX {
            return Err(malformed(format!("it nests deeper than {NESTING_MAX} brackets")));
        }
        let mut error = ShimString::null();
        // SAFETY: the parser is valid; the length is that of the text; the
        // string returned is ours to free.
        let reply = unsafe {
            ShimString::from_raw(ffi::rbee_reply_parser_parse(
                self.raw.as_ptr(),
                text.as_ptr().cast(),
                text.len(),
                error.as_out(),
            ))
        };
        let reply = reply.to_text().ok_or_else(|| malformed(error.reason()))?;
        serde_json::from_str(&reply).map_err(|error| malformed(error.to_string()))
    }
}

/// The deepest nesting of brackets that a text can have for any reader.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_relieved_of_its_free_text_and_its_beginning() {
        let rule =
            r#""<|im_start|>assistant\n" space ("<think>" until-13 "</think>")? until-191? calls"#;
        let direct = without_free_text(rule);
        let expected = r#""<|im_start|>assistant\n" space ("<think>" until-13 "</think>")? calls"#;
        assert_eq!(direct, expected);
        assert_eq!(without_literal(&direct), r#"space ("<think>" until-13 "</think>")? calls"#);
        assert_eq!(without_repetition("(tool-call space)+"), "tool-call space");
        for kept in ["until-x?", "until-1", "calls"] {
            assert_eq!(without_free_text(kept), kept);
            assert_eq!(without_literal(kept), kept);
            assert_eq!(without_repetition(kept), kept);
        }
    }

    #[test]
    fn nesting_is_counted_with_what_closes_it() {
        for (text, depth) in [("", 0), ("[{}]", 2), ("[][][]", 1), ("]]][", 1), ("{[{[", 4)] {
            assert_eq!(nesting(text), depth, "{text}");
        }
    }
}
