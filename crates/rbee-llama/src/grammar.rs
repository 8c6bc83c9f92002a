//! A grammar that a model's tokens are held to, by llama.cpp's own engine. Says
//! which token may come next and goes on by one; chooses none.
#![expect(unsafe_code, reason = "owns a grammar of the C++ shim")]

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::ffi::{self, ShimString};
use crate::model::Model;
use crate::vocab::Token;

/// Why there is no grammar, or why it says nothing.
#[derive(Debug, thiserror::Error)]
pub enum GrammarError {
    /// The source is no GBNF, or too large for llama.cpp.
    #[error("the grammar cannot be used: {reason}")]
    Syntax {
        /// What llama.cpp said.
        reason: String,
    },
    /// There is no memory for another one.
    #[error("the grammar cannot be copied: {reason}")]
    Copy {
        /// What llama.cpp said.
        reason: String,
    },
    /// A token was accepted before that the grammar does not allow.
    #[error("the text has left the grammar: {reason}")]
    Left {
        /// What llama.cpp said.
        reason: String,
    },
    /// A row of logits does not have the length of the vocabulary.
    #[error("a row of {got} logits was given for a vocabulary of {expected}")]
    Row {
        /// The length of the row.
        got: usize,
        /// The length of the vocabulary.
        expected: usize,
    },
}

/// A grammar and how far a text has come in it.
#[derive(Debug)]
pub struct Grammar {
    raw: NonNull<ffi::GrammarHandle>,
    /// Keeps the vocabulary alive that the grammar looks tokens up in.
    model: Arc<Model>,
}

// SAFETY: the shim's grammar is a C++ object without ties to a thread; it
// shares nothing but the vocabulary, which does not change.
unsafe impl Send for Grammar {}

impl Drop for Grammar {
    fn drop(&mut self) {
        // SAFETY: `raw` was returned by the shim and is freed once.
        unsafe { ffi::rbee_grammar_free(self.raw.as_ptr()) }
    }
}

impl Grammar {
    /// Compiles GBNF whose first rule is `root`, to hold from the first token on.
    ///
    /// # Errors
    /// The source is not valid, or has more repetitions than llama.cpp takes.
    pub fn new(model: Arc<Model>, source: &str) -> Result<Self, GrammarError> {
        Self::compile(model, source, None)
    }

    /// As [`Self::new`], but to begin where the text of the accepted tokens
    /// holds `trigger`, and with it. Looks through all of that text with every
    /// token, so it is made for when the trigger is known to come now.
    ///
    /// # Errors
    /// As there.
    pub fn beginning_at(
        model: Arc<Model>,
        source: &str,
        trigger: &str,
    ) -> Result<Self, GrammarError> {
        Self::compile(model, source, Some(trigger))
    }

    fn compile(
        model: Arc<Model>,
        source: &str,
        trigger: Option<&str>,
    ) -> Result<Self, GrammarError> {
        let syntax = |reason: String| GrammarError::Syntax { reason };
        let source = CString::new(source).map_err(|error| syntax(error.to_string()))?;
        let trigger =
            trigger.map(CString::new).transpose().map_err(|error| syntax(error.to_string()))?;
        let mut error = ShimString::null();
        // SAFETY: the vocabulary lives as long as the model, which is kept; the
        // strings are NUL-terminated, or null for no trigger, and copied.
        let raw = unsafe {
            ffi::rbee_grammar_new(
                model.vocab().raw().as_ptr(),
                source.as_ptr(),
                trigger.as_ref().map_or(std::ptr::null(), |trigger| trigger.as_ptr()),
                error.as_out(),
            )
        };
        NonNull::new(raw).map(|raw| Self { raw, model }).ok_or_else(|| syntax(error.reason()))
    }

    /// Copies the grammar with how far the text has come in it; from there each
    /// goes its own way.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn try_clone(&self) -> Result<Self, GrammarError> {
        let mut error = ShimString::null();
        // SAFETY: `raw` is valid and only read; the copy looks tokens up in the
        // same vocabulary, which lives as long as the model, which is kept.
        let raw = unsafe { ffi::rbee_grammar_clone(self.raw.as_ptr(), error.as_out()) };
        NonNull::new(raw)
            .map(|raw| Self { raw, model: Arc::clone(&self.model) })
            .ok_or_else(|| GrammarError::Copy { reason: error.reason() })
    }

    /// Whether a token may come next; a token that ends the generation may
    /// where the grammar is fulfilled.
    #[must_use]
    pub fn allows(&mut self, token: Token) -> bool {
        // SAFETY: `raw` is valid and the id is one of the vocabulary.
        self.id(token).is_some_and(|id| unsafe { ffi::rbee_grammar_allows(self.raw.as_ptr(), id) })
    }

    /// Sets the logit of every token that may not come next to minus infinity.
    ///
    /// # Errors
    /// The row has a wrong length, or the text has left the grammar.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), GrammarError> {
        let vocab = self.model.vocab();
        if logits.len() != vocab.len() {
            return Err(GrammarError::Row { got: logits.len(), expected: vocab.len() });
        }
        // A token can only come if its first byte can. There are few enough of
        // those to ask for each, which spares asking for most of the tokens.
        let singles = vocab.single_bytes();
        let first_bytes = singles.iter().flatten().map(|token| token.0).collect();
        let first_bytes = filter(self.raw, first_bytes)?;
        let possible: Vec<bool> = singles
            .iter()
            .map(|single| single.is_none_or(|token| first_bytes.contains(&token.0)))
            .collect();
        let candidates = (0_u32..).take(logits.len()).filter(|token| {
            let first = vocab.piece_bytes(Token(*token)).first();
            first.and_then(|byte| possible.get(usize::from(*byte))).copied().unwrap_or(true)
        });
        let allowed = filter(self.raw, candidates.collect())?;
        let mut allowed = allowed.into_iter().peekable();
        for (token, logit) in (0..).zip(logits) {
            if allowed.next_if_eq(&token).is_none() {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Goes on by a token, and says whether it was allowed. After one that was
    /// not, none is.
    pub fn accept(&mut self, token: Token) -> bool {
        // SAFETY: `raw` is valid and the id is one of the vocabulary.
        self.id(token).is_some_and(|id| unsafe { ffi::rbee_grammar_accept(self.raw.as_ptr(), id) })
    }

    fn id(&self, token: Token) -> Option<i32> {
        let known = (token.0 as usize) < self.model.vocab().len();
        i32::try_from(token.0).ok().filter(|_| known)
    }
}

/// Keeps those of the tokens, which are of the vocabulary, that may come next.
fn filter(
    grammar: NonNull<ffi::GrammarHandle>,
    mut tokens: Vec<u32>,
) -> Result<Vec<u32>, GrammarError> {
    let mut error = ShimString::null();
    // SAFETY: the grammar is valid; the length is that of the list, whose
    // numbers are ids of the vocabulary, laid out as the ids of llama.cpp.
    let kept = unsafe {
        ffi::rbee_grammar_filter(
            grammar.as_ptr(),
            tokens.as_mut_ptr().cast(),
            i32::try_from(tokens.len()).unwrap_or(i32::MAX),
            error.as_out(),
        )
    };
    let kept = usize::try_from(kept).map_err(|_| GrammarError::Left { reason: error.reason() })?;
    tokens.truncate(kept);
    Ok(tokens)
}
