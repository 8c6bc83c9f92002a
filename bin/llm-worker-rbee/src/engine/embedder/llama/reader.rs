//! From texts to tokens, by the model's own vocabulary, and from a query and a
//! document to the one input that a reranking model was trained to see. Runs on
//! any thread.

use std::sync::Arc;

use rbee_llama::model::Model;
use rbee_llama::vocab::{AddSpecial, Special, Token};

use crate::engine::backend::PromptError;
use crate::engine::embedder::InputReader;

/// The template for a pair, where a model file has one.
const PAIR_TEMPLATE: &str = "rerank";

/// A loaded model's vocabulary.
#[derive(Debug)]
pub(super) struct LlamaReader {
    model: Arc<Model>,
    pair_template: Option<String>,
}

impl LlamaReader {
    pub(super) fn new(model: Arc<Model>) -> Self {
        let pair_template = model.template(PAIR_TEMPLATE);
        Self { model, pair_template }
    }

    fn tokenize(
        &self,
        text: &str,
        add: AddSpecial,
        special: Special,
    ) -> Result<Vec<Token>, PromptError> {
        let tokens = self.model.vocab().tokenize(text, add, special);
        tokens.map_err(|error| PromptError::Tokenize { reason: error.to_string() })
    }

    /// The two texts with the special tokens around them that the vocabulary
    /// asks for. A vocabulary without an end token ends texts by its separator.
    fn plain_pair(&self, query: &str, document: &str) -> Result<Vec<Token>, PromptError> {
        let vocab = self.model.vocab();
        let end = vocab.eos().or(vocab.sep()).filter(|_| vocab.add_eos());
        let mut tokens = Vec::new();
        tokens.extend(vocab.bos().filter(|_| vocab.add_bos()));
        tokens.extend(self.tokenize(query, AddSpecial::No, Special::AsText)?);
        tokens.extend(end);
        tokens.extend(vocab.sep().filter(|_| vocab.add_sep()));
        tokens.extend(self.tokenize(document, AddSpecial::No, Special::AsText)?);
        tokens.extend(end);
        Ok(tokens)
    }
}

impl InputReader for LlamaReader {
    fn text(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        not_empty(self.tokenize(text, AddSpecial::Yes, Special::Parse)?)
    }

    fn tokens(&self, tokens: &[u32]) -> Result<Vec<u32>, PromptError> {
        let vocabulary = self.model.vocab().len();
        let unknown = (0..).zip(tokens).find(|(_, token)| **token as usize >= vocabulary);
        match unknown {
            Some((position, token)) => {
                Err(PromptError::UnknownToken { token: *token, position, vocabulary })
            }
            None => Ok(tokens.to_vec()),
        }
    }

    fn pair(&self, query: &str, document: &str) -> Result<Vec<u32>, PromptError> {
        not_empty(match &self.pair_template {
            Some(template) => {
                let text = fill(template, query, document);
                self.tokenize(&text, AddSpecial::No, Special::Parse)?
            }
            None => self.plain_pair(query, document)?,
        })
    }
}

fn not_empty(tokens: Vec<Token>) -> Result<Vec<u32>, PromptError> {
    if tokens.is_empty() {
        return Err(PromptError::Empty);
    }
    Ok(tokens.into_iter().map(|token| token.0).collect())
}

/// Puts the texts into the template's places. What looks like a place inside
/// a text stays as it is.
fn fill(template: &str, query: &str, document: &str) -> String {
    let mut text = String::with_capacity(template.len() + query.len() + document.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, place) = rest.split_at(at);
        text.push_str(before);
        let places = [("{query}", query), ("{document}", document)];
        let known =
            places.iter().find_map(|(name, value)| Some((place.strip_prefix(name)?, value)));
        match known {
            Some((after, value)) => {
                text.push_str(value);
                rest = after;
            }
            None => {
                text.push('{');
                rest = place.strip_prefix('{').unwrap_or_default();
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled_once_and_texts_are_left_alone() {
        for (template, filled) in [
            ("<Q>{query}<D>{document}<E>", "<Q>a {document} b<D>c {query}<E>"),
            ("{document}{document}", "c {query}c {query}"),
            ("{x}{{query}}{", "{x}{a {document} b}{"),
            ("", ""),
        ] {
            assert_eq!(fill(template, "a {document} b", "c {query}"), filled, "{template}");
        }
    }
}
