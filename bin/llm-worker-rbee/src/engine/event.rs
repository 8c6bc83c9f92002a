//! What a job tells its reader, and what it is told of a reply that began
//! elsewhere. Plain values.

use rbee_api::error::ErrorDetail;
use rbee_api::openai::{FinishReason, Usage};

use crate::text::PlacedLogprobs;

/// What a job tells its reader.
#[derive(Debug)]
pub(crate) enum Event {
    /// More text, never empty, and its tokens where they were asked for.
    Text { text: String, logprobs: Vec<PlacedLogprobs>, trace: Option<Trace> },
    /// The text of the tokens chosen [earlier](Earlier), as far as it was sent
    /// then; comes first, where there are such tokens, and not before
    /// something new is about to be computed.
    Replayed(String),
    /// The end; nothing comes after it.
    End(End),
}

/// How a job ended.
#[derive(Debug)]
pub(crate) enum End {
    Finished {
        /// The last text, often empty.
        text: String,
        logprobs: Vec<PlacedLogprobs>,
        reason: FinishReason,
        usage: Usage,
        trace: Option<Trace>,
    },
    Failed(Box<ErrorDetail>),
}

/// What another worker has to know to go on after a text.
#[derive(Debug)]
pub(crate) struct Trace {
    /// The tokens chosen since the trace before.
    pub(crate) tokens: Vec<u32>,
    /// Random numbers drawn for all tokens so far.
    pub(crate) draws: u64,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    /// Of these, tokens that were not computed.
    pub(crate) cached_tokens: u32,
    /// Whether all that is to be told of the tokens has been sent with a text.
    pub(crate) is_whole: bool,
}

/// The part of a reply that was made elsewhere; empty for one that begins here.
/// A job that has one tells its [`Trace`].
#[derive(Debug, Default)]
pub(crate) struct Earlier {
    pub(crate) tokens: Vec<u32>,
    /// Tokens of the prompt that were not computed there.
    pub(crate) cached_tokens: Option<u32>,
}
