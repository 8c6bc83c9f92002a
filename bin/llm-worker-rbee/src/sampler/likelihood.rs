//! How likely the tokens at one place were, measured on the row of logits as
//! the model gave it: before bias, penalties, grammar and temperature, over the
//! whole vocabulary.

use super::candidates::Candidates;
use super::maximum;

/// A token that was chosen, and how likely it and the best ones were.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenLogprobs {
    pub(crate) token: u32,
    /// Natural logarithm of its probability.
    pub(crate) logprob: f32,
    /// The likeliest tokens with theirs, best first.
    pub(crate) top: Vec<(u32, f32)>,
}

/// Measures a chosen token and the `top` likeliest ones.
pub(super) fn measure(
    logits: &[f32],
    token: u32,
    top: u32,
    candidates: &mut Candidates,
) -> TokenLogprobs {
    let max = maximum(logits);
    let sum = logits.iter().map(|logit| f64::from((logit - max).exp())).sum::<f64>();
    #[expect(clippy::cast_possible_truncation, reason = "a float is what replies carry")]
    let log_sum = max + sum.ln() as f32;
    let logit = logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
    let best = candidates.best(logits, top as usize);
    let top = best.map(|(token, logit)| (token, logit - log_sum)).collect();
    TokenLogprobs { token, logprob: logit - log_sum, top }
}
