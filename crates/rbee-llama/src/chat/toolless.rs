//! Tools for a model whose template knows none: they are described in the
//! system message, calls and results stand in the conversation as text, and
//! the reply is read as one of the many models that call tools in this form.
//! Renders no prompt itself.

use std::sync::OnceLock;

use serde_json::{Value, json};

use super::wire::describe_tools;
use super::{ChatMessage, ChatRequest, ChatTemplate, TemplateError, ToolCall};
use crate::reply::ReplyFormat;

/// A template whose model calls as the descriptions here ask for. It is only
/// rendered to find out how such a reply is read.
const CALLS: &str = r#"
{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- for tool in tools %}
{{- tool | tojson }}
{{- '\n' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}THINKS
{{- message.content }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}"#;

/// What stands for `THINKS` in the template of a model that thinks.
const THINKS: &str = r"
{%- if message.reasoning_content %}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
{%- endif %}";

/// What the model is told before the list of tools, and after it.
const BEFORE_TOOLS: &str = "You can call the functions below. Each line describes one, with the \
                            JSON schema of its arguments:";
const AFTER_TOOLS: &str = "To call a function, answer with its name and its arguments as JSON, in \
                           exactly this form:\n<tool_call>\n{\"name\": NAME, \"arguments\": \
                           ARGUMENTS}\n</tool_call>\nThe result comes back between \
                           <tool_response> and </tool_response>. If no function helps, answer as \
                           usual.";

/// Writes tools, calls and results into the messages as text.
pub(super) fn write_out(request: &ChatRequest<'_>) -> Vec<ChatMessage> {
    let mut written: Vec<ChatMessage> = Vec::with_capacity(request.messages.len() + 1);
    let description = describe(request);
    match request.messages.first() {
        Some(first) if first.role == "system" => {}
        _ if description.is_empty() => {}
        _ => written.push(said("system", description.clone())),
    }
    let mut after_result = false;
    for (index, message) in request.messages.iter().enumerate() {
        let is_result = message.role == "tool";
        match written.last_mut() {
            // Most templates want the roles to alternate.
            Some(last) if is_result && after_result => {
                last.content.push('\n');
                last.content.push_str(&result_text(message));
            }
            _ if is_result => written.push(said("user", result_text(message))),
            _ if index == 0 && message.role == "system" => {
                written.push(said("system", joined(&message.content, &description)));
            }
            _ => written.push(with_calls(message)),
        }
        after_result = is_result;
    }
    written
}

/// Adds the list of tools to the messages of a template that shows calls in a
/// form of its own and yet has no place for the list.
pub(super) fn write_list(request: &ChatRequest<'_>) -> Vec<ChatMessage> {
    let list = format!("{BEFORE_TOOLS}\n{}", describe_tools(request.tools));
    let mut written = request.messages.to_vec();
    match written.first_mut() {
        Some(first) if first.role == "system" => first.content = joined(&first.content, &list),
        _ => written.insert(0, said("system", list)),
    }
    written
}

/// How replies are read that follow the description.
///
/// # Errors
/// A tool's schema has no grammar.
pub(super) fn reply_format(
    request: &ChatRequest<'_>,
    thinks: bool,
) -> Result<ReplyFormat, TemplateError> {
    static THINKING: OnceLock<Result<ChatTemplate, String>> = OnceLock::new();
    static CALLING: OnceLock<Result<ChatTemplate, String>> = OnceLock::new();
    let (parsed, thinking) = if thinks { (&THINKING, THINKS) } else { (&CALLING, "") };
    let parsed = parsed.get_or_init(|| {
        ChatTemplate::from_source(&CALLS.replace("THINKS", thinking))
            .map_err(|error| error.to_string())
    });
    let template =
        parsed.as_ref().map_err(|reason| TemplateError::Syntax { reason: reason.clone() })?;
    let messages = [said("user", "Hi".to_owned())];
    let mut format = template.render_native(request, &messages)?.reply;
    format.borrowed = true;
    Ok(format)
}

fn describe(request: &ChatRequest<'_>) -> String {
    if request.tools.is_empty() {
        return String::new();
    }
    format!("{BEFORE_TOOLS}\n{}\n\n{AFTER_TOOLS}", describe_tools(request.tools))
}

fn said(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content, ..ChatMessage::default() }
}

fn joined(first: &str, second: &str) -> String {
    if first.is_empty() || second.is_empty() {
        return format!("{first}{second}");
    }
    format!("{first}\n\n{second}")
}

fn result_text(message: &ChatMessage) -> String {
    format!("<tool_response>\n{}\n</tool_response>", message.content)
}

fn with_calls(message: &ChatMessage) -> ChatMessage {
    let calls: Vec<String> = message.tool_calls.iter().map(call_text).collect();
    let content = match (message.content.is_empty(), calls.is_empty()) {
        (_, true) => message.content.clone(),
        (true, false) => calls.join("\n"),
        (false, false) => format!("{}\n{}", message.content, calls.join("\n")),
    };
    ChatMessage { content, tool_calls: Vec::new(), ..message.clone() }
}

fn call_text(call: &ToolCall) -> String {
    // What a model wrote may be no JSON; then it is shown as it was.
    let arguments = serde_json::from_str(&call.arguments)
        .unwrap_or_else(|_| Value::String(call.arguments.clone()));
    let call = json!({"name": call.name, "arguments": arguments});
    format!("<tool_call>\n{call}\n</tool_call>")
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;
    use crate::chat::{Answered, Tool, ToolChoice};

    fn tool() -> Tool {
        Tool {
            name: "add".to_owned(),
            description: "Adds.".to_owned(),
            parameters: json!({"type": "object", "properties": {"a": {"type": "integer"}}}),
        }
    }

    fn written(messages: &[ChatMessage], tools: &[Tool]) -> Vec<(String, String)> {
        let arguments = Map::new();
        let request = ChatRequest {
            messages,
            tools,
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: None,
            add_generation_prompt: true,
            enable_thinking: true,
            arguments: &arguments,
        };
        write_out(&request).into_iter().map(|message| (message.role, message.content)).collect()
    }

    #[test]
    fn tools_calls_and_results_become_text_and_roles_alternate() {
        let call = |id: &str| ToolCall {
            id: id.to_owned(),
            name: "add".to_owned(),
            arguments: "{\"a\": 1}".to_owned(),
        };
        let result = |id: &str| ChatMessage {
            answers: Some(Answered { call_id: id.to_owned(), name: "add".to_owned() }),
            ..said("tool", format!("of {id}"))
        };
        let messages = [
            said("system", "Be brief.".to_owned()),
            said("user", "Add.".to_owned()),
            ChatMessage {
                tool_calls: vec![call("1"), call("2")],
                ..said("assistant", "So:".to_owned())
            },
            result("1"),
            result("2"),
            said("assistant", "Done.".to_owned()),
        ];
        let written = written(&messages, &[tool()]);
        let roles: Vec<&str> = written.iter().map(|(role, _)| role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
        let system = &written[0].1;
        assert!(system.starts_with("Be brief.\n\nYou can call"), "{system}");
        assert!(system.contains(r#"{"type":"function","function":{"name":"add""#), "{system}");
        let calls = "So:\n<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n</tool_call>\n\
                     <tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n</tool_call>";
        assert_eq!(written[2].1, calls);
        let results = "<tool_response>\nof 1\n</tool_response>\n\
                       <tool_response>\nof 2\n</tool_response>";
        assert_eq!(written[3].1, results);
    }

    #[test]
    fn without_tools_nothing_is_added() {
        let messages = [said("user", "Hi".to_owned())];
        assert_eq!(written(&messages, &[]), [("user".to_owned(), "Hi".to_owned())]);
        let with = written(&messages, &[tool()]);
        assert_eq!((with.len(), with[0].0.as_str()), (2, "system"));
    }
}
