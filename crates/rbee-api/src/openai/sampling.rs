//! How tokens are chosen: the settings, their ranges and their defaults.

use std::collections::BTreeMap;

use super::fields::{Fields, RequestError, in_range};
use crate::limits;

/// How tokens are chosen. The order of the steps and the defaults are those of
/// llama.cpp's server: bias, penalties, DRY, top-n-sigma, top-k, typical-p,
/// top-p, min-p, XTC, temperature, draw.
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
    /// Keeps the tokens whose surprise is nearest to the expected one, up to
    /// this share of the probability; 1 is off.
    pub typical_p: f32,
    /// Drops tokens whose logit is more than this many standard deviations
    /// below the best; 0 or less is off.
    pub top_n_sigma: f32,
    /// Drops the most likely tokens at times; absent is off.
    pub xtc: Option<Xtc>,
    /// Divides the logit of a token seen in the window; 1 is off.
    pub repeat_penalty: f32,
    /// Length of the penalty window in tokens; 0 is off.
    pub repeat_last_n: u32,
    /// Subtracted once from a token seen in the window; -2 to 2.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was seen in the window; -2 to 2.
    pub frequency_penalty: f32,
    /// Makes long repetitions less likely; absent is off.
    pub dry: Option<Dry>,
    /// Added to the logits of single tokens, by id; each -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes the draw repeatable; absent means a fresh seed.
    pub seed: Option<u64>,
}

/// XTC, "exclude top choices": drops all but the last of the tokens above a threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Xtc {
    /// How often it does; above 0, at most 1.
    pub probability: f32,
    /// Likelihood from which a token is a top choice; 0 to 0.5.
    pub threshold: f32,
}

/// DRY, "don't repeat yourself": the longer the sequence that a token would
/// repeat, the less likely it becomes.
#[derive(Debug, Clone, PartialEq)]
pub struct Dry {
    /// Scales the penalty; above 0.
    pub multiplier: f32,
    /// The penalty grows by this factor with each repeated token; at least 1.
    pub base: f32,
    /// Longest repetition without a penalty, in tokens.
    pub allowed_length: u32,
    /// Tokens looked back over; absent means all.
    pub last_n: Option<u32>,
    /// Texts that no repetition reaches across.
    pub breakers: Vec<String>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            typical_p: 1.0,
            top_n_sigma: -1.0,
            xtc: None,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl Sampling {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        let default = Self::default();
        let repeat_last_n = fields.take::<u32>("repeat_last_n")?.unwrap_or(default.repeat_last_n);
        Ok(Self {
            temperature: number(fields, "temperature", default.temperature, 0.0, 2.0)?,
            top_k: fields.take::<u32>("top_k")?.unwrap_or(default.top_k),
            top_p: number(fields, "top_p", default.top_p, 0.0, 1.0)?,
            min_p: number(fields, "min_p", default.min_p, 0.0, 1.0)?,
            typical_p: number(fields, "typical_p", default.typical_p, 0.0, 1.0)?,
            top_n_sigma: number(fields, "top_n_sigma", default.top_n_sigma, -1.0, 100.0)?,
            xtc: Xtc::take(fields)?,
            repeat_penalty: number(fields, "repeat_penalty", default.repeat_penalty, 0.01, 10.0)?,
            repeat_last_n: in_range("repeat_last_n", repeat_last_n, 0, limits::REPEAT_LAST_N_MAX)?,
            presence_penalty: number(fields, "presence_penalty", 0.0, -2.0, 2.0)?,
            frequency_penalty: number(fields, "frequency_penalty", 0.0, -2.0, 2.0)?,
            dry: Dry::take(fields)?,
            logit_bias: take_logit_bias(fields)?,
            seed: fields.take::<i64>("seed")?.map(i64::cast_unsigned),
        })
    }
}

fn number(
    fields: &mut Fields,
    name: &str,
    fallback: f32,
    min: f32,
    max: f32,
) -> Result<f32, RequestError> {
    in_range(name, fields.take::<f32>(name)?.unwrap_or(fallback), min, max)
}

impl Xtc {
    fn take(fields: &mut Fields) -> Result<Option<Self>, RequestError> {
        let probability = number(fields, "xtc_probability", 0.0, 0.0, 1.0)?;
        let threshold = number(fields, "xtc_threshold", 0.1, 0.0, 1.0)?;
        // Above a half there is never more than one top choice, and the last one stays.
        let works = probability > 0.0 && threshold <= 0.5;
        Ok(works.then_some(Self { probability, threshold }))
    }
}

impl Dry {
    /// The texts that llama.cpp's server breaks at by default.
    const BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

    fn take(fields: &mut Fields) -> Result<Option<Self>, RequestError> {
        let multiplier = number(fields, "dry_multiplier", 0.0, 0.0, 100.0)?;
        let base = number(fields, "dry_base", 1.75, 0.0, 100.0)?;
        let allowed_length = fields.take::<u32>("dry_allowed_length")?.unwrap_or(2);
        let last_n = fields.take::<i64>("dry_penalty_last_n")?.unwrap_or(-1);
        let last_n =
            in_range("dry_penalty_last_n", last_n, -1, i64::from(limits::REPEAT_LAST_N_MAX))?;
        let breakers = fields.take::<Vec<String>>("dry_sequence_breakers")?;
        let breakers = breakers.unwrap_or_else(|| Self::BREAKERS.map(ToOwned::to_owned).to_vec());
        if breakers.len() > limits::DRY_BREAKERS_MAX {
            let reason =
                format!("dry_sequence_breakers takes at most {} texts", limits::DRY_BREAKERS_MAX);
            return Err(RequestError::invalid("dry_sequence_breakers", reason));
        }
        let wrong = |text: &String| text.is_empty() || text.len() > limits::DRY_BREAKER_BYTES_MAX;
        if let Some(index) = breakers.iter().position(wrong) {
            return Err(RequestError::invalid(
                format!("dry_sequence_breakers[{index}]"),
                format!("a sequence breaker has 1 to {} bytes", limits::DRY_BREAKER_BYTES_MAX),
            ));
        }
        let works = multiplier > 0.0 && base >= 1.0 && last_n != 0;
        let last_n = u32::try_from(last_n).ok();
        Ok(works.then_some(Self { multiplier, base, allowed_length, last_n, breakers }))
    }
}

fn take_logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, RequestError> {
    let Some(biases) = fields.take::<BTreeMap<String, f32>>("logit_bias")? else {
        return Ok(Vec::new());
    };
    if biases.len() > limits::LOGIT_BIAS_MAX {
        let reason = format!("logit_bias takes at most {} tokens", limits::LOGIT_BIAS_MAX);
        return Err(RequestError::invalid("logit_bias", reason));
    }
    let check = |(token, bias): (String, f32)| {
        let Ok(id) = token.parse::<u32>() else {
            let shown: String = token.chars().filter(|c| !c.is_control()).take(64).collect();
            let reason = format!("the keys of logit_bias are token ids, not {shown:?}");
            return Err(RequestError::invalid("logit_bias", reason));
        };
        Ok((id, in_range(&format!("logit_bias.{id}"), bias, -100.0, 100.0)?))
    };
    biases.into_iter().map(check).collect()
}
