//! What chat and text completion have in common: length, stopping, sampling
//! and streaming.

use serde::Deserialize;
use serde_json::json;

use super::fields::{Fields, RequestError, in_range};
use crate::limits;

/// How tokens are chosen. The order of the steps and the defaults are those of
/// llama.cpp's server: penalties, top-k, top-p, min-p, temperature, draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; 0 to 2.
    pub temperature: f32,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the most likely tokens up to this share of the probability.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one.
    pub min_p: f32,
    /// Divides the logit of a token seen in the window; 1 is off.
    pub repeat_penalty: f32,
    /// Length of the penalty window in tokens; 0 is off.
    pub repeat_last_n: u32,
    /// Subtracted once from a token seen in the window; -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was seen in the window; -2 to 2.
    pub frequency_penalty: f32,
    /// Makes the draw repeatable; absent means a fresh seed.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
        }
    }
}

/// Everything about one generation except its prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationOptions {
    /// Most tokens to generate; absent means up to the end of the context.
    pub max_tokens: Option<u32>,
    /// Texts that end the generation and are not part of it.
    pub stop: Vec<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
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
        Ok(Self {
            max_tokens,
            stop: take_stop(fields)?,
            sampling: Sampling::take(fields)?,
            user: fields.take_text("user", limits::USER_BYTES_MAX)?,
        })
    }
}

impl Sampling {
    fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        let default = Self::default();
        let mut number = |name: &str, fallback: f32, min: f32, max: f32| {
            let value = fields.take::<f32>(name)?.unwrap_or(fallback);
            in_range(name, value, min, max)
        };
        let temperature = number("temperature", default.temperature, 0.0, 2.0)?;
        let top_p = number("top_p", default.top_p, 0.0, 1.0)?;
        let min_p = number("min_p", default.min_p, 0.0, 1.0)?;
        let repeat_penalty = number("repeat_penalty", default.repeat_penalty, 0.01, 10.0)?;
        let presence_penalty = number("presence_penalty", default.presence_penalty, -2.0, 2.0)?;
        let frequency_penalty = number("frequency_penalty", default.frequency_penalty, -2.0, 2.0)?;
        let repeat_last_n = fields.take::<u32>("repeat_last_n")?.unwrap_or(default.repeat_last_n);
        Ok(Self {
            temperature,
            top_k: fields.take::<u32>("top_k")?.unwrap_or(default.top_k),
            top_p,
            min_p,
            repeat_penalty,
            repeat_last_n: in_range("repeat_last_n", repeat_last_n, 0, limits::REPEAT_LAST_N_MAX)?,
            presence_penalty,
            frequency_penalty,
            seed: fields.take::<i64>("seed")?.map(i64::cast_unsigned),
        })
    }
}

impl StreamOptions {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        let stream = fields.take::<bool>("stream")?.unwrap_or(false);
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

/// Takes the parameters that chat and completion share and rbee does not honour.
pub(super) fn take_neutral(fields: &mut Fields) -> Result<(), RequestError> {
    fields.only("n", &[json!(1)])?;
    fields.only("logit_bias", &[json!({})])
}
