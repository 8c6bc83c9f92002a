//! The stand-in for embedding and reranking models in tests: deterministic, no
//! model, the same turns and batches as the real one. An embedding counts hashed
//! words; a score is the share of the query's words that the document has.
//! A word `[[delay_ms=N]]` makes its step take that long.

use std::sync::Arc;
use std::time::Duration;

use rbee_api::model::ModelKind;
use tokio::time::Instant;

use super::{Backend, Dimensions, Embedding, InputReader, StepLimits};
use crate::engine::backend::{Abilities, Core, Loaded, Loader, PromptError, StepError};
use crate::engine::echo::{VOCABULARY, wait_until};
use crate::engine::runner::STEP_TOKENS;
use crate::error::LoadFailure;

/// Numbers in an embedding.
const WIDTH: u32 = 64;
/// Fewest that it may be cut to.
const WIDTH_MIN: u32 = 8;
/// Stands between a query and a document. No word has it.
const SEPARATOR: u32 = u32::MAX;
/// Marks a token that is a delay in milliseconds and no word.
const DELAY: u32 = 1 << 31;
/// Longest delay of a step.
const DELAY_MS_MAX: u32 = 60_000;

/// How to start the stand-in.
#[derive(Debug)]
pub(crate) struct EchoEmbedLoader {
    /// Embeddings or scores.
    pub(crate) kind: ModelKind,
    pub(crate) slots: u32,
    pub(crate) context_tokens: u32,
}

impl Loader for EchoEmbedLoader {
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure> {
        if !progress(0.0) {
            return Err(LoadFailure::Stopped);
        }
        let embedding = Embedding {
            kind: self.kind,
            dimensions: Dimensions { full: WIDTH, least: Some(WIDTH_MIN) },
            reader: Arc::new(EchoReader),
        };
        let loaded = Loaded {
            abilities: Abilities::Embeds(embedding),
            slots: self.slots,
            context_tokens: self.context_tokens,
            device: "cpu".to_owned(),
            description: "echo".to_owned(),
            interrupt: None,
            load_time: Duration::ZERO,
        };
        let limits = StepLimits { inputs: self.slots, tokens: STEP_TOKENS };
        let backend = EchoEmbedder { kind: self.kind, limits };
        Ok((Core::Embedder(Box::new(backend)), loaded))
    }
}

/// Makes a token of every word.
#[derive(Debug)]
struct EchoReader;

impl InputReader for EchoReader {
    fn text(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        let tokens: Vec<u32> = text.split_whitespace().map(token).collect();
        if tokens.is_empty() { Err(PromptError::Empty) } else { Ok(tokens) }
    }

    fn tokens(&self, tokens: &[u32]) -> Result<Vec<u32>, PromptError> {
        let vocabulary = VOCABULARY;
        match (0..).zip(tokens).find(|(_, token)| **token as usize >= vocabulary) {
            Some((position, token)) => {
                Err(PromptError::UnknownToken { token: *token, position, vocabulary })
            }
            None => Ok(tokens.to_vec()),
        }
    }

    fn pair(&self, query: &str, document: &str) -> Result<Vec<u32>, PromptError> {
        let mut tokens = self.text(query)?;
        tokens.push(SEPARATOR);
        tokens.extend(self.text(document)?);
        Ok(tokens)
    }
}

/// The hash of a word within the vocabulary, or a delay.
fn token(word: &str) -> u32 {
    let delay = word.strip_prefix("[[delay_ms=").and_then(|rest| rest.strip_suffix("]]"));
    if let Some(ms) = delay.and_then(|ms| ms.parse::<u32>().ok()) {
        return DELAY | ms.min(DELAY_MS_MAX);
    }
    // FNV-1a, in 32 bits.
    let hash = word.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0193)
    });
    hash % u32::try_from(VOCABULARY).unwrap_or(u32::MAX)
}

/// Counts words.
#[derive(Debug)]
struct EchoEmbedder {
    kind: ModelKind,
    limits: StepLimits,
}

impl Backend for EchoEmbedder {
    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn compute(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
        let started = Instant::now();
        let delays = inputs.iter().flat_map(|input| input.iter());
        let delay = delays
            .filter(|token| **token != SEPARATOR)
            .map(|token| token.checked_sub(DELAY).unwrap_or_default())
            .max()
            .unwrap_or_default();
        wait_until(started + Duration::from_millis(u64::from(delay)));
        Ok(inputs.iter().map(|input| self.result(input)).collect())
    }
}

impl EchoEmbedder {
    fn result(&self, input: &[u32]) -> Vec<f32> {
        match self.kind {
            ModelKind::Rerank => vec![score(input)],
            ModelKind::Embed | ModelKind::Generate => counts(input),
        }
    }
}

/// How often words fall into each of the places of an embedding.
fn counts(words: &[u32]) -> Vec<f32> {
    let mut counts = vec![0.0_f32; WIDTH as usize];
    for word in words.iter().filter(|token| **token < DELAY) {
        if let Some(count) = counts.get_mut((word % WIDTH) as usize) {
            *count += 1.0;
        }
    }
    counts
}

/// The share of the query's words that the document has, from 0 to 1.
fn score(pair: &[u32]) -> f32 {
    let mut parts = pair.split(|token| *token == SEPARATOR);
    let (query, document) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let words = query.iter().filter(|token| **token < DELAY);
    let (mut all, mut found) = (0.0_f32, 0.0_f32);
    for word in words {
        all += 1.0;
        found += if document.contains(word) { 1.0 } else { 0.0 };
    }
    if all > 0.0 { found / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embed(kind: ModelKind, input: &[u32]) -> Vec<f32> {
        let limits = StepLimits { inputs: 1, tokens: 1 };
        EchoEmbedder { kind, limits }.compute(&[input]).unwrap().remove(0)
    }

    #[test]
    fn the_same_words_in_any_order_have_the_same_embedding() {
        let of = |text: &str| embed(ModelKind::Embed, &EchoReader.text(text).unwrap());
        assert_eq!(of("bees make honey"), of("honey bees  make"));
        assert_ne!(of("bees make honey"), of("bees make wax"));
        assert_eq!(of("bees").iter().sum::<f32>(), 1.0);
    }

    #[test]
    fn a_score_is_the_share_of_the_querys_words() {
        let of = |query: &str, document: &str| {
            embed(ModelKind::Rerank, &EchoReader.pair(query, document).unwrap())
        };
        assert_eq!(of("do bees sleep", "bees sleep at night"), [2.0 / 3.0]);
        assert_eq!(of("bees", "nothing here"), [0.0]);
    }

    #[test]
    fn what_has_no_word_or_an_unknown_token_is_refused() {
        assert!(matches!(EchoReader.text(" \n"), Err(PromptError::Empty)));
        let unknown = EchoReader.tokens(&[1, u32::MAX]);
        assert!(matches!(unknown, Err(PromptError::UnknownToken { position: 1, .. })));
    }
}
