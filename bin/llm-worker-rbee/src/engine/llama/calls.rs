//! Holds a reply to the grammar of tool calls: from its beginning where a call
//! is required, else from the marker that a call begins with. Leaves alone what
//! the model thinks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rbee_llama::grammar::{Grammar, GrammarError};
use rbee_llama::model::Model;
use rbee_llama::reply::ReplyFormat;
use rbee_llama::vocab::{AddSpecial, Special, Token};
use rustix::time::{ClockId, clock_gettime};

use crate::sampler::constraint::{Constraint, ConstraintError};

/// Bytes that are kept beyond the longest marker, so that one is found that
/// ends in the middle of a token.
const TAIL_BYTES: usize = 256;
/// Longest that a grammar may think about one token. It does so on the thread that computes for everybody, and with
/// each level of an ambiguous schema twice as long as with the one before.
const TOKEN_TIME_MAX: Duration = Duration::from_secs(1);

/// A reply's grammar.
#[derive(Debug)]
pub(super) struct CallGrammar {
    model: Arc<Model>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Anything may come.
    Waiting(Watch),
    /// What comes is held to the grammar.
    Held(Grammar),
    /// The reply has left the grammar, which a marker that ends within a token
    /// can bring about; what follows is text.
    Free,
}

/// Looks for the beginning of a call in the text of the tokens.
#[derive(Debug, Clone)]
struct Watch {
    source: String,
    triggers: Vec<String>,
    thinking_start: String,
    thinking_end: Vec<String>,
    is_thinking: bool,
    /// The last tokens and the length of their texts, which make up `tail`.
    tokens: VecDeque<(Token, usize)>,
    tail: Vec<u8>,
    tail_bytes_max: usize,
}

/// What the text came to.
enum Seen {
    Nothing,
    /// A call that begins with this trigger, in the tokens that are kept.
    Trigger(String),
}

impl CallGrammar {
    /// Returns `None` when the format has nothing to hold a reply to.
    ///
    /// # Errors
    /// The grammar is not valid, or too large for llama.cpp.
    pub(super) fn new(
        model: &Arc<Model>,
        format: &ReplyFormat,
    ) -> Result<Option<Self>, GrammarError> {
        let Some(grammar) = format.grammar() else { return Ok(None) };
        let state = if grammar.triggers.is_empty() {
            let mut held = Grammar::new(Arc::clone(model), &grammar.source)?;
            go_on(&mut held, model, &grammar.prefill)?;
            State::Held(held)
        } else {
            // A grammar that does not compile is to be known before the reply begins.
            drop(Grammar::new(Arc::clone(model), &grammar.source)?);
            State::Waiting(Watch::new(grammar.source, grammar.triggers, format))
        };
        Ok(Some(Self { model: Arc::clone(model), state }))
    }
}

/// Accepts the text that the prompt ends with and that the grammar begins with.
fn go_on(grammar: &mut Grammar, model: &Model, prefill: &str) -> Result<(), GrammarError> {
    let vocab = model.vocab();
    let left = |reason: String| GrammarError::Left { reason };
    let tokens = vocab
        .tokenize(prefill, AddSpecial::No, Special::Parse)
        .map_err(|error| left(error.to_string()))?;
    for (index, token) in tokens.into_iter().enumerate() {
        let is_added_space =
            index == 0 && vocab.spelling(token).starts_with(b" ") && !prefill.starts_with(' ');
        if !is_added_space && !grammar.accept(token) {
            return Err(left("it does not begin as the prompt ends".to_owned()));
        }
    }
    Ok(())
}

/// Asks a grammar, and gives it up if it took too long to answer.
fn ask<T>(
    grammar: &mut Grammar,
    question: impl FnOnce(&mut Grammar) -> T,
) -> Result<T, ConstraintError> {
    let began = time_of_thread();
    let answer = question(grammar);
    if time_of_thread().saturating_sub(began) > TOKEN_TIME_MAX {
        return Err(ConstraintError::TooComplex { param: "tools" });
    }
    Ok(answer)
}

/// What the processor did for this thread, which does not go on while it stands still.
fn time_of_thread() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

impl Constraint for CallGrammar {
    fn allows(&mut self, token: u32) -> Result<bool, ConstraintError> {
        match &mut self.state {
            State::Waiting(_) | State::Free => Ok(true),
            State::Held(grammar) => ask(grammar, |grammar| grammar.allows(Token(token))),
        }
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        if let State::Held(grammar) = &mut self.state
            && let Err(error) = ask(grammar, |grammar| grammar.mask(logits))?
        {
            tracing::warn!(%error, "a reply is no longer held to its grammar");
            self.state = State::Free;
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        let next = match &mut self.state {
            State::Free => None,
            State::Held(grammar) => {
                let accepted = ask(grammar, |grammar| grammar.accept(Token(token)))?;
                (!accepted).then_some(State::Free)
            }
            State::Waiting(watch) => {
                match watch.push(Token(token), &self.model.vocab().spelling(Token(token))) {
                    Seen::Nothing => None,
                    Seen::Trigger(trigger) => Some(watch.hold(&self.model, &trigger)),
                }
            }
        };
        if let Some(next) = next {
            self.state = next;
        }
        Ok(())
    }

    fn try_clone(&self) -> Result<Box<dyn Constraint>, ConstraintError> {
        let state = match &self.state {
            State::Waiting(watch) => State::Waiting(watch.clone()),
            State::Held(grammar) => State::Held(grammar.try_clone().map_err(|error| {
                tracing::error!(%error, "a grammar could not be copied");
                ConstraintError::Defect { param: "tools" }
            })?),
            State::Free => State::Free,
        };
        Ok(Box::new(Self { model: Arc::clone(&self.model), state }))
    }
}

impl Watch {
    fn new(source: String, triggers: Vec<String>, format: &ReplyFormat) -> Self {
        let longest = triggers.iter().chain(&format.thinking_end).map(String::len).max();
        let longest = longest.unwrap_or(0).max(format.thinking_start.len());
        Self {
            source,
            triggers,
            thinking_start: format.thinking_start.clone(),
            thinking_end: format.thinking_end.clone(),
            is_thinking: format.begins_thinking(),
            tokens: VecDeque::new(),
            tail: Vec::new(),
            tail_bytes_max: longest + TAIL_BYTES,
        }
    }

    /// Takes the text of a token in.
    fn push(&mut self, token: Token, text: &[u8]) -> Seen {
        self.tokens.push_back((token, text.len()));
        self.tail.extend_from_slice(text);
        let seen = loop {
            if self.is_thinking {
                let ends = self.thinking_end.iter().filter_map(|end| ending(&self.tail, end));
                let Some(end) = ends.min() else { break Seen::Nothing };
                self.is_thinking = false;
                self.forget(end);
                continue;
            }
            let start = ending(&self.tail, &self.thinking_start);
            let trigger = self
                .triggers
                .iter()
                .filter_map(|trigger| Some((ending(&self.tail, trigger)?, trigger)))
                .min_by_key(|(end, _)| *end);
            match (start, trigger) {
                (Some(start), trigger) if trigger.is_none_or(|(end, _)| start < end) => {
                    self.is_thinking = true;
                    self.forget(start);
                }
                (_, Some((_, trigger))) => break Seen::Trigger(trigger.clone()),
                (_, None) => break Seen::Nothing,
            }
        };
        while self.tail.len() > self.tail_bytes_max
            && let Some((_, len)) = self.tokens.pop_front()
        {
            self.tail.drain(..len.min(self.tail.len()));
        }
        seen
    }

    /// Forgets the text up to a place and the tokens that are part of it.
    fn forget(&mut self, end: usize) {
        self.tail.drain(..end.min(self.tail.len()));
        // The token that goes beyond the place counts with the rest of it.
        let mut bytes: usize = self.tokens.iter().map(|(_, len)| len).sum();
        while bytes > self.tail.len()
            && let Some((token, len)) = self.tokens.pop_front()
        {
            let surplus = bytes - self.tail.len();
            if len > surplus {
                self.tokens.push_front((token, len - surplus));
                return;
            }
            bytes -= len;
        }
    }

    /// Begins the grammar with the trigger, which the kept tokens hold.
    fn hold(&self, model: &Arc<Model>, trigger: &str) -> State {
        let mut grammar = match Grammar::beginning_at(Arc::clone(model), &self.source, trigger) {
            Ok(grammar) => grammar,
            Err(error) => {
                tracing::warn!(%error, "a call is not held to its grammar");
                return State::Free;
            }
        };
        let held = self.tokens.iter().all(|(token, _)| grammar.accept(*token));
        if held { State::Held(grammar) } else { State::Free }
    }
}

/// Where the first occurrence of a text that is not empty ends.
fn ending(bytes: &[u8], text: &str) -> Option<usize> {
    if text.is_empty() {
        return None;
    }
    let found = bytes.windows(text.len()).position(|window| window == text.as_bytes());
    found.map(|at| at + text.len())
}

#[cfg(test)]
mod tests;
