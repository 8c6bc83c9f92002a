//! Changes single logits of a row before anything is chosen: bias, penalties,
//! DRY, in this order. Touches only the tokens concerned, in a copy of the row.

use rbee_api::openai::Sampling;

use super::dry::{Dry, Spelling};
use super::penalties::Penalties;

/// All that changes single logits.
#[derive(Debug)]
pub(super) struct Adjustments {
    bias: Vec<(u32, f32)>,
    penalties: Option<Penalties>,
    dry: Option<Dry>,
    /// The changed row, reused between tokens.
    row: Vec<f32>,
}

impl Adjustments {
    /// Returns `None` when the settings change nothing.
    pub(super) fn new(settings: &Sampling) -> Option<Self> {
        let penalties = Penalties::new(settings);
        let dry = settings.dry.as_ref().map(Dry::new);
        if penalties.is_none() && dry.is_none() && settings.logit_bias.is_empty() {
            return None;
        }
        Some(Self { bias: settings.logit_bias.clone(), penalties, dry, row: Vec::new() })
    }

    pub(super) fn spell_with(&mut self, spelling: Spelling) {
        if let Some(dry) = &mut self.dry {
            dry.spell_with(spelling);
        }
    }

    /// Takes in tokens of the prompt, or one that was chosen.
    pub(super) fn accept(&mut self, tokens: &[u32]) {
        if let Some(penalties) = &mut self.penalties {
            penalties.accept(tokens);
        }
        if let Some(dry) = &mut self.dry {
            dry.accept(tokens);
        }
    }

    /// Returns the changed row.
    pub(super) fn apply(&mut self, logits: &[f32]) -> &[f32] {
        self.row.clear();
        self.row.extend_from_slice(logits);
        for (token, bias) in &self.bias {
            if let Some(logit) = self.row.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if let Some(penalties) = &self.penalties {
            penalties.apply(&mut self.row);
        }
        if let Some(dry) = &mut self.dry {
            dry.apply(&mut self.row);
        }
        &self.row
    }
}
