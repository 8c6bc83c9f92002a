//! `POST /v1/completions`: the request.

use input_validation::ModelRef;
use serde::Deserialize;
use serde_json::{Value, json};

use super::fields::{Fields, RequestError, in_range};
use super::generation::{GenerationOptions, StreamOptions};
use crate::limits;

/// What to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompletionPrompt {
    /// Text, tokenised by the worker.
    Text(String),
    /// Token ids, taken as they are; the worker checks that they exist.
    Tokens(Vec<u32>),
}

/// A checked completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The model, as the client named it.
    pub model: ModelRef,
    /// What to continue; never empty.
    pub prompt: CompletionPrompt,
    /// Length, stopping, sampling.
    pub generation: GenerationOptions,
    /// Whether and how to stream.
    pub stream: StreamOptions,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPrompt {
    Text(String),
    Tokens(Vec<u32>),
    Batch(Vec<Value>),
}

impl CompletionRequest {
    /// OpenAI's default length of a text completion.
    pub const MAX_TOKENS_DEFAULT: u32 = 16;

    /// Parses and checks a request body.
    ///
    /// # Errors
    /// [`RequestError`] names the field that is wrong or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.require("model")?;
        let prompt = check_prompt(fields.require("prompt")?)?;
        let mut generation = GenerationOptions::take(&mut fields)?;
        generation.max_tokens = generation.max_tokens.or(Some(Self::MAX_TOKENS_DEFAULT));
        generation.logprobs = fields
            .take::<u32>("logprobs")?
            .map(|top| in_range("logprobs", top, 0, limits::TOP_LOGPROBS_MAX))
            .transpose()?;
        let stream = StreamOptions::take(&mut fields)?;
        fields.only("echo", &[json!(false)])?;
        check_best_of(&mut fields, generation.choices)?;
        fields.only("suffix", &[json!("")])?;
        fields.finish()?;
        Ok(Self { model, prompt, generation, stream })
    }
}

/// Choosing the best of more replies than are returned is left to the client.
fn check_best_of(fields: &mut Fields, choices: u32) -> Result<(), RequestError> {
    match fields.take::<u32>("best_of")? {
        Some(best_of) if best_of != choices => {
            let reason = format!(
                "best_of must be the same as n, here {choices}; leave it out, \
                 or ask for as many choices with n and choose among them"
            );
            Err(RequestError::unsupported("best_of", reason))
        }
        Some(_) | None => Ok(()),
    }
}

fn check_prompt(raw: RawPrompt) -> Result<CompletionPrompt, RequestError> {
    let prompt = match raw {
        RawPrompt::Text(text) => CompletionPrompt::Text(text),
        RawPrompt::Tokens(tokens) => CompletionPrompt::Tokens(tokens),
        RawPrompt::Batch(mut items) => match (items.pop(), items.is_empty()) {
            (Some(Value::String(text)), true) => CompletionPrompt::Text(text),
            _ => {
                let reason = "one prompt a request: a text, or a list of token ids";
                return Err(RequestError::unsupported("prompt", reason));
            }
        },
    };
    match &prompt {
        CompletionPrompt::Text(text) if text.is_empty() => {
            Err(RequestError::invalid("prompt", "prompt is empty; say something"))
        }
        CompletionPrompt::Text(text) if text.contains('\0') => {
            Err(RequestError::invalid("prompt", "text must not contain a NUL character"))
        }
        CompletionPrompt::Tokens(tokens) if tokens.is_empty() => {
            Err(RequestError::invalid("prompt", "prompt is empty; say something"))
        }
        CompletionPrompt::Tokens(tokens) if tokens.len() > limits::MAX_TOKENS_MAX as usize => {
            Err(RequestError::invalid("prompt", "prompt has too many tokens"))
        }
        CompletionPrompt::Text(_) | CompletionPrompt::Tokens(_) => Ok(prompt),
    }
}
