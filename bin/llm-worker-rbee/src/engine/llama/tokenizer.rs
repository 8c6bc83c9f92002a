//! From messages and texts to tokens, by the model's own template and
//! vocabulary. Runs on any thread.

use std::sync::Arc;

use rbee_api::openai::ChatMessage;
use rbee_llama::chat::{ChatMessage as TemplateMessage, ChatRequest, ChatTemplate};
use rbee_llama::model::Model;
use rbee_llama::vocab::{AddSpecial, Special};

use crate::engine::backend::{Prompt, PromptError, Tokenizer};

/// A loaded model's template and vocabulary.
#[derive(Debug)]
pub(super) struct LlamaTokenizer {
    pub(super) model: Arc<Model>,
    pub(super) template: ChatTemplate,
}

impl LlamaTokenizer {
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
}
