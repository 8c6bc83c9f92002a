//! What a grammar, or anything else that forbids tokens, must do for the
//! sampler. Knows no grammar and chooses nothing.

use rbee_api::error::{ErrorCode, ErrorDetail};

/// Says which tokens may come next in one generation.
pub(crate) trait Constraint: std::fmt::Debug + Send {
    /// Whether a token may come next. Cheap: looks at this token alone.
    fn allows(&mut self, token: u32) -> Result<bool, ConstraintError>;

    /// Sets the logits of all tokens that may not come next to minus infinity.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError>;

    /// Takes in a token that was chosen and is allowed.
    fn accept(&mut self, token: u32) -> Result<(), ConstraintError>;

    /// Whether the output is complete and nothing but its end can follow.
    fn is_complete(&self) -> bool {
        false
    }

    /// Copies the constraint with how far it has come; the copy goes its own way.
    fn try_clone(&self) -> Result<Box<dyn Constraint>, ConstraintError>;

    /// Tokens that are likely to come next because the text they spell is the
    /// only one that may; changes nothing. A draft: [`Self::allows`] still decides.
    fn forced_tokens(&mut self) -> Vec<u32> {
        Vec::new()
    }
}

/// Why a constraint cannot go on. It ends its own request only.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConstraintError {
    /// `param` is the field that the constraint came from.
    #[error("{param} takes more work for one token than a request may cost; simplify it")]
    TooComplex { param: &'static str },
    #[error("no token of this model can follow what {param} has led to; change it")]
    DeadEnd { param: &'static str },
    #[error("every token that may come next has a probability of 0; change logit_bias")]
    NoCandidate,
    #[error("the output could not be held to {param}")]
    Defect { param: &'static str },
}

impl ConstraintError {
    /// Blames the field that the constraint came from.
    pub(crate) fn into_detail(self) -> ErrorDetail {
        let message = self.to_string();
        match self {
            Self::TooComplex { param } | Self::DeadEnd { param } => {
                ErrorDetail::new(ErrorCode::ValidationFailed, message).with_param(param)
            }
            Self::NoCandidate => {
                ErrorDetail::new(ErrorCode::ValidationFailed, message).with_param("logit_bias")
            }
            Self::Defect { param } => {
                ErrorDetail::new(ErrorCode::InternalError, message).with_param(param)
            }
        }
    }
}
