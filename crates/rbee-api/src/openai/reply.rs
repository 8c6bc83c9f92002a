//! Replies in OpenAI's shapes. Fields that a client may look for are spelled
//! out as `null` rather than left away.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop sequence did.
    Stop,
    /// It reached `max_tokens` or the end of the context.
    Length,
    /// It ended with calls of tools, whose results the model waits for.
    ToolCalls,
}

/// Token counts of one request. With several choices the prompt counts once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompt, the template's included.
    pub prompt_tokens: u32,
    /// Tokens generated, of all choices.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// More about the prompt.
    #[serde(default)]
    pub prompt_tokens_details: PromptTokensDetails,
}

/// More about the tokens of a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PromptTokensDetails {
    /// Tokens that were not computed, because another request had them computed;
    /// of several choices, for the first one.
    pub cached_tokens: u32,
}

/// Token counts of a request that generates nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InputUsage {
    /// Tokens of all inputs, special tokens included.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

impl InputUsage {
    /// Counts `tokens`.
    #[must_use]
    pub const fn new(tokens: u64) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}

/// One chat reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatCompletion {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since the epoch.
    pub created: u64,
    /// The model as the client named it.
    pub model: String,
    /// As many as were asked for, in the order of their indices.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
}

/// One of the replies to a chat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatChoice {
    /// Which one, counted from 0.
    pub index: u32,
    /// What the model says.
    pub message: ChatReplyMessage,
    /// The chosen tokens and how likely they were, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What the model says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatReplyMessage {
    /// `assistant`.
    pub role: String,
    /// The text; null when there are only calls of tools.
    pub content: Option<String>,
    /// Always null: local models have no refusal channel.
    pub refusal: Option<()>,
    /// What it thought before; absent when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The tools it calls; absent when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ReplyToolCall>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplyToolCall {
    /// What the result has to refer to: `call_…`.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is called.
    pub function: ReplyFunction,
}

/// What is called, and with what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplyFunction {
    /// The tool.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

/// One event of a streamed chat reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatChunk {
    /// The same in every chunk.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// The same in every chunk.
    pub created: u64,
    /// The model as the client named it.
    pub model: String,
    /// The choice that goes on; none in the chunk that carries the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Token counts: absent unless asked for, then null in all chunks but the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// The choice of a chunk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatChunkChoice {
    /// Which one, counted from 0.
    pub index: u32,
    /// What is new.
    pub delta: ChatDelta,
    /// The tokens of this delta, where asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Null until the last chunk of this choice.
    pub finish_reason: Option<FinishReason>,
}

/// What is new in a chunk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatDelta {
    /// `assistant`, in the first chunk of a choice only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// New text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// New thoughts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// What is new of calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

/// What is new of one call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCallDelta {
    /// Which call, counted from 0.
    pub index: u32,
    /// `call_…`, with the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, with the name.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is new of the function.
    pub function: FunctionDelta,
}

/// What is new of a call's function.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FunctionDelta {
    /// The tool, whole and once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments.
    pub arguments: String,
}

/// A text completion, whole or one event of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionReply {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since the epoch.
    pub created: u64,
    /// The model as the client named it.
    pub model: String,
    /// The choices in order; in a stream the one that goes on, and none in the
    /// chunk that carries the usage.
    pub choices: Vec<CompletionChoice>,
    /// Token counts: absent from a stream unless asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// The choice of a text completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionChoice {
    /// Which one, counted from 0.
    pub index: u32,
    /// The text, or what is new of it.
    pub text: String,
    /// The tokens of this text, where asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Null until the last chunk of this choice.
    pub finish_reason: Option<FinishReason>,
}

/// The tokens of a chat reply and how likely they were.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatLogprobs {
    /// One entry a token, in order.
    pub content: Vec<TokenLogprob>,
    /// Always null: local models have no refusal channel.
    pub refusal: Option<()>,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprob {
    /// Its text; what is no whole character stands there as U+FFFD.
    pub token: String,
    /// Natural logarithm of its probability; -9999 stands for 0.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at its place, best first.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that could have been chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopLogprob {
    /// As in [`TokenLogprob`].
    pub token: String,
    /// As in [`TokenLogprob`].
    pub logprob: f32,
    /// As in [`TokenLogprob`].
    pub bytes: Vec<u8>,
}

/// The tokens of a text completion, in lists of the same length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionLogprobs {
    /// The texts of the tokens; one that is no whole characters as `bytes:\xe2\x82`.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities; -9999 stands for 0.
    pub token_logprobs: Vec<f32>,
    /// For each token the likeliest ones at its place, and itself; null where none were asked for.
    pub top_logprobs: Option<Vec<BTreeMap<String, f32>>>,
    /// Characters of the reply before each token.
    pub text_offset: Vec<u32>,
}

/// `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelCardList {
    /// `list`.
    pub object: String,
    /// One entry a model.
    pub data: Vec<ModelCard>,
}

/// `GET /v1/models/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelCard {
    /// The name to put into a request.
    pub id: String,
    /// `model`.
    pub object: String,
    /// When it was registered, seconds since the epoch.
    pub created: u64,
    /// `rbee`.
    pub owned_by: String,
    /// What the model can be asked for: `chat`, `completion`, `embedding`, `rerank`.
    #[serde(default)]
    pub capabilities: Vec<String>,
}
