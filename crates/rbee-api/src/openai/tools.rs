//! Tools in a chat request: which there are, whether the model calls them, the
//! calls it made before and what came of them.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::fields::{Fields, RequestError};
use crate::limits;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolDefinition {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model to read; may be empty.
    pub description: String,
    /// The JSON schema of its arguments, an object.
    pub parameters: Value,
}

/// Whether the model calls tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// None.
    None,
    /// At least one.
    Required,
    /// The one of this name, once.
    Named(String),
}

/// All that a request says about tools.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolOptions {
    /// What the model may call; no two of the same name.
    pub tools: Vec<ToolDefinition>,
    /// Whether it does. Requires a call only where there are tools.
    pub choice: ToolChoice,
    /// Whether it may call several at once; absent leaves it to the model.
    pub parallel: Option<bool>,
}

/// A call that the model made earlier in the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// What its result refers to.
    pub id: String,
    /// The tool.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTool {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    function: Option<RawFunction>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFunction {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
    // Arguments are held to their schema whenever a grammar can be made of it.
    #[serde(default, rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawChoice {
    Word(String),
    One(RawNamed),
}

#[derive(Deserialize)]
struct RawNamed {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    function: Option<RawName>,
}

#[derive(Deserialize)]
struct RawName {
    name: String,
}

/// A call in a message, as a client sends it back.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCall {
    id: String,
    #[serde(default = "function", rename = "type")]
    kind: String,
    function: RawCalled,
    // Clients that put a stream together keep it.
    #[serde(default, rename = "index")]
    _index: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCalled {
    name: String,
    arguments: String,
    // What OpenAI's clients made of the arguments.
    #[serde(default, rename = "parsed_arguments")]
    _parsed: Option<IgnoredAny>,
}

fn function() -> String {
    "function".to_owned()
}

impl ToolOptions {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        fields.check_no_lists_in("tools")?;
        let raw: Vec<RawTool> = fields.take("tools")?.unwrap_or_default();
        if raw.len() > limits::TOOLS_MAX {
            let reason = format!("tools has at most {} entries", limits::TOOLS_MAX);
            return Err(RequestError::invalid("tools", reason));
        }
        let mut tools: Vec<ToolDefinition> = Vec::with_capacity(raw.len());
        for (index, tool) in raw.into_iter().enumerate() {
            let tool = tool.check(index)?;
            if tools.iter().any(|known| known.name == tool.name) {
                return Err(RequestError::invalid(
                    format!("tools[{index}].function.name"),
                    format!("there is another tool named {}; give each its own name", tool.name),
                ));
            }
            tools.push(tool);
        }
        let choice = take_choice(fields, &tools)?;
        let parallel = fields.take("parallel_tool_calls")?;
        // What these two did is done by `tools` and `tool_choice`.
        fields.only("functions", &[json!([])])?;
        fields.only("function_call", &[json!("none"), json!("auto")])?;
        Ok(Self { tools, choice, parallel })
    }
}

impl RawTool {
    fn check(self, index: usize) -> Result<ToolDefinition, RequestError> {
        let at = |field: &str| format!("tools[{index}].{field}");
        if self.kind != "function" {
            let reason = "only tools of type function are supported";
            return Err(RequestError::unsupported(at("type"), reason));
        }
        let Some(function) = self.function else {
            let reason = format!("{} is required", at("function"));
            return Err(RequestError::invalid(at("function"), reason));
        };
        check_name(&at("function.name"), &function.name)?;
        let description = function.description.unwrap_or_default();
        if description.len() > limits::TOOL_DESCRIPTION_BYTES_MAX || description.contains('\0') {
            return Err(RequestError::invalid(
                at("function.description"),
                format!(
                    "a description has at most {} bytes and no NUL character",
                    limits::TOOL_DESCRIPTION_BYTES_MAX
                ),
            ));
        }
        let parameters = match function.parameters {
            Some(schema) if !schema.is_empty() => Value::Object(schema),
            _ => json!({"type": "object", "properties": {}}),
        };
        if parameters.to_string().len() > limits::TOOL_SCHEMA_BYTES_MAX {
            return Err(RequestError::invalid(
                at("function.parameters"),
                format!("a schema has at most {} bytes", limits::TOOL_SCHEMA_BYTES_MAX),
            ));
        }
        Ok(ToolDefinition { name: function.name, description, parameters })
    }
}

fn take_choice(fields: &mut Fields, tools: &[ToolDefinition]) -> Result<ToolChoice, RequestError> {
    let choice = match fields.take::<RawChoice>("tool_choice")? {
        None => return Ok(ToolChoice::Auto),
        Some(RawChoice::Word(word)) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => {
                let reason = "tool_choice is auto, none, required or names a function";
                return Err(RequestError::invalid("tool_choice", reason));
            }
        },
        Some(RawChoice::One(RawNamed { kind, function: Some(function) })) if kind == "function" => {
            ToolChoice::Named(function.name)
        }
        Some(RawChoice::One(_)) => {
            let reason = "an object in tool_choice has type function and a function with a name";
            return Err(RequestError::unsupported("tool_choice", reason));
        }
    };
    match &choice {
        ToolChoice::Auto | ToolChoice::None => {}
        ToolChoice::Required if !tools.is_empty() => {}
        ToolChoice::Required => {
            let reason = "tool_choice requires a call, but there are no tools; add them to tools";
            return Err(RequestError::invalid("tool_choice", reason));
        }
        ToolChoice::Named(name) if tools.iter().any(|tool| tool.name == *name) => {}
        ToolChoice::Named(_) => {
            let reason = "tool_choice names a function that is not among tools";
            return Err(RequestError::invalid("tool_choice.function.name", reason));
        }
    }
    Ok(choice)
}

fn check_name(param: &str, name: &str) -> Result<(), RequestError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    let len = 1..=limits::TOOL_NAME_BYTES_MAX;
    if len.contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    let max = limits::TOOL_NAME_BYTES_MAX;
    let reason = format!("a function name has 1 to {max} letters, digits, underscores and dashes");
    Err(RequestError::invalid(param, reason))
}

/// Checks the calls of one message.
pub(super) fn check_calls(
    message: usize,
    raw: Vec<RawCall>,
) -> Result<Vec<ToolCall>, RequestError> {
    let param = format!("messages[{message}].tool_calls");
    if raw.len() > limits::TOOL_CALLS_MAX {
        let reason = format!("a message has at most {} tool calls", limits::TOOL_CALLS_MAX);
        return Err(RequestError::invalid(param, reason));
    }
    let mut calls: Vec<ToolCall> = Vec::with_capacity(raw.len());
    for (index, call) in raw.into_iter().enumerate() {
        let at = |field: &str| format!("{param}[{index}].{field}");
        if call.kind != "function" {
            let reason = "only tool calls of type function are supported";
            return Err(RequestError::unsupported(at("type"), reason));
        }
        check_name(&at("function.name"), &call.function.name)?;
        let known = calls.iter().any(|known| known.id == call.id);
        if call.id.is_empty() || call.id.len() > limits::TOOL_CALL_ID_BYTES_MAX || known {
            return Err(RequestError::invalid(
                at("id"),
                format!(
                    "the id of a tool call has 1 to {} bytes and is not used twice in a message",
                    limits::TOOL_CALL_ID_BYTES_MAX
                ),
            ));
        }
        if call.function.arguments.contains('\0') || call.id.contains('\0') {
            let reason = "text must not contain a NUL character";
            return Err(RequestError::invalid(at("function.arguments"), reason));
        }
        let (name, arguments) = (call.function.name, call.function.arguments);
        calls.push(ToolCall { id: call.id, name, arguments });
    }
    Ok(calls)
}
