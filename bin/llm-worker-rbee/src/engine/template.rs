//! Says to a chat template what a request says: roles, tools, calls, results,
//! thinking. Makes no tokens.

use rbee_api::openai::{ChatMessage, ToolChoice, ToolDefinition};
use rbee_llama::chat::{
    Answered, ChatMessage as TemplateMessage, ChatRequest, ChatTemplate, Rendered, TemplateError,
    Tool, ToolCall, ToolChoice as TemplateChoice,
};

use serde_json::json;

use super::backend::{Conversation, PromptError};

/// Renders a conversation up to where the answer begins.
///
/// # Errors
/// The template refuses it.
pub(super) fn render(
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<Rendered, PromptError> {
    let Conversation { messages, tools, thinking } = conversation;
    let rendered: Vec<TemplateMessage> = messages
        .iter()
        .enumerate()
        .map(|(index, message)| said(message, messages.get(..index).unwrap_or_default()))
        .collect();
    let (choice, only) = match &tools.choice {
        ToolChoice::Auto => (TemplateChoice::Auto, None),
        ToolChoice::None => (TemplateChoice::None, None),
        ToolChoice::Required => (TemplateChoice::Required, None),
        ToolChoice::Named(name) => (TemplateChoice::Required, Some(name)),
    };
    let offered = tools.tools.iter().filter(|tool| only.is_none_or(|name| tool.name == *name));
    let offered: Vec<Tool> = offered.map(tool).collect();
    let request = ChatRequest {
        messages: &rendered,
        tools: &offered,
        tool_choice: choice,
        // Who names a tool wants it called once.
        parallel_tool_calls: if only.is_some() { Some(false) } else { tools.parallel },
        add_generation_prompt: true,
        enable_thinking: thinking.enabled.unwrap_or(true),
        arguments: &thinking.template_arguments,
    };
    template.render(&request).map_err(|error| {
        let (name, reason) = match error {
            TemplateError::Schema { tool, reason } => (Some(tool), reason),
            TemplateError::Syntax { reason } | TemplateError::Refused { reason } => {
                (wrong_schema(template, &request), reason)
            }
        };
        match name {
            Some(name) => {
                let tool = tools.tools.iter().position(|tool| tool.name == name);
                PromptError::Schema { tool: tool.unwrap_or_default(), reason }
            }
            None => PromptError::Template { reason },
        }
    })
}

/// Finds the tool whose schema is why a request is refused, if one is: with it
/// alone the request is refused, and with no schema at all it is not.
fn wrong_schema(template: &ChatTemplate, request: &ChatRequest<'_>) -> Option<String> {
    let blank: Vec<Tool> = request
        .tools
        .iter()
        .map(|tool| Tool { parameters: json!({"type": "object"}), ..tool.clone() })
        .collect();
    let refuses =
        |tools: &[Tool]| template.render(&ChatRequest { tools, ..request.clone() }).is_err();
    if blank.is_empty() || refuses(&blank) {
        return None;
    }
    let alone = |tool: &&Tool| refuses(std::slice::from_ref(*tool));
    request.tools.iter().find(alone).map(|tool| tool.name.clone())
}

fn said(message: &ChatMessage, before: &[ChatMessage]) -> TemplateMessage {
    let calls = message.tool_calls.iter().map(|call| ToolCall {
        id: call.id.clone(),
        name: call.name.clone(),
        arguments: call.arguments.clone(),
    });
    let answers = message.tool_call_id.as_ref().map(|id| {
        let mut calls = before.iter().rev().flat_map(|message| &message.tool_calls);
        let call = calls.find(|call| call.id == *id);
        let name = call.map(|call| call.name.clone()).unwrap_or_default();
        Answered { call_id: id.clone(), name }
    });
    TemplateMessage {
        role: message.role.template_name().to_owned(),
        content: message.content.clone(),
        reasoning_content: message.reasoning_content.clone(),
        tool_calls: calls.collect(),
        answers,
    }
}

fn tool(tool: &ToolDefinition) -> Tool {
    Tool {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: tool.parameters.clone(),
    }
}
