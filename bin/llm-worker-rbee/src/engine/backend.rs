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
use super::memory::MemoryLimits;
use crate::error::LoadFailure;
use crate::sampler::Sampler;

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
    Generator(Generator),
    Embedder(Box<dyn embedder::Backend>),
}

/// What generates text, and how it is to be used.
pub(crate) struct Generator {
    pub(crate) backend: Box<dyn Backend>,
    /// What its context can do.
    pub(crate) memory: MemoryLimits,
    pub(crate) speculation: Speculation,
}

/// Whether replies that repeat earlier text are guessed ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Speculation {
    /// Never.
    Off,
    /// Where it is faster.
    Auto,
    /// Wherever there is something to guess from.
    Always,
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

/// The tokens that a step computes in one slot, after those it holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) slot: u32,
    /// Tokens that the slot holds before.
    pub(crate) position: u32,
    /// At least one.
    pub(crate) tokens: &'a [u32],
    /// How many of the last of them are to say which token comes next.
    pub(crate) outputs: u32,
}

/// Computes steps. Lives on the engine thread, so it need not be `Send`.
pub(crate) trait Backend {
    /// Gives a slot to a prompt of which `reply_tokens` have been chosen
    /// before. Says nothing about the tokens that the slot holds.
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>, reply_tokens: u32);
    /// Computes one step. After an error that is not fatal the slots hold what
    /// they held before.
    fn step(&mut self, runs: &[Run<'_>]) -> Result<(), StepError>;
    /// Chooses the token that comes after one of the outputs of a run of the
    /// last step, counted from its first output.
    fn choose(&mut self, run: usize, output: u32, sampler: &mut Sampler) -> Option<u32>;
    /// Whether a token ends the reply.
    fn is_end(&self, slot: u32, token: u32) -> bool;
    /// The bytes of a token's text.
    fn piece(&self, slot: u32, token: u32) -> &[u8];
    /// Makes a slot hold its first `len` tokens only; 0 empties it.
    fn cut(&mut self, slot: u32, len: u32) -> Result<(), Unusable>;
    /// Makes `to` hold the first `len` tokens of `from`, of which there are at
    /// least so many, and nothing else.
    fn copy(&mut self, from: u32, to: u32, len: u32) -> Result<(), Unusable>;
    /// Returns all that a slot holds, to be kept outside the context.
    fn save(&mut self, slot: u32) -> Result<Vec<u8>, Unusable>;
    /// Makes a slot hold the first `len` tokens of what was saved.
    fn restore(&mut self, slot: u32, state: &[u8], len: u32) -> Result<(), Unusable>;
}

/// The tokens cannot be had this way and must be computed. The slot in
/// question is empty.
#[derive(Debug, thiserror::Error)]
#[error("the tokens must be computed again: {reason}")]
pub(crate) struct Unusable {
    pub(crate) reason: String,
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
