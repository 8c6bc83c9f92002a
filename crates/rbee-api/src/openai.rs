//! OpenAI's dialect as rbee speaks it: requests parsed and checked in one
//! place, so that queen, hive and worker refuse the same things with the same
//! words, and replies in the shapes that the official clients expect.
//!
//! A parameter that rbee does not honour is refused by name, never ignored;
//! the same parameter at the value that means "off" is accepted.

mod chat;
mod completion;
mod embedding;
mod fields;
mod format;
mod generation;
mod reply;
mod rerank;
mod sampling;
mod thinking;
mod tools;

pub use chat::{ChatMessage, ChatRequest, Role};
pub use completion::{CompletionPrompt, CompletionRequest};
pub use embedding::{
    EmbeddingData, EmbeddingEncoding, EmbeddingInput, EmbeddingList, EmbeddingRequest,
    EmbeddingVector,
};
pub use fields::RequestError;
pub use format::OutputFormat;
pub use generation::{GenerationOptions, StreamOptions};
pub use reply::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatLogprobs,
    ChatReplyMessage, CompletionChoice, CompletionLogprobs, CompletionReply, FinishReason,
    FunctionDelta, InputUsage, ModelCard, ModelCardList, PromptTokensDetails, ReplyFunction,
    ReplyToolCall, TokenLogprob, ToolCallDelta, TopLogprob, Usage,
};
pub use rerank::{RerankDocument, RerankReply, RerankRequest, RerankResult};
pub use sampling::{Dry, Sampling, Xtc};
pub use thinking::Thinking;
pub use tools::{ToolCall, ToolChoice, ToolDefinition, ToolOptions};
