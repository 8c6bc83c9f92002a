//! Log probabilities in OpenAI's two shapes: a list of tokens for chats, lists
//! side by side for completions.

use std::collections::BTreeMap;
use std::sync::Arc;

use rbee_api::openai::{ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob};

use crate::engine::backend::Tokenizer;
use crate::text::PlacedLogprobs;

/// Stands for a probability of 0, which JSON has no logarithm of.
const LOGPROB_MIN: f32 = -9999.0;

/// Spells tokens for one reply that tells log probabilities.
#[derive(Debug, Clone)]
pub(crate) struct LogprobShape {
    tokenizer: Arc<dyn Tokenizer>,
    /// Alternatives asked for beside each token.
    top: u32,
}

impl LogprobShape {
    pub(crate) fn new(tokenizer: Arc<dyn Tokenizer>, top: u32) -> Self {
        Self { tokenizer, top }
    }

    pub(super) fn chat(&self, tokens: &[PlacedLogprobs]) -> ChatLogprobs {
        let content = tokens.iter().map(|PlacedLogprobs { logprobs, .. }| {
            let top_logprobs = logprobs.top.iter().map(|(token, logprob)| {
                let (token, bytes) = self.spell(*token);
                TopLogprob { token, logprob: logprob.max(LOGPROB_MIN), bytes }
            });
            let (token, bytes) = self.spell(logprobs.token);
            let logprob = logprobs.logprob.max(LOGPROB_MIN);
            TokenLogprob { token, logprob, bytes, top_logprobs: top_logprobs.collect() }
        });
        ChatLogprobs { content: content.collect(), refusal: None }
    }

    pub(super) fn completion(&self, tokens: &[PlacedLogprobs]) -> CompletionLogprobs {
        let chosen = |placed: &PlacedLogprobs| (placed.logprobs.token, placed.logprobs.logprob);
        let alternatives = |placed: &PlacedLogprobs| -> BTreeMap<String, f32> {
            let all = placed.logprobs.top.iter().copied().chain([chosen(placed)]);
            all.map(|(token, logprob)| (self.key(token), logprob.max(LOGPROB_MIN))).collect()
        };
        CompletionLogprobs {
            tokens: tokens.iter().map(|placed| self.key(placed.logprobs.token)).collect(),
            token_logprobs: tokens.iter().map(|p| p.logprobs.logprob.max(LOGPROB_MIN)).collect(),
            top_logprobs: (self.top > 0).then(|| tokens.iter().map(alternatives).collect()),
            text_offset: tokens.iter().map(|placed| placed.offset).collect(),
        }
    }

    fn spell(&self, token: u32) -> (String, Vec<u8>) {
        let bytes = self.tokenizer.spelling(token);
        (String::from_utf8_lossy(&bytes).into_owned(), bytes)
    }

    /// A text that tells tokens apart also where they are parts of characters.
    fn key(&self, token: u32) -> String {
        String::from_utf8(self.tokenizer.spelling(token)).unwrap_or_else(|error| {
            let hex: String = error.as_bytes().iter().map(|b| format!("\\x{b:02x}")).collect();
            format!("bytes:{hex}")
        })
    }
}
