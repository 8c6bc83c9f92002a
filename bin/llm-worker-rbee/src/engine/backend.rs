//! What an engine must do for the worker: load, turn requests into prompts,
//! compute steps. Two implement it: llama.cpp and the stand-in for tests.

use std::sync::Arc;
use std::time::Duration;

use input_validation::ModelRef;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelKind;
use rbee_api::openai::{ChatMessage, Thinking, ToolOptions};
use rbee_http::ApiError;
use rbee_llama::reply::ReplyFormat;

use super::disk::Disk;
use super::embedder::{self, Embedding};
use super::memory::MemoryLimits;
use crate::error::LoadFailure;
use crate::guide::Guide;
use crate::sampler::Sampler;
use crate::sampler::constraint::Constraint;

/// A conversation that a model is to continue.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) tools: ToolOptions,
    pub(crate) thinking: Thinking,
}

#[cfg(test)]
impl Conversation {
    /// What a user says first.
    pub(crate) fn of_user(text: &str) -> Self {
        let message = ChatMessage {
            role: rbee_api::openai::Role::User,
            content: text.to_owned(),
            reasoning_content: String::new(),
            tool_calls: Vec::new(),
            tool_call_id: None,
        };
        Self {
            messages: vec![message],
            tools: ToolOptions::default(),
            thinking: Thinking::default(),
        }
    }
}

/// A prompt, and how its reply is written and read where it is more than content.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) prompt: Prompt,
    /// `None` where all of the reply is content.
    pub(crate) format: Option<Arc<ReplyFormat>>,
    /// What the reply's tokens are held to.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
}

impl From<Prompt> for Prepared {
    fn from(prompt: Prompt) -> Self {
        Self { prompt, format: None, constraint: None }
    }
}

/// A prompt as the engine computes it.
#[derive(Debug, Default)]
pub(crate) struct Prompt {
    /// Its tokens, at least one.
    pub(crate) tokens: Vec<u32>,
    /// Texts that end the reply besides those of the request.
    pub(crate) stops: Vec<String>,
    /// What the echo engine repeats; `None` for an engine that reads tokens.
    pub(crate) text: Option<String>,
    /// Control tokens that are to be seen in the reply, and their texts.
    pub(crate) visible: Vec<(u32, Vec<u8>)>,
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
    /// Where states outlive the worker.
    pub(crate) disk: Option<Box<Disk>>,
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
    fn chat(&self, conversation: &Conversation) -> Result<Prepared, PromptError>;
    /// Tokenises a text to be continued.
    fn text(&self, text: &str) -> Result<Prompt, PromptError>;
    /// Takes tokens as they are, if the vocabulary has them.
    fn tokens(&self, tokens: &[u32]) -> Result<Prompt, PromptError>;
    /// The bytes that a token is written with, markers such as `<|im_end|>` too.
    fn spelling(&self, token: u32) -> Vec<u8>;
    /// What holds output to a form; `None` for an engine that draws no tokens,
    /// and so has no log probabilities either.
    fn guide(&self) -> Option<&Guide>;
}

/// Why a request cannot become a prompt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PromptError {
    #[error("the model's chat template refuses these messages: {reason}")]
    Template { reason: String },
    #[error("calls of these tools cannot be held to their schemas: {reason}")]
    Tools { reason: String },
    #[error("the schema of this tool's arguments has no grammar: {reason}")]
    Schema { tool: usize, reason: String },
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
        let param = match &self {
            Self::Tools { .. } => "tools".to_owned(),
            Self::Schema { tool, .. } => format!("tools[{tool}].function.parameters"),
            Self::Template { .. }
            | Self::Tokenize { .. }
            | Self::UnknownToken { .. }
            | Self::Empty
            | Self::Script { .. } => param.to_owned(),
        };
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
