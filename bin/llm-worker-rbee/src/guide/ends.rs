//! Keeps the model from ending its output too early.

use std::sync::Arc;

use super::Vocabulary;
use crate::sampler::constraint::{Constraint, ConstraintError};

/// Forbids the tokens that end a generation for a while, or for good.
#[derive(Debug, Clone)]
pub(crate) struct LaterEnd {
    vocabulary: Arc<dyn Vocabulary>,
    /// Tokens still to come before an end; `None` means no end at all.
    left: Option<u32>,
}

impl LaterEnd {
    pub(super) fn new(vocabulary: Arc<dyn Vocabulary>, tokens_min: Option<u32>) -> Self {
        Self { vocabulary, left: tokens_min }
    }
}

impl Constraint for LaterEnd {
    fn allows(&mut self, token: u32) -> Result<bool, ConstraintError> {
        Ok(self.left == Some(0) || !self.vocabulary.is_end(token))
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        if self.left != Some(0) {
            for (token, logit) in (0..).zip(logits) {
                if self.vocabulary.is_end(token) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(())
    }

    fn try_clone(&self) -> Result<Box<dyn Constraint>, ConstraintError> {
        Ok(Box::new(self.clone()))
    }
}
