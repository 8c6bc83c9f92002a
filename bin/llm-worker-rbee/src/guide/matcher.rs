//! A compiled grammar as a constraint on the tokens of one generation.

use std::sync::Arc;

use llguidance::Matcher;

use super::Vocabulary;
use crate::sampler::constraint::{Constraint, ConstraintError};

/// Where one generation stands in its grammar. Copies share the states of the
/// lexer, whose number is bounded for all of them together.
#[derive(Clone)]
pub(super) struct GrammarConstraint {
    matcher: Matcher,
    vocabulary: Arc<dyn Vocabulary>,
    /// The field that the grammar came from.
    param: &'static str,
}

impl std::fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarConstraint").field("param", &self.param).finish_non_exhaustive()
    }
}

impl GrammarConstraint {
    pub(super) fn new(
        matcher: Matcher,
        vocabulary: Arc<dyn Vocabulary>,
        param: &'static str,
    ) -> Self {
        Self { matcher, vocabulary, param }
    }

    /// What llguidance says, as far as it matters to a client.
    fn failed(&self, error: &impl std::fmt::Display) -> ConstraintError {
        let reason = error.to_string().to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
        if says(&["lexer error", "parser error", "toocomplex", "too complex"]) {
            ConstraintError::TooComplex { param: self.param }
        } else if says(&["noextension", "no tokens allowed"]) {
            ConstraintError::DeadEnd { param: self.param }
        } else {
            ConstraintError::Defect { param: self.param }
        }
    }
}

impl Constraint for GrammarConstraint {
    fn allows(&mut self, token: u32) -> Result<bool, ConstraintError> {
        if self.is_complete() {
            return Ok(self.vocabulary.is_end(token));
        }
        let valid = self.matcher.validate_tokens(&[token]);
        valid.map(|count| count == 1).map_err(|error| self.failed(&error))
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| self.failed(&error))?;
        // 32 tokens a word; a row longer than the mask holds no tokens there.
        let words = allowed.as_slice().iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in logits.chunks_mut(32).zip(words) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.vocabulary.is_end(token) {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| self.failed(&error))
    }

    fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    fn try_clone(&self) -> Result<Box<dyn Constraint>, ConstraintError> {
        Ok(Box::new(self.clone()))
    }

    fn forced_tokens(&mut self) -> Vec<u32> {
        let forced = self.matcher.compute_ff_bytes();
        let text = match std::str::from_utf8(&forced) {
            Ok(text) => text,
            Err(error) => {
                let whole = forced.get(..error.valid_up_to()).unwrap_or_default();
                std::str::from_utf8(whole).unwrap_or_default()
            }
        };
        let mut tokens = if text.is_empty() { Vec::new() } else { self.vocabulary.tokenize(text) };
        // The last one may go on with what follows.
        tokens.pop();
        tokens
    }
}
