//! Prompts and replies of the model families that people use: what their
//! templates render, and what their replies are read as.
//!
//! `golden/conversations.json` holds the conversations, `golden/prompts.json`
//! what every template makes of them. After a wanted change,
//! `RBEE_TEST_BLESS=1 cargo test golden` writes the latter anew.

use std::fs;
use std::path::{Path, PathBuf};

use rbee_llama::chat::{
    Answered, ChatMessage, ChatRequest, ChatTemplate, Tool, ToolCall, ToolChoice,
};
use serde_json::{Map, Value, json};

use crate::model;

const FAMILIES: [&str; 17] = [
    "chatml",
    "qwen2.5",
    "qwen3",
    "llama-3-form",
    "mistral-nemo",
    "gemma-form",
    "phi-3.5",
    "deepseek-r1-distill",
    "gpt-oss",
    "smollm3",
    "granite-3.3",
    "mistral-small-3.2",
    "deepseek-v3.1",
    "qwen3-coder",
    "glm-4.6",
    "phi-4-form",
    "command-r-form",
];

/// What stands before and after the day that a template writes.
const DATES: [(&str, &str); 3] =
    [("Current date: ", "\n"), ("Today's Date: ", ". "), ("The current date is ", ".\n")];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Value {
    let path = golden(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    serde_json::from_str(&text).expect("it is JSON")
}

/// The template of a family, with the begin and end tokens of the test model.
fn template(family: &str) -> ChatTemplate {
    if family == "chatml" {
        return ChatTemplate::from_model(&model(), Some("chatml")).expect("it is parsed");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates");
    let source = fs::read_to_string(path.join(format!("{family}.jinja"))).expect("it is there");
    ChatTemplate::from_model(&model(), Some(&source)).expect("it is parsed")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn message(wire: &Value) -> ChatMessage {
    let call = |call: &Value| ToolCall {
        id: text(&call["id"]),
        name: text(&call["function"]["name"]),
        arguments: text(&call["function"]["arguments"]),
    };
    let answers = wire
        .get("tool_call_id")
        .map(|id| Answered { call_id: text(id), name: text(&wire["name"]) });
    ChatMessage {
        role: text(&wire["role"]),
        content: text(&wire["content"]),
        reasoning_content: text(&wire["reasoning_content"]),
        tool_calls: list(&wire["tool_calls"]).iter().map(call).collect(),
        answers,
    }
}

fn tool(wire: &Value) -> Tool {
    Tool {
        name: text(&wire["function"]["name"]),
        description: text(&wire["function"]["description"]),
        parameters: wire["function"]["parameters"].clone(),
    }
}

/// The prompt of a conversation, or why there is none. What day it is, is left out.
fn prompt(template: &ChatTemplate, conversation: &Value) -> String {
    let messages: Vec<ChatMessage> = list(&conversation["messages"]).iter().map(message).collect();
    let tools: Vec<Tool> = list(&conversation["tools"]).iter().map(tool).collect();
    let arguments = Map::from_iter([("date_string".to_owned(), json!("26 Jul 2024"))]);
    let rendered = template.render(&ChatRequest {
        messages: &messages,
        tools: &tools,
        tool_choice: ToolChoice::Auto,
        parallel_tool_calls: None,
        add_generation_prompt: true,
        enable_thinking: conversation["enable_thinking"].as_bool().unwrap_or(true),
        arguments: &arguments,
    });
    let prompt = match rendered {
        Ok(rendered) => rendered.prompt,
        Err(error) => format!("refused: {error}"),
    };
    DATES.into_iter().fold(prompt, |prompt, (before, after)| without(&prompt, before, after))
}

/// Leaves out what stands between the first `before` and the `after` that follows it.
fn without(prompt: &str, before: &str, after: &str) -> String {
    let Some((head, rest)) = prompt.split_once(before) else { return prompt.to_owned() };
    let tail = rest.find(after).map_or("", |at| &rest[at..]);
    format!("{head}{before}TODAY{tail}")
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the one setting of the tests has no config file to stand in"
)]
fn golden_prompts_are_rendered_to_the_letter() {
    let conversations = read("conversations.json");
    let mut rendered = Map::new();
    for family in FAMILIES {
        let template = template(family);
        let prompts: Map<String, Value> = conversations
            .as_object()
            .expect("they have names")
            .iter()
            .map(|(name, conversation)| {
                // Twice, for the second time much of it is remembered.
                let first = prompt(&template, conversation);
                assert_eq!(first, prompt(&template, conversation), "{family} {name}");
                (name.clone(), Value::String(first))
            })
            .collect();
        rendered.insert(family.to_owned(), Value::Object(prompts));
    }
    let rendered = Value::Object(rendered);
    if std::env::var_os("RBEE_TEST_BLESS").is_some() {
        let text = serde_json::to_string_pretty(&rendered).expect("it is JSON") + "\n";
        fs::write(golden("prompts.json"), text).expect("it is written");
    }
    let expected = read("prompts.json");
    for family in FAMILIES {
        for (name, prompt) in expected[family].as_object().expect("they have names") {
            assert_eq!(&rendered[family][name], prompt, "{family} {name}");
        }
    }
    assert_eq!(rendered, expected);
}
