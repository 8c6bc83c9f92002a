//! The engine of models that give one result for each input: embeddings, or
//! the score of a pair of texts. Owns what a request to it is and what must be
//! done to compute it; `runner` carries requests through, `turns` decides whose
//! inputs come next.

mod dimensions;
pub(crate) mod echo;
pub(crate) mod llama;
pub(crate) mod runner;
mod turns;

use std::sync::Arc;

use deadline_propagation::Deadline;
use rbee_api::error::ErrorDetail;
use rbee_api::model::ModelKind;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::backend::{PromptError, StepError};
use crate::scheduler::JobId;
pub(crate) use dimensions::Dimensions;

/// What is known of a model that gives one result for each input.
#[derive(Debug)]
pub(crate) struct Embedding {
    /// Embeddings or scores; never text.
    pub(crate) kind: ModelKind,
    /// How many numbers an embedding has, and may have.
    pub(crate) dimensions: Dimensions,
    pub(crate) reader: Arc<dyn InputReader>,
}

/// Turns what a request holds into inputs, on any thread.
pub(crate) trait InputReader: std::fmt::Debug + Send + Sync {
    /// Tokenises a text to be embedded.
    fn text(&self, text: &str) -> Result<Vec<u32>, PromptError>;
    /// Takes tokens as they are, if the vocabulary has them.
    fn tokens(&self, tokens: &[u32]) -> Result<Vec<u32>, PromptError>;
    /// Puts a query and a document together as the model was trained to see them.
    fn pair(&self, query: &str, document: &str) -> Result<Vec<u32>, PromptError>;
}

/// One request on its way through the engine.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    /// Tokens of each input; at least one input, and in each at least one token.
    pub(crate) inputs: Vec<Vec<u32>>,
    pub(crate) deadline: Deadline,
    /// Where the results go, one for each input in their order. A job whose
    /// receiver is gone is dropped.
    pub(crate) reply: oneshot::Sender<Result<Vec<Vec<f32>>, ErrorDetail>>,
    pub(crate) submitted_at: Instant,
    /// Held until the job has ended, so that the engine is never over-full.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// What one step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepLimits {
    /// Inputs, of all requests together.
    pub(crate) inputs: u32,
    /// Tokens, unless a single input has more.
    pub(crate) tokens: u32,
}

/// Computes steps. Lives on the engine thread, so it need not be `Send`.
pub(crate) trait Backend {
    /// What a step may hold.
    fn limits(&self) -> StepLimits;
    /// Computes inputs together and returns one result for each, in their
    /// order. Remembers nothing of them, whatever happens.
    fn compute(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError>;
}

#[cfg(test)]
mod tests;
