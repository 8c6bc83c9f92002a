//! Chooses the next token from a row of logits. The steps, their order and
//! their defaults are those of llama.cpp's server: bias, penalties, DRY,
//! top-n-sigma, top-k, typical-p, top-p, min-p, XTC, temperature, draw. A
//! constraint is applied lazily. Never computes logits, never looks at text.

mod adjust;
mod candidates;
pub(crate) mod constraint;
mod dry;
mod likelihood;
mod penalties;
mod random;

use std::collections::VecDeque;

use rbee_api::openai::Sampling;

use adjust::Adjustments;
use candidates::Candidates;
use constraint::{Constraint, ConstraintError};
pub(crate) use dry::Spelling;
pub(crate) use likelihood::TokenLogprobs;
use random::Random;

/// Chooses the tokens of one generation. The same settings, seed and logits
/// give the same tokens.
#[derive(Debug)]
pub(crate) struct Sampler {
    settings: Sampling,
    /// `None` when the settings change no logits.
    adjustments: Option<Adjustments>,
    candidates: Candidates,
    random: Random,
    constraint: Option<Box<dyn Constraint>>,
    failure: Option<ConstraintError>,
    /// The row without the tokens that are not allowed, reused between tokens.
    masked: Vec<f32>,
    /// Alternatives told beside each token; `None` where nothing is told.
    logprobs_top: Option<u32>,
    /// What has been told of the chosen tokens and not yet been taken.
    told: VecDeque<TokenLogprobs>,
}

impl Sampler {
    /// `seed` counts where the settings name none.
    pub(crate) fn new(settings: Sampling, seed: u64) -> Self {
        Self {
            random: Random::new(settings.seed.unwrap_or(seed)),
            adjustments: Adjustments::new(&settings),
            settings,
            candidates: Candidates::default(),
            constraint: None,
            failure: None,
            masked: Vec::new(),
            logprobs_top: None,
            told: VecDeque::new(),
        }
    }

    /// Tells DRY how tokens are spelt, so that it sees its sequence breakers.
    pub(crate) fn spell_with(&mut self, spelling: Spelling) {
        if let Some(adjustments) = &mut self.adjustments {
            adjustments.spell_with(spelling);
        }
    }

    /// Holds all tokens from now on to a constraint.
    pub(crate) fn constrain(&mut self, constraint: Box<dyn Constraint>) {
        self.constraint = Some(constraint);
    }

    /// Tells from now on how likely each chosen token and the `top` likeliest were.
    pub(crate) fn tell_logprobs(&mut self, top: u32) {
        self.logprobs_top = Some(top);
    }

    /// Counts tokens of the prompt into the windows that penalties look at.
    pub(crate) fn accept(&mut self, tokens: &[u32]) {
        if let Some(adjustments) = &mut self.adjustments {
            adjustments.accept(tokens);
        }
    }

    /// Takes in the tokens of a reply that began elsewhere as if it had chosen
    /// them, for which so many random numbers were drawn there.
    ///
    /// # Errors
    /// The constraint does not allow these tokens.
    pub(crate) fn resume(&mut self, tokens: &[u32], draws: u64) -> Result<(), ConstraintError> {
        if let Some(constraint) = &mut self.constraint {
            tokens.iter().try_for_each(|token| constraint.accept(*token))?;
        }
        self.accept(tokens);
        self.random.skip(draws);
        Ok(())
    }

    /// Returns how many random numbers have been drawn.
    pub(crate) fn draws(&self) -> u64 {
        self.random.drawn()
    }

    /// Chooses a token and takes it in, so that rows have to come in the order
    /// of their tokens; `None` for an empty row or after [`Self::failure`].
    pub(crate) fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let token = match self.choose_allowed(logits) {
            Ok(token) => token?,
            Err(error) => {
                self.failure = Some(error);
                return None;
            }
        };
        if let Some(top) = self.logprobs_top {
            self.told.push_back(likelihood::measure(logits, token, top, &mut self.candidates));
        }
        self.accept(&[token]);
        Some(token)
    }

    /// Chooses without the constraint, and under it only if it forbids the
    /// choice, because a mask costs far more than a look at one token.
    fn choose_allowed(&mut self, logits: &[f32]) -> Result<Option<u32>, ConstraintError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        let logits = match &mut self.adjustments {
            Some(adjustments) => adjustments.apply(logits),
            None => logits,
        };
        let choice = pick(&mut self.candidates, &mut self.random, &self.settings, logits);
        let (Some(constraint), Some(token)) = (&mut self.constraint, choice) else {
            return Ok(choice);
        };
        let mut token = token;
        if !constraint.allows(token)? {
            self.masked.clear();
            self.masked.extend_from_slice(logits);
            constraint.mask(&mut self.masked)?;
            let again = pick(&mut self.candidates, &mut self.random, &self.settings, &self.masked);
            let Some(allowed) = again else { return Ok(None) };
            if self.masked.get(allowed as usize).is_none_or(|logit| !logit.is_finite()) {
                return Err(ConstraintError::NoCandidate);
            }
            token = allowed;
        }
        constraint.accept(token)?;
        Ok(Some(token))
    }

    /// Why the constraint could not go on, if it could not.
    pub(crate) fn failure(&self) -> Option<&ConstraintError> {
        self.failure.as_ref()
    }

    /// Whether the constraint allows nothing but the end any more.
    pub(crate) fn is_complete(&self) -> bool {
        self.constraint.as_ref().is_some_and(|constraint| constraint.is_complete())
    }

    /// Tokens that the constraint lets expect next, as a draft.
    pub(crate) fn forced_tokens(&mut self) -> Vec<u32> {
        self.constraint.as_mut().map(|c| c.forced_tokens()).unwrap_or_default()
    }

    /// Takes what is told of the oldest chosen token that has not been asked after.
    pub(crate) fn take_logprobs(&mut self) -> Option<TokenLogprobs> {
        self.told.pop_front()
    }
}

/// Chooses by the settings alone.
fn pick(
    candidates: &mut Candidates,
    random: &mut Random,
    settings: &Sampling,
    logits: &[f32],
) -> Option<u32> {
    // Of the steps before the temperature only these two can drop the best token.
    let best_stays = settings.xtc.is_none() && settings.typical_p >= 1.0;
    if settings.top_k == 1 || (settings.temperature <= 0.0 && best_stays) {
        argmax(logits)
    } else {
        candidates.draw(logits, settings, random)
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
