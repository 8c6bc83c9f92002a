//! `POST /v1/chat/completions`: the request.

use std::collections::HashSet;

use input_validation::ModelRef;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fields::{Fields, RequestError, in_range};
use super::format::OutputFormat;
use super::generation::{GenerationOptions, StreamOptions};
use super::thinking::Thinking;
use super::tools::{RawCall, ToolCall, ToolChoice, ToolOptions, check_calls};
use crate::limits;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// OpenAI's newer name for `system`; templates know only the older one.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// Returns the name that chat templates know.
    #[must_use]
    pub const fn template_name(self) -> &'static str {
        match self {
            Self::System | Self::Developer => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn, its content joined into one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// What an assistant thought before it; empty for nothing.
    pub reasoning_content: String,
    /// The tools an assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result a tool's message is; one of an earlier message.
    pub tool_call_id: Option<String>,
}

/// A checked chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The model, as the client named it.
    pub model: ModelRef,
    /// The conversation, oldest turn first; never empty.
    pub messages: Vec<ChatMessage>,
    /// What the model may call.
    pub tools: ToolOptions,
    /// Whether it thinks first.
    pub thinking: Thinking,
    /// Length, stopping, sampling.
    pub generation: GenerationOptions,
    /// Whether and how to stream.
    pub stream: StreamOptions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMessage {
    role: Role,
    #[serde(default)]
    content: Option<RawContent>,
    #[serde(default)]
    name: Option<Value>,
    #[serde(default)]
    tool_calls: Option<Vec<RawCall>>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    refusal: Option<Value>,
    #[serde(default)]
    annotations: Option<Value>,
    #[serde(default)]
    audio: Option<Value>,
    #[serde(default)]
    function_call: Option<Value>,
    // What OpenAI's clients made of the content; they send it back with it.
    #[serde(default, rename = "parsed")]
    _parsed: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawContent {
    Text(String),
    Parts(Vec<RawPart>),
}

#[derive(Deserialize)]
struct RawPart {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: Option<String>,
    // What clients of other services mark the ends of shared beginnings with, which are found without.
    #[serde(default, rename = "cache_control")]
    _cache_control: Option<IgnoredAny>,
    #[serde(flatten)]
    unknown: Map<String, Value>,
}

impl ChatRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    /// [`RequestError`] names the field that is wrong or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.require("model")?;
        fields.check_no_lists_in("messages")?;
        let raw: Vec<RawMessage> = fields.require("messages")?;
        if raw.is_empty() || raw.len() > limits::MESSAGES_MAX {
            let reason = format!("messages must have 1 to {} entries", limits::MESSAGES_MAX);
            return Err(RequestError::invalid("messages", reason));
        }
        let messages: Vec<ChatMessage> =
            raw.into_iter().enumerate().map(|(i, m)| m.check(i)).collect::<Result<_, _>>()?;
        check_results(&messages)?;
        if messages.iter().all(|m| m.content.is_empty() && m.tool_calls.is_empty()) {
            return Err(RequestError::invalid("messages", "every message is empty; say something"));
        }
        let tools = ToolOptions::take(&mut fields)?;
        let mut thinking = Thinking::take(&mut fields)?;
        let mut generation = GenerationOptions::take(&mut fields)?;
        generation.logprobs = take_logprobs(&mut fields)?;
        check_tools_beside(&generation, &tools)?;
        if let Some(param) = generation.format.param() {
            thinking.leave_out_beside(param)?;
        }
        let stream = StreamOptions::take(&mut fields)?;
        take_neutral_chat(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, messages, tools, thinking, generation, stream })
    }
}

impl RawMessage {
    fn check(self, index: usize) -> Result<ChatMessage, RequestError> {
        self.refuse_unsupported(index)?;
        let at = |field: &str| format!("messages[{index}].{field}");
        let content = match self.content {
            None => String::new(),
            Some(RawContent::Text(text)) => text,
            Some(RawContent::Parts(parts)) => join_parts(index, parts)?,
        };
        let reasoning_content = self.reasoning_content.unwrap_or_default();
        for (field, text) in [("content", &content), ("reasoning_content", &reasoning_content)] {
            if text.contains('\0') {
                let reason = "text must not contain a NUL character";
                return Err(RequestError::invalid(at(field), reason));
            }
        }
        let tool_calls = check_calls(index, self.tool_calls.unwrap_or_default())?;
        if !tool_calls.is_empty() && self.role != Role::Assistant {
            let reason = "only messages of the assistant have tool_calls";
            return Err(RequestError::invalid(at("tool_calls"), reason));
        }
        match (self.role, &self.tool_call_id) {
            (Role::Tool, None) => {
                let reason = "a message of a tool needs the tool_call_id that it answers";
                return Err(RequestError::invalid(at("tool_call_id"), reason));
            }
            (Role::System | Role::Developer | Role::User | Role::Assistant, Some(_)) => {
                let reason = "only messages of tools have a tool_call_id";
                return Err(RequestError::invalid(at("tool_call_id"), reason));
            }
            _ => {}
        }
        Ok(ChatMessage {
            role: self.role,
            content,
            reasoning_content,
            tool_calls,
            tool_call_id: self.tool_call_id,
        })
    }

    fn refuse_unsupported(&self, index: usize) -> Result<(), RequestError> {
        // The name in a tool's message is that of the function it answers for.
        let name = if self.role == Role::Tool { &None } else { &self.name };
        let refused = [
            ("name", name),
            ("refusal", &self.refusal),
            ("annotations", &self.annotations),
            ("audio", &self.audio),
            ("function_call", &self.function_call),
        ];
        for (name, value) in refused {
            // Clients send back what a reply held, empty lists and nulls included.
            let neutral = value.as_ref().is_none_or(|v| v.is_null() || *v == json!([]));
            if !neutral {
                return Err(RequestError::unsupported(
                    format!("messages[{index}].{name}"),
                    format!("{name} in a message is not supported"),
                ));
            }
        }
        Ok(())
    }
}

/// Checks that every result is that of a call made before it.
fn check_results(messages: &[ChatMessage]) -> Result<(), RequestError> {
    let mut called = HashSet::new();
    for (index, message) in messages.iter().enumerate() {
        called.extend(message.tool_calls.iter().map(|call| call.id.as_str()));
        match &message.tool_call_id {
            Some(id) if !called.contains(id.as_str()) => {
                return Err(RequestError::invalid(
                    format!("messages[{index}].tool_call_id"),
                    "tool_call_id is that of no call in an earlier message of the assistant",
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn join_parts(message: usize, parts: Vec<RawPart>) -> Result<String, RequestError> {
    if parts.len() > limits::CONTENT_PARTS_MAX {
        return Err(RequestError::invalid(
            format!("messages[{message}].content"),
            format!("a message has at most {} parts", limits::CONTENT_PARTS_MAX),
        ));
    }
    let mut joined = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        match part {
            RawPart { kind, text: Some(text), unknown, .. } if kind == "text" => {
                if let Some(name) = unknown.keys().next() {
                    let param = format!("messages[{message}].content[{index}].{name}");
                    let reason = format!("{param} is not supported; leave it out");
                    return Err(RequestError::unsupported(param, reason));
                }
                if !joined.is_empty() {
                    joined.push('\n');
                }
                joined.push_str(&text);
            }
            RawPart { .. } => {
                return Err(RequestError::unsupported(
                    format!("messages[{message}].content[{index}]"),
                    "only parts of type text are supported",
                ));
            }
        }
    }
    Ok(joined)
}

/// How many alternatives are told beside each token, where log probabilities are.
fn take_logprobs(fields: &mut Fields) -> Result<Option<u32>, RequestError> {
    let wanted = fields.take::<bool>("logprobs")?.unwrap_or(false);
    let top = fields.take::<u32>("top_logprobs")?.unwrap_or(0);
    let top = in_range("top_logprobs", top, 0, limits::TOP_LOGPROBS_MAX)?;
    if top > 0 && !wanted {
        let reason = "top_logprobs is only allowed when logprobs is true";
        return Err(RequestError::invalid("top_logprobs", reason));
    }
    Ok(wanted.then_some(top))
}

/// A reply is held to one form, and the model alone ends one that may hold calls.
fn check_tools_beside(
    generation: &GenerationOptions,
    tools: &ToolOptions,
) -> Result<(), RequestError> {
    if tools.tools.is_empty() || tools.choice == ToolChoice::None {
        return Ok(());
    }
    let param = match &generation.format {
        OutputFormat::JsonObject | OutputFormat::JsonSchema(_) => "response_format",
        OutputFormat::Grammar(_) => "grammar",
        OutputFormat::Text if generation.ignore_eos => "ignore_eos",
        OutputFormat::Text if generation.min_tokens > 0 => "min_tokens",
        OutputFormat::Text => return Ok(()),
    };
    let reason = format!(
        "{param} cannot be combined with tools that may be called; \
         leave one of them out, or set tool_choice to none"
    );
    Err(RequestError::unsupported(param, reason))
}

fn take_neutral_chat(fields: &mut Fields) -> Result<(), RequestError> {
    let off = [json!(false)];
    fields.only("store", &off)?;
    fields.only("metadata", &[json!({})])?;
    fields.only("modalities", &[json!(["text"])])?;
    fields.only("service_tier", &[json!("auto"), json!("default")])
}
