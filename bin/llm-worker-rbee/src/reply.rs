//! What a reply looks like to a client, whole and in the parts of a stream: from
//! what the model said to the types of the wire contract. Waits for nothing and
//! writes no bytes.

mod frames;
mod logprobs;

use std::time::{SystemTime, UNIX_EPOCH};

use rbee_api::continuation::ReplyHead;
use rbee_api::openai::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatReplyMessage,
    CompletionChoice, CompletionReply, FinishReason, FunctionDelta, ReplyFunction, ReplyToolCall,
    ToolCallDelta, Usage,
};
use rbee_http::new_request_id;
use serde::Serialize;

use crate::reading::{Delta, Message};
use crate::text::PlacedLogprobs;
pub(crate) use frames::{Frames, UsageFrame, write_event};
pub(crate) use logprobs::LogprobShape;

/// Which of OpenAI's two dialects a reply speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Chat,
    Completion,
}

/// One of the replies to a prompt, to its end.
#[derive(Debug)]
pub(crate) struct Choice {
    /// Which one, counted from 0.
    pub(crate) index: u32,
    pub(crate) message: Message,
    pub(crate) tokens: Vec<PlacedLogprobs>,
    pub(crate) reason: FinishReason,
}

/// What is the same in all parts of a reply.
#[derive(Debug, Clone)]
pub(crate) struct Heading {
    dialect: Dialect,
    id: String,
    /// Seconds since the epoch.
    created: u64,
    model: String,
    /// How tokens are told, where they are asked for.
    shape: Option<LogprobShape>,
}

impl Heading {
    /// Makes the heading of a reply, or that of one that began elsewhere as it
    /// was; `model` as the client named it.
    pub(crate) fn new(dialect: Dialect, model: String, earlier: Option<&ReplyHead>) -> Self {
        if let Some(ReplyHead { id, created, .. }) = earlier {
            return Self { dialect, id: id.clone(), created: *created, model, shape: None };
        }
        let kind = match dialect {
            Dialect::Chat => "chatcmpl",
            Dialect::Completion => "cmpl",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let created = now.map_or(0, |since| since.as_secs());
        let id = format!("{kind}-{}", new_request_id());
        Self { dialect, id, created, model, shape: None }
    }

    /// What tells the reply from others: its id, and when it began in seconds since the epoch.
    pub(crate) fn name(&self) -> (&str, u64) {
        (&self.id, self.created)
    }

    /// Has the tokens told beside the text.
    pub(crate) fn with_logprobs(self, shape: Option<LogprobShape>) -> Self {
        Self { shape, ..self }
    }

    /// The whole reply, for a request that does not stream; `choices` in order.
    pub(crate) fn whole(self, choices: Vec<Choice>, usage: Usage) -> WholeReply {
        let shape = self.shape.as_ref();
        match self.dialect {
            Dialect::Chat => {
                let choices = choices.into_iter().map(|choice| ChatChoice {
                    index: choice.index,
                    message: reply_message(choice.message),
                    logprobs: shape.map(|shape| shape.chat(&choice.tokens)),
                    finish_reason: choice.reason,
                });
                WholeReply::Chat(ChatCompletion {
                    choices: choices.collect(),
                    id: self.id,
                    object: "chat.completion".to_owned(),
                    created: self.created,
                    model: self.model,
                    usage,
                })
            }
            Dialect::Completion => {
                let choices = choices.into_iter().map(|choice| CompletionChoice {
                    index: choice.index,
                    text: choice.message.content,
                    logprobs: shape.map(|shape| shape.completion(&choice.tokens)),
                    finish_reason: Some(choice.reason),
                });
                WholeReply::Completion(self.completion(choices.collect(), Some(Some(usage))))
            }
        }
    }

    fn completion(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<Option<Usage>>,
    ) -> CompletionReply {
        CompletionReply {
            id: self.id.clone(),
            object: "text_completion".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }

    fn chunk(&self, choices: Vec<ChatChunkChoice>, usage: Option<Option<Usage>>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }
}

/// A message as a client sees it: no content beside calls is null, and what the
/// model did not do is left away.
fn reply_message(message: Message) -> ChatReplyMessage {
    let Message { content, reasoning, calls } = message;
    let is_null = content.is_empty() && !calls.is_empty();
    let calls = calls.into_iter().map(|call| ReplyToolCall {
        id: call.id,
        kind: "function".to_owned(),
        function: ReplyFunction { name: call.name, arguments: call.arguments },
    });
    ChatReplyMessage {
        role: "assistant".to_owned(),
        content: (!is_null).then_some(content),
        refusal: None,
        reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
        tool_calls: calls.collect(),
    }
}

/// What is new in a reply as a client sees it.
fn reply_delta(delta: Delta) -> ChatDelta {
    let mut wire = ChatDelta::default();
    let call = match delta {
        Delta::Content(text) => {
            wire.content = Some(text);
            return wire;
        }
        Delta::Reasoning(text) => {
            wire.reasoning_content = Some(text);
            return wire;
        }
        Delta::Call { index, id, name } => ToolCallDelta {
            index,
            id: Some(id),
            kind: Some("function".to_owned()),
            function: FunctionDelta { name: Some(name), arguments: String::new() },
        },
        Delta::Arguments { index, text } => ToolCallDelta {
            index,
            id: None,
            kind: None,
            function: FunctionDelta { name: None, arguments: text },
        },
    };
    wire.tool_calls.push(call);
    wire
}

/// A reply that does not stream.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum WholeReply {
    Chat(ChatCompletion),
    Completion(CompletionReply),
}
