//! Chooses the next token from a row of logits. The steps, their order and
//! their defaults are those of llama.cpp's server: penalties, top-k, top-p,
//! min-p, temperature, draw. Never computes logits, never looks at text.

mod candidates;
pub(crate) mod constraint;
mod penalties;
mod random;

use rbee_api::openai::Sampling;

use candidates::Candidates;
use constraint::Constraint;
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
    /// What the reply is held to, if anything.
    constraint: Option<Box<dyn Constraint>>,
}

impl Sampler {
    /// `seed` counts where the settings name none.
    pub(crate) fn new(settings: Sampling, seed: u64) -> Self {
        let random = Random::new(settings.seed.unwrap_or(seed));
        let penalties = Penalties::new(&settings);
        Self { settings, penalties, candidates: Candidates::default(), random, constraint: None }
    }

    /// Holds all tokens chosen from now on to a constraint.
    pub(crate) fn constrain(&mut self, constraint: Option<Box<dyn Constraint>>) {
        self.constraint = constraint;
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
        let mut token = self.pick(logits);
        if let Some(mut constraint) = self.constraint.take() {
            // Nearly every token is allowed; to look at all of them costs a thousand times more.
            if !token.is_some_and(|token| constraint.allows(token)) {
                let mut masked = logits.to_vec();
                constraint.mask(&mut masked);
                token = self.pick(&masked);
            }
            if let Some(token) = token {
                constraint.accept(token);
            }
            self.constraint = Some(constraint);
        }
        if let Some(token) = token {
            self.accept(&[token]);
        }
        token
    }

    fn pick(&mut self, logits: &[f32]) -> Option<u32> {
        let logits = match &mut self.penalties {
            Some(penalties) => penalties.apply(logits),
            None => logits,
        };
        if self.settings.temperature <= 0.0 || self.settings.top_k == 1 {
            argmax(logits)
        } else {
            self.candidates.draw(logits, &self.settings, &mut self.random)
        }
    }
}

/// Numbers looked at together where most of them do not matter.
const BLOCK: usize = 64;

/// The position of the largest number, the first of several; 0 where there is
/// no number at all.
fn argmax(logits: &[f32]) -> Option<u32> {
    let max = maximum(logits);
    let mut blocks = (0..).step_by(BLOCK).zip(logits.chunks(BLOCK));
    let found = blocks.find(|(_, block)| any_in(block, |logit| logit >= max));
    let found = found.and_then(|(first, block)| {
        (first..).zip(block).find(|(_, logit)| **logit >= max).map(|(token, _)| token)
    });
    found.or((!logits.is_empty()).then_some(0))
}

/// Looks at every number, since stopping at the first hit would keep the
/// processor from looking at many at once.
fn any_in(block: &[f32], wanted: impl Fn(f32) -> bool) -> bool {
    block.iter().fold(false, |found, logit| found | wanted(*logit))
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
