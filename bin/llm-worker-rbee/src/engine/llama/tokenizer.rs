//! From messages and texts to tokens, by the model's own template and
//! vocabulary, and how the reply is to be written and read. Runs on any thread.

use std::sync::Arc;

use rbee_llama::chat::ChatTemplate;
use rbee_llama::model::Model;
use rbee_llama::reply::ReplyFormat;
use rbee_llama::vocab::{AddSpecial, Special, Token};

use super::calls::CallGrammar;
use super::template_watch::TemplateWatch;
use crate::engine::backend::{Conversation, Prepared, Prompt, PromptError, Tokenizer};
use crate::engine::template::render;
use crate::guide::{Guide, Vocabulary};
use crate::sampler::constraint::Constraint;

/// A loaded model's template and vocabulary.
#[derive(Debug)]
pub(super) struct LlamaTokenizer {
    model: Arc<Model>,
    template: ChatTemplate,
    watch: TemplateWatch,
    guide: Guide,
}

impl LlamaTokenizer {
    pub(super) fn new(model: Arc<Model>, template: ChatTemplate, watch: TemplateWatch) -> Self {
        let guide = Guide::new(Arc::new(Lexicon(Arc::clone(&model))));
        Self { model, template, watch, guide }
    }

    fn tokenize(&self, text: &str) -> Result<Prompt, PromptError> {
        // The template engine leaves out a begin token that the tokenizer
        // adds, so that there is one and not two.
        let tokens = self
            .model
            .vocab()
            .tokenize(text, AddSpecial::Yes, Special::Parse)
            .map_err(|error| PromptError::Tokenize { reason: error.to_string() })?;
        if tokens.is_empty() {
            return Err(PromptError::Empty);
        }
        let tokens = tokens.into_iter().map(|token| token.0).collect();
        Ok(Prompt { tokens, ..Prompt::default() })
    }

    /// The control tokens that the reader of a reply has to see.
    fn visible(&self, format: &ReplyFormat) -> Result<Vec<(u32, Vec<u8>)>, PromptError> {
        let vocab = self.model.vocab();
        let marks = format.thinking_end.iter().chain([&format.thinking_start]);
        let mut visible = Vec::new();
        for text in format.preserved.iter().chain(marks) {
            let tokens = vocab
                .tokenize(text, AddSpecial::No, Special::Parse)
                .map_err(|error| PromptError::Tokenize { reason: error.to_string() })?;
            if let [token] = tokens.as_slice()
                && vocab.is_control(*token)
            {
                visible.push((token.0, vocab.spelling(*token)));
            }
        }
        Ok(visible)
    }
}

impl Tokenizer for LlamaTokenizer {
    fn chat(&self, conversation: &Conversation) -> Result<Prepared, PromptError> {
        let rendering = self.watch.begin();
        let rendered = render(&self.template, conversation)?;
        drop(rendering);
        let mut prompt = self.tokenize(&rendered.prompt)?;
        prompt.stops = rendered.stops;
        let Some(format) = rendered.reply else { return Ok(prompt.into()) };
        prompt.visible = self.visible(&format)?;
        let grammar = CallGrammar::new(&self.model, &format)
            .map_err(|error| PromptError::Tools { reason: error.to_string() })?;
        let constraint = grammar.map(|grammar| Box::new(grammar) as Box<dyn Constraint>);
        Ok(Prepared { prompt, format: Some(format), constraint })
    }

    fn text(&self, text: &str) -> Result<Prompt, PromptError> {
        self.tokenize(text)
    }

    fn tokens(&self, tokens: &[u32]) -> Result<Prompt, PromptError> {
        let vocabulary = self.model.vocab().len();
        match tokens.iter().position(|token| *token as usize >= vocabulary) {
            Some(position) => {
                let token = tokens.get(position).copied().unwrap_or_default();
                Err(PromptError::UnknownToken { token, position, vocabulary })
            }
            None => Ok(Prompt { tokens: tokens.to_vec(), ..Prompt::default() }),
        }
    }

    fn spelling(&self, token: u32) -> Vec<u8> {
        self.model.vocab().spelling(Token(token))
    }

    fn guide(&self) -> Option<&Guide> {
        Some(&self.guide)
    }
}

/// The vocabulary as the guide wants it.
#[derive(Debug)]
struct Lexicon(Arc<Model>);

impl Vocabulary for Lexicon {
    fn len(&self) -> u32 {
        u32::try_from(self.0.vocab().len()).unwrap_or(u32::MAX)
    }

    fn text(&self, token: u32) -> &[u8] {
        self.0.vocab().piece_bytes(Token(token))
    }

    fn is_end(&self, token: u32) -> bool {
        self.0.vocab().is_eog(Token(token))
    }

    fn tokenize(&self, text: &str) -> Vec<u32> {
        let tokens = self.0.vocab().tokenize(text, AddSpecial::No, Special::AsText);
        tokens.unwrap_or_default().into_iter().map(|token| token.0).collect()
    }
}
