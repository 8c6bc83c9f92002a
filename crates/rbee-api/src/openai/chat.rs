//! `POST /v1/chat/completions`: the request.

use input_validation::ModelRef;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fields::{Fields, RequestError, in_range};
use super::generation::{GenerationOptions, StreamOptions, take_neutral};
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
}

/// A checked chat request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// The model, as the client named it.
    pub model: ModelRef,
    /// The conversation, oldest turn first; never empty.
    pub messages: Vec<ChatMessage>,
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
    tool_calls: Option<Value>,
    #[serde(default, rename = "tool_call_id")]
    _tool_call_id: Option<String>,
    #[serde(default)]
    refusal: Option<Value>,
    #[serde(default)]
    annotations: Option<Value>,
    #[serde(default)]
    audio: Option<Value>,
    #[serde(default)]
    function_call: Option<Value>,
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
}

impl ChatRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    /// [`RequestError`] names the field that is wrong or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.require("model")?;
        let raw: Vec<RawMessage> = fields.require("messages")?;
        if raw.is_empty() || raw.len() > limits::MESSAGES_MAX {
            let reason = format!("messages must have 1 to {} entries", limits::MESSAGES_MAX);
            return Err(RequestError::invalid("messages", reason));
        }
        let messages: Vec<ChatMessage> =
            raw.into_iter().enumerate().map(|(i, m)| m.check(i)).collect::<Result<_, _>>()?;
        if messages.iter().all(|m| m.content.is_empty()) {
            return Err(RequestError::invalid("messages", "every message is empty; say something"));
        }
        let mut generation = GenerationOptions::take(&mut fields)?;
        generation.logprobs = take_logprobs(&mut fields)?;
        let stream = StreamOptions::take(&mut fields)?;
        take_neutral(&mut fields)?;
        take_neutral_chat(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, messages, generation, stream })
    }
}

impl RawMessage {
    fn check(self, index: usize) -> Result<ChatMessage, RequestError> {
        let refused = [
            ("name", &self.name),
            ("tool_calls", &self.tool_calls),
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
        let content = match self.content {
            None => String::new(),
            Some(RawContent::Text(text)) => text,
            Some(RawContent::Parts(parts)) => join_parts(index, parts)?,
        };
        if content.contains('\0') {
            let param = format!("messages[{index}].content");
            return Err(RequestError::invalid(param, "text must not contain a NUL character"));
        }
        Ok(ChatMessage { role: self.role, content })
    }
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
            RawPart { kind, text: Some(text) } if kind == "text" => {
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

fn take_neutral_chat(fields: &mut Fields) -> Result<(), RequestError> {
    let off = [json!(false)];
    fields.only("store", &off)?;
    fields.only("metadata", &[json!({})])?;
    fields.only("tools", &[json!([])])?;
    fields.only("tool_choice", &[json!("none"), json!("auto")])?;
    fields.only("parallel_tool_calls", &[json!(false), json!(true)])?;
    fields.only("functions", &[json!([])])?;
    fields.only("function_call", &[json!("none"), json!("auto")])?;
    fields.only("modalities", &[json!(["text"])])?;
    fields.only("service_tier", &[json!("auto"), json!("default")])
}
