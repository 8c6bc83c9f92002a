//! What chat and text completion have in common: how many choices, length,
//! stopping, sampling, the form of the output and streaming.

use serde::Deserialize;
use serde_json::json;

use super::fields::{Fields, RequestError, in_range};
use super::format::OutputFormat;
use super::sampling::Sampling;
use crate::limits;

/// Everything about one generation except its prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// Replies to generate to the one prompt; 1 to [`limits::CHOICES_MAX`].
    pub choices: u32,
    /// Most tokens to generate; absent means up to the end of the context.
    pub max_tokens: Option<u32>,
    /// Texts that end the generation and are not part of it.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What the output has to look like.
    pub format: OutputFormat,
    /// Tokens before which the model cannot end the generation.
    pub min_tokens: u32,
    /// The model cannot end the generation at all.
    pub ignore_eos: bool,
    /// How many of the likeliest tokens are told beside each chosen one;
    /// absent means that no log probabilities are told.
    pub logprobs: Option<u32>,
    /// Whom the client asks for. Prompts of different users share no computed tokens.
    pub user: Option<String>,
}

/// Whether and how to stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Server-sent events instead of one reply.
    pub stream: bool,
    /// One more event with the token counts before the end.
    pub include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStreamOptions {
    #[serde(default)]
    include_usage: bool,
    #[serde(default)]
    include_obfuscation: bool,
}

impl GenerationOptions {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        // OpenAI renamed `max_tokens`; the new name wins where both are given.
        let old = fields.take::<u32>("max_tokens")?.map(|n| ("max_tokens", n));
        let new =
            fields.take::<u32>("max_completion_tokens")?.map(|n| ("max_completion_tokens", n));
        let max_tokens = new
            .or(old)
            .map(|(name, n)| in_range(name, n, 1, limits::MAX_TOKENS_MAX))
            .transpose()?;
        let min_tokens = fields.take::<u32>("min_tokens")?.unwrap_or(0);
        let choices = fields.take::<u32>("n")?.unwrap_or(1);
        let options = Self {
            choices: in_range("n", choices, 1, limits::CHOICES_MAX)?,
            max_tokens,
            stop: take_stop(fields)?,
            sampling: Sampling::take(fields)?,
            format: OutputFormat::take(fields)?,
            min_tokens: in_range("min_tokens", min_tokens, 0, limits::MAX_TOKENS_MAX)?,
            ignore_eos: fields.take::<bool>("ignore_eos")?.unwrap_or(false),
            logprobs: None,
            user: take_user(fields)?,
        };
        take_cache_hints(fields)?;
        options.check_ends()?;
        Ok(options)
    }

    /// A grammar decides when the output is complete, so nothing else may.
    fn check_ends(&self) -> Result<(), RequestError> {
        let param = match (self.ignore_eos, self.min_tokens) {
            (true, _) => "ignore_eos",
            (false, 1..) => "min_tokens",
            (false, 0) => return Ok(()),
        };
        match self.format.param() {
            None => Ok(()),
            Some(format) => {
                let reason = format!("{param} cannot be combined with {format}; leave one out");
                Err(RequestError::unsupported(param, reason))
            }
        }
    }
}

impl StreamOptions {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        let stream = fields.take::<bool>("stream")?.unwrap_or(false);
        fields.check_object("stream_options")?;
        let options = fields.take::<RawStreamOptions>("stream_options")?;
        if options.is_some() && !stream {
            let reason = "stream_options is only allowed when stream is true";
            return Err(RequestError::invalid("stream_options", reason));
        }
        let options = options.unwrap_or_default();
        if options.include_obfuscation {
            return Err(RequestError::unsupported(
                "stream_options.include_obfuscation",
                "stream_options.include_obfuscation is not supported; leave it out",
            ));
        }
        Ok(Self { stream, include_usage: options.include_usage })
    }
}

/// OpenAI renamed `user`; the new name wins where both are given.
pub(super) fn take_user(fields: &mut Fields) -> Result<Option<String>, RequestError> {
    let old = fields.take_text("user", limits::USER_BYTES_MAX)?;
    let new = fields.take_text("safety_identifier", limits::USER_BYTES_MAX)?;
    Ok(new.or(old))
}

/// Takes what clients say to help a cache: a worker finds what it has computed
/// of a prompt without.
fn take_cache_hints(fields: &mut Fields) -> Result<(), RequestError> {
    fields.take_text("prompt_cache_key", limits::USER_BYTES_MAX)?;
    fields.only("prompt_cache_retention", &[json!("in_memory"), json!("in-memory")])?;
    fields.only("cache_prompt", &[json!(true)])
}

fn take_stop(fields: &mut Fields) -> Result<Vec<String>, RequestError> {
    let stop = match fields.take::<OneOrMany>("stop")? {
        None => Vec::new(),
        Some(OneOrMany::One(text)) => vec![text],
        Some(OneOrMany::Many(texts)) => texts,
    };
    if stop.len() > limits::STOP_SEQUENCES_MAX {
        let reason = format!("stop takes at most {} sequences", limits::STOP_SEQUENCES_MAX);
        return Err(RequestError::invalid("stop", reason));
    }
    match stop.iter().position(|s| s.is_empty() || s.len() > limits::STOP_BYTES_MAX) {
        None => Ok(stop),
        Some(index) => Err(RequestError::invalid(
            format!("stop[{index}]"),
            format!("a stop sequence has 1 to {} bytes", limits::STOP_BYTES_MAX),
        )),
    }
}
