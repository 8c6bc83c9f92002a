//! From messages and texts to tokens, by the model's own template and
//! vocabulary. Runs on any thread.

use std::sync::Arc;

use rbee_api::openai::ChatMessage;
use rbee_llama::chat::{ChatMessage as TemplateMessage, ChatRequest, ChatTemplate};
use rbee_llama::model::Model;
use rbee_llama::vocab::{AddSpecial, Special, Token};

use crate::engine::backend::{Prompt, PromptError, Tokenizer};
use crate::guide::{Guide, Vocabulary};

/// A loaded model's template and vocabulary.
#[derive(Debug)]
pub(super) struct LlamaTokenizer {
    model: Arc<Model>,
    template: ChatTemplate,
    guide: Guide,
}

impl LlamaTokenizer {
    pub(super) fn new(model: Arc<Model>, template: ChatTemplate) -> Self {
        let guide = Guide::new(Arc::new(Lexicon(Arc::clone(&model))));
        Self { model, template, guide }
    }

    fn tokenize(&self, text: &str, stops: Vec<String>) -> Result<Prompt, PromptError> {
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
        Ok(Prompt { tokens, stops, text: None })
    }
}

impl Tokenizer for LlamaTokenizer {
    fn chat(&self, messages: &[ChatMessage]) -> Result<Prompt, PromptError> {
        let messages: Vec<TemplateMessage> = messages
            .iter()
            .map(|message| TemplateMessage {
                role: message.role.template_name().to_owned(),
                content: message.content.clone(),
            })
            .collect();
        let request =
            ChatRequest { messages: &messages, add_generation_prompt: true, enable_thinking: true };
        let rendered = self
            .template
            .render(&request)
            .map_err(|error| PromptError::Template { reason: error.to_string() })?;
        self.tokenize(&rendered.prompt, rendered.stops)
    }

    fn text(&self, text: &str) -> Result<Prompt, PromptError> {
        self.tokenize(text, Vec::new())
    }

    fn tokens(&self, tokens: &[u32]) -> Result<Prompt, PromptError> {
        let vocabulary = self.model.vocab().len();
        match tokens.iter().position(|token| *token as usize >= vocabulary) {
            Some(position) => {
                let token = tokens.get(position).copied().unwrap_or_default();
                Err(PromptError::UnknownToken { token, position, vocabulary })
            }
            None => Ok(Prompt { tokens: tokens.to_vec(), stops: Vec::new(), text: None }),
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
