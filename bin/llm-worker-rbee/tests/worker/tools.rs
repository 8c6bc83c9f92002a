//! Calls of tools and thoughts in replies, with a model whose words the test chooses.

use rbee_api::error::ErrorCode;
use rbee_api::openai::{ChatCompletion, FinishReason};
use serde_json::{Value, json};

use crate::process::{MODEL, Worker};

const CALL: &str =
    "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2]}}\n</tool_call>";

/// A request for a tool, in which the model says `text` in pieces of so many bytes.
fn script(bytes: usize, text: &str) -> String {
    format!("[[bytes={bytes} text={text}]]")
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {
        "a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}},
    }});
    let function = json!({"name": "add", "description": "Adds.", "parameters": parameters});
    json!([{"type": "function", "function": function}])
}

#[tokio::test]
async fn a_call_is_the_same_streamed_and_whole_however_its_tokens_fall() {
    let worker = Worker::start(&[]).await;
    let expected = ("add".to_owned(), "{\"a\": 1, \"b\": [2]}".to_owned());
    for bytes in [1, 2, 3, 7, 1000] {
        let content = script(bytes, &format!("<think>\nHm \u{1f41d}.\n</think>\n\nSo:\n{CALL}"));
        let more = json!({"tools": tools()});
        let reply: ChatCompletion = worker.client.chat(&content, more.clone()).await.json();
        let choice = &reply.choices[0];
        assert_eq!(choice.finish_reason, FinishReason::ToolCalls);
        assert_eq!(choice.message.reasoning_content.as_deref(), Some("Hm \u{1f41d}."));
        assert_eq!(choice.message.content.as_deref(), Some("So:"));
        let [call] = choice.message.tool_calls.as_slice() else { panic!("{reply:?}") };
        assert_eq!((&call.function.name, &call.function.arguments), (&expected.0, &expected.1));
        assert!(call.id.starts_with("call_"), "{call:?}");

        let streamed = worker.client.stream_chat(&content, more).await;
        assert!(streamed.done);
        assert_eq!(streamed.finish_reason(), Some(FinishReason::ToolCalls));
        assert_eq!(streamed.calls(), std::slice::from_ref(&expected));
        assert_eq!(
            (streamed.reasoning().as_str(), streamed.text.as_str()),
            ("Hm \u{1f41d}.", "So:")
        );
    }
}

#[tokio::test]
async fn every_choice_calls_its_own_tools() {
    let worker = Worker::start(&["--slots=2"]).await;
    let content = script(3, &format!("<think>\nHm.\n</think>\n\nSo:\n{CALL}"));
    let more = json!({"tools": tools(), "n": 3});
    let reply: ChatCompletion = worker.client.chat(&content, more.clone()).await.json();
    assert_eq!(reply.choices.len(), 3);
    let mut ids = std::collections::HashSet::new();
    for choice in &reply.choices {
        assert_eq!(choice.finish_reason, FinishReason::ToolCalls);
        assert_eq!(choice.message.reasoning_content.as_deref(), Some("Hm."));
        let [call] = choice.message.tool_calls.as_slice() else { panic!("{reply:?}") };
        assert_eq!(call.function.arguments, "{\"a\": 1, \"b\": [2]}");
        assert!(ids.insert(call.id.clone()), "two calls have the id {}", call.id);
    }
    let streamed = worker.client.stream_chat(&content, more).await;
    assert!(streamed.done);
    for index in 0..3 {
        let choice = streamed.choice(index);
        assert_eq!(choice.finish_reason(), Some(FinishReason::ToolCalls), "{index}");
        assert_eq!((choice.reasoning().as_str(), choice.text.as_str()), ("Hm.", "So:"));
        assert_eq!(choice.calls(), [("add".to_owned(), "{\"a\": 1, \"b\": [2]}".to_owned())]);
    }
}

#[tokio::test]
async fn arguments_arrive_while_they_are_written() {
    let worker = Worker::start(&[]).await;
    let long = "word ".repeat(40);
    let text = format!(
        "<tool_call>\n{{\"name\": \"add\", \"arguments\": {{\"a\": 1, \"c\": \"{long}\"}}}}\n</tool_call>"
    );
    let content = format!("[[delay_ms=5 bytes=4 text={text}]]");
    let streamed = worker.client.stream_chat(&content, json!({"tools": open_tools()})).await;
    let parts = streamed.chunks.iter().flat_map(|chunk| &chunk.choices);
    let parts = parts.filter(|choice| !choice.delta.tool_calls.is_empty()).count();
    assert!(parts > 5, "the call came in {parts} parts");
    assert_eq!(streamed.calls().len(), 1);
}

fn open_tools() -> Value {
    json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object",
        "properties": {"a": {"type": "integer"}, "c": {"type": "string"}}}}}])
}

#[tokio::test]
async fn a_reply_without_calls_is_content_with_tools_too() {
    let worker = Worker::start(&[]).await;
    let broken = "<tool_call>\n{\"name\": \"subtract\"}\n</tool_call>";
    for text in ["It is 3.", "a < b, <tool> and\n", broken] {
        let content = script(3, text);
        let reply: ChatCompletion =
            worker.client.chat(&content, json!({"tools": tools()})).await.json();
        let choice = &reply.choices[0];
        assert_eq!(choice.message.content.as_deref(), Some(text));
        assert_eq!(choice.finish_reason, FinishReason::Stop);
        assert!(choice.message.tool_calls.is_empty());
        let streamed = worker.client.stream_chat(&content, json!({"tools": tools()})).await;
        assert_eq!(streamed.text, text);
    }
    // Who says that no tool is to be called gets the text of a call.
    let more = json!({"tools": tools(), "tool_choice": "none"});
    let streamed = worker.client.stream_chat(&script(5, CALL), more).await;
    assert_eq!((streamed.text.as_str(), streamed.calls().len()), (CALL, 0));
}

#[tokio::test]
async fn a_call_that_max_tokens_cuts_off_says_so() {
    let worker = Worker::start(&[]).await;
    let more = json!({"tools": tools(), "max_tokens": 62});
    let streamed = worker.client.stream_chat(&script(1, CALL), more).await;
    assert_eq!(streamed.finish_reason(), Some(FinishReason::Length));
    let calls = streamed.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!("{\"a\": 1, \"b\": [2]}".starts_with(&calls[0].1), "{calls:?}");
}

#[tokio::test]
async fn thoughts_are_told_apart_where_the_model_thinks_and_only_there() {
    let worker = Worker::start(&[]).await;
    let text = "<think>\nFirst this.\n\nThen that.\n</think>\n\nDone.";
    let on = json!({"chat_template_kwargs": {"enable_thinking": true}});
    for bytes in [1, 4, 1000] {
        let content = script(bytes, text);
        let streamed = worker.client.stream_chat(&content, on.clone()).await;
        let thoughts = "First this.\n\nThen that.";
        assert_eq!((streamed.reasoning().as_str(), streamed.text.as_str()), (thoughts, "Done."));
        assert_eq!(streamed.finish_reason(), Some(FinishReason::Stop));
        let reply: ChatCompletion = worker.client.chat(&content, on.clone()).await.json();
        let message = &reply.choices[0].message;
        assert_eq!(message.reasoning_content.as_deref(), Some(thoughts));
        assert_eq!(message.content.as_deref(), Some("Done."));
    }
    let streamed = worker.client.stream_chat(&script(4, text), json!({})).await;
    assert_eq!((streamed.reasoning().as_str(), streamed.text.as_str()), ("", text));
}

#[tokio::test]
async fn the_result_of_a_tool_belongs_to_the_conversation() {
    let worker = Worker::start(&[]).await;
    let call = json!({"id": "c1", "type": "function",
        "function": {"name": "add", "arguments": "{\"a\": 1}"}});
    let mut body = json!({"model": MODEL, "tools": tools(), "messages": [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It is three."},
    ]});
    let reply: ChatCompletion = worker.client.post("/v1/chat/completions", &body).await.json();
    assert_eq!(reply.choices[0].message.content.as_deref(), Some("It is three."));
    body["messages"][2]["tool_call_id"] = json!("c2");
    let refused = worker.client.post("/v1/chat/completions", &body).await;
    assert_eq!(refused.code(), ErrorCode::ValidationFailed);
    assert_eq!(refused.error().param.as_deref(), Some("messages[2].tool_call_id"));
}
