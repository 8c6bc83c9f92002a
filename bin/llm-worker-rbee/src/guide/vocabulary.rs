//! A model's vocabulary as llguidance wants it: the bytes of every token that
//! may stand in output, in one trie.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

/// Longest token that the trie holds; longer ones, such as a thousand spaces,
/// are never chosen under a grammar.
const TOKEN_BYTES_MAX: usize = 512;
/// The trie marks special tokens with this byte, which no UTF-8 text holds.
const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// The tokens of a model.
pub(crate) trait Vocabulary: std::fmt::Debug + Send + Sync {
    /// How many there are.
    fn len(&self) -> u32;
    /// The bytes that a token adds to the text: none for markers.
    fn text(&self, token: u32) -> &[u8];
    /// Whether a token ends a generation.
    fn is_end(&self, token: u32) -> bool;
    /// Turns a text into tokens, as it stands in the middle of a reply.
    fn tokenize(&self, text: &str) -> Vec<u32>;
}

/// Builds the tables, which takes up to a second for a large vocabulary.
pub(super) fn factory(vocabulary: Arc<dyn Vocabulary>) -> Result<ParserFactory, String> {
    let ends: Vec<u32> = (0..vocabulary.len()).filter(|t| vocabulary.is_end(*t)).collect();
    let Some(first_end) = ends.first() else {
        return Err("it has no token that ends a text".to_owned());
    };
    let words: Vec<Vec<u8>> = (0..vocabulary.len())
        .map(|token| {
            let text = vocabulary.text(token);
            let usable = text.len() <= TOKEN_BYTES_MAX && !text.contains(&MARKER);
            if usable && !vocabulary.is_end(token) { text.to_vec() } else { Vec::new() }
        })
        .collect();
    let info = TokRxInfo::new(vocabulary.len(), *first_end);
    // The trie panics on a vocabulary beyond its own bounds.
    let built = catch_unwind(AssertUnwindSafe(|| {
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        // Not canonical: any tokens that spell an allowed text are allowed, so
        // that a mask allows exactly what a look at one token allows.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        ParserFactory::new_simple(&environment)
    }));
    match built {
        Ok(Ok(factory)) => Ok(factory),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it is beyond what the trie can hold".to_owned()),
    }
}
