//! What an engine must do for the worker: load, turn requests into prompts,
//! compute steps. Two implement it: llama.cpp and the stand-in for tests.

use std::sync::Arc;
use std::time::Duration;

use input_validation::ModelRef;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelKind;
use rbee_api::openai::ChatMessage;
use rbee_http::ApiError;

use super::embedder::{self, Embedding};
use crate::error::LoadFailure;
use crate::sampler::Sampler;
use crate::scheduler::Entry;

/// A prompt as the engine computes it.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// Its tokens, at least one.
    pub(crate) tokens: Vec<u32>,
    /// Texts that end the reply besides those of the request.
    pub(crate) stops: Vec<String>,
    /// What the echo engine repeats; `None` for an engine that reads tokens.
    pub(crate) text: Option<String>,
}

/// What is known of a model once it is loaded.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) abilities: Abilities,
    /// Jobs that are computed at once.
    pub(crate) slots: u32,
    /// Tokens that one job can have, prompt and reply together.
    pub(crate) context_tokens: u32,
    /// Where it computes, such as `cpu`.
    pub(crate) device: String,
    /// The model in a few words, for the log.
    pub(crate) description: String,
    /// Ends a running step, where the engine can.
    pub(crate) interrupt: Option<Arc<dyn Interrupt>>,
    pub(crate) load_time: Duration,
}

/// What a model can be asked for.
#[derive(Debug)]
pub(crate) enum Abilities {
    /// Text, from prompts that this makes.
    Generates(Arc<dyn Tokenizer>),
    /// One result for each input.
    Embeds(Embedding),
}

impl Loaded {
    /// What the model is for.
    pub(crate) fn kind(&self) -> ModelKind {
        match &self.abilities {
            Abilities::Generates(_) => ModelKind::Generate,
            Abilities::Embeds(embedding) => embedding.kind,
        }
    }

    /// Returns what makes prompts, for a request to the model that clients call `model`.
    ///
    /// # Errors
    /// `unsupported_parameter` when the model generates no text.
    pub(crate) fn generates(&self, model: &ModelRef) -> Result<&Arc<dyn Tokenizer>, ApiError> {
        match &self.abilities {
            Abilities::Generates(tokenizer) => Ok(tokenizer),
            Abilities::Embeds(_) => Err(self.refusal(ModelKind::Generate, model)),
        }
    }

    /// Returns what reads inputs, for a request for `asks` to the model that clients call `model`.
    ///
    /// # Errors
    /// `unsupported_parameter` when the model is of another kind.
    pub(crate) fn embeds(&self, asks: ModelKind, model: &ModelRef) -> Result<&Embedding, ApiError> {
        match &self.abilities {
            Abilities::Embeds(embedding) if embedding.kind == asks => Ok(embedding),
            Abilities::Embeds(_) | Abilities::Generates(_) => Err(self.refusal(asks, model)),
        }
    }

    fn refusal(&self, asks: ModelKind, model: &ModelRef) -> ApiError {
        let refusal = self.kind().refusal(asks, model);
        refusal.map_or_else(
            || ApiError::new(ErrorCode::InternalError, "the model does not know what it is for"),
            ApiError::from,
        )
    }
}

/// What computes, by the kind of its results.
pub(crate) enum Core {
    Generator(Box<dyn Backend>),
    Embedder(Box<dyn embedder::Backend>),
}

/// Loads a model, on the engine thread.
pub(crate) trait Loader: Send {
    /// Loads; tells `progress` the share done and stops when it says `false`.
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure>;
}

/// Turns requests into prompts, on any thread.
pub(crate) trait Tokenizer: std::fmt::Debug + Send + Sync {
    /// Renders a conversation by the model's template and tokenises it.
    fn chat(&self, messages: &[ChatMessage]) -> Result<Prompt, PromptError>;
    /// Tokenises a text to be continued.
    fn text(&self, text: &str) -> Result<Prompt, PromptError>;
    /// Takes tokens as they are, if the vocabulary has them.
    fn tokens(&self, tokens: &[u32]) -> Result<Prompt, PromptError>;
}

/// Why a request cannot become a prompt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PromptError {
    #[error("the model's chat template refuses these messages: {reason}")]
    Template { reason: String },
    #[error("the prompt cannot be tokenised: {reason}")]
    Tokenize { reason: String },
    #[error(
        "token {token} at position {position} is not in the model's vocabulary of {vocabulary}"
    )]
    UnknownToken { token: u32, position: usize, vocabulary: usize },
    #[error("the prompt has no tokens; say something")]
    Empty,
    #[error("the script for the echo engine is wrong: {reason}")]
    Script { reason: String },
}

impl PromptError {
    /// Blames the field that the prompt came from.
    pub(crate) fn into_detail(self, param: &str) -> ErrorDetail {
        ErrorDetail::new(ErrorCode::ValidationFailed, self.to_string()).with_param(param)
    }
}

/// Computes steps. Lives on the engine thread, so it need not be `Send`.
pub(crate) trait Backend {
    /// Gives a free slot to a prompt.
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>);
    /// Computes the entries of one step. After an error that is not fatal the
    /// slots hold what they held before.
    fn step(&mut self, entries: &[Entry]) -> Result<(), StepError>;
    /// Chooses the token that entry `index` of the last step yields.
    fn choose(&mut self, index: usize, entry: &Entry, sampler: &mut Sampler) -> Option<u32>;
    /// Whether a token ends the reply.
    fn is_end(&self, slot: u32, token: u32) -> bool;
    /// The bytes of a token's text.
    fn piece(&self, slot: u32, token: u32) -> &[u8];
    /// Frees a slot and forgets what it held.
    fn release(&mut self, slot: u32);
}

/// Ends the step that is being computed, from any thread.
pub(crate) trait Interrupt: std::fmt::Debug + Send + Sync {
    /// Ends the running step, and every later one until they are allowed again.
    fn interrupt(&self);
    /// Allows steps again.
    fn allow(&self);
}

/// Why a step was not computed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// One job less may fit.
    #[error("the context memory has no room for this step")]
    NoRoom,
    /// Somebody wanted the step to end.
    #[error("the step was interrupted")]
    Interrupted,
    /// Nothing that is computed from here on can be trusted.
    #[error("the computation failed: {reason}")]
    Fatal { reason: String },
}
