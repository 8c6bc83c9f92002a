//! Chooses the next token from a row of logits. The steps, their order and
//! their defaults are those of llama.cpp's server: penalties, top-k, top-p,
//! min-p, temperature, draw. Never computes logits, never looks at text.

mod candidates;
mod penalties;
mod random;

use rbee_api::openai::Sampling;

use candidates::Candidates;
use penalties::Penalties;
use random::Random;

/// Chooses the tokens of one generation. The same settings, seed and logits
/// give the same tokens.
#[derive(Debug)]
pub(crate) struct Sampler {
    settings: Sampling,
    /// `None` when the settings penalise nothing.
    penalties: Option<Penalties>,
    candidates: Candidates,
    random: Random,
}

impl Sampler {
    /// `seed` counts where the settings name none.
    pub(crate) fn new(settings: Sampling, seed: u64) -> Self {
        let random = Random::new(settings.seed.unwrap_or(seed));
        let penalties = Penalties::new(&settings);
        Self { settings, penalties, candidates: Candidates::default(), random }
    }

    /// Counts tokens into the window that the penalties look at: those of the
    /// prompt, and then each one chosen.
    pub(crate) fn accept(&mut self, tokens: &[u32]) {
        if let Some(penalties) = &mut self.penalties {
            penalties.accept(tokens);
        }
    }

    /// Chooses a token; `None` for an empty row.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let logits = match &mut self.penalties {
            Some(penalties) => penalties.apply(logits),
            None => logits,
        };
        let token = if self.settings.temperature <= 0.0 || self.settings.top_k == 1 {
            argmax(logits)
        } else {
            self.candidates.draw(logits, &self.settings, &mut self.random)
        };
        if let Some(token) = token {
            self.accept(&[token]);
        }
        token
    }
}

/// The position of the largest number, the first of several.
fn argmax(logits: &[f32]) -> Option<u32> {
    let max = maximum(logits);
    let index = logits.iter().position(|logit| *logit >= max).or((!logits.is_empty()).then_some(0));
    index.and_then(|index| u32::try_from(index).ok())
}

/// The largest number, minus infinity for none. Written in lanes, because one
/// running maximum would make every comparison wait for the one before.
fn maximum(values: &[f32]) -> f32 {
    let (lanes, rest) = values.as_chunks::<32>();
    let mut best = [f32::NEG_INFINITY; 32];
    for lane in lanes {
        for (best, value) in best.iter_mut().zip(lane) {
            *best = if *value > *best { *value } else { *best };
        }
    }
    best.iter().chain(rest).fold(f32::NEG_INFINITY, |max, value| max.max(*value))
}

#[cfg(test)]
mod tests;
