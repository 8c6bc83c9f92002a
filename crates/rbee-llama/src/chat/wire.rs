//! The JSON in which the shim is told what to render, and answers. Renders nothing.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{ChatMessage, ChatRequest, Tool, ToolCall};
use crate::reply::ReplyFormat;

/// What the shim answers.
#[derive(Deserialize)]
pub(super) struct WireRendered {
    pub(super) prompt: String,
    pub(super) stops: Vec<String>,
    #[serde(flatten)]
    pub(super) reply: ReplyFormat,
}

/// What is rendered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The prompt, and how to read the reply: a dozen small renderings more.
    All,
    TextOnly,
}

/// All of a request that decides how its reply is read, but for its messages.
pub(super) fn format_key(request: &ChatRequest<'_>) -> String {
    wire_request(request, &[], Extent::All).to_string()
}

/// The request as the shim reads it.
pub(super) fn wire_request(
    request: &ChatRequest<'_>,
    messages: &[ChatMessage],
    extent: Extent,
) -> Value {
    json!({
        "messages": messages.iter().map(wire_message).collect::<Vec<_>>(),
        "tools": request.tools.iter().map(wire_tool).collect::<Vec<_>>(),
        "tool_choice": request.tool_choice.word(),
        "parallel_tool_calls": request.parallel_tool_calls == Some(true),
        "enable_thinking": request.enable_thinking,
        "arguments": request.arguments,
        "add_generation_prompt": request.add_generation_prompt,
        "text_only": extent == Extent::TextOnly,
    })
}

fn wire_message(message: &ChatMessage) -> Value {
    let mut wire = json!({"role": message.role, "content": message.content});
    let Some(fields) = wire.as_object_mut() else { return wire };
    if !message.reasoning_content.is_empty() {
        fields.insert("reasoning_content".to_owned(), json!(message.reasoning_content));
    }
    if !message.tool_calls.is_empty() {
        let calls: Vec<Value> = message.tool_calls.iter().map(wire_call).collect();
        fields.insert("tool_calls".to_owned(), json!(calls));
    }
    if let Some(answered) = &message.answers {
        fields.insert("tool_call_id".to_owned(), json!(answered.call_id));
        fields.insert("name".to_owned(), json!(answered.name));
    }
    wire
}

fn wire_call(call: &ToolCall) -> Value {
    let function = json!({"name": call.name, "arguments": call.arguments});
    json!({"type": "function", "id": call.id, "function": function})
}

fn wire_tool(tool: &Tool) -> Value {
    let function = json!({
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    });
    json!({"type": "function", "function": function})
}

/// The tools as a text that any model can read, one JSON object a line.
pub(super) fn describe_tools(tools: &[Tool]) -> String {
    let lines: Vec<String> = tools.iter().map(|tool| wire_tool(tool).to_string()).collect();
    lines.join("\n")
}
