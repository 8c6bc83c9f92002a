//! The real model behind the real socket: it answers, it stays responsive while
//! it computes, and it stops when nobody listens.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::openai::{ChatCompletion, CompletionReply, FinishReason};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::process::{MODEL, Worker};

/// Longest that a health check may take while tokens are computed.
const HEALTH_TIME: Duration = Duration::from_millis(50);
/// Longest that a slot may stay taken after its client has left.
const RELEASE_TIME: Duration = Duration::from_millis(250);

pub(crate) fn model_path() -> String {
    #[expect(clippy::disallowed_methods, reason = "a test may be given another model")]
    let given = std::env::var("RBEE_TEST_MODEL");
    let usual = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/rbee-test/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let path = given.unwrap_or_else(|_| usual.to_owned());
    let exists = std::path::Path::new(&path).is_file();
    assert!(exists, "{path} is missing; `make test` fetches it, or set RBEE_TEST_MODEL");
    path
}

/// Two workers at once would mostly wait for each other's threads.
pub(crate) static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test]
async fn a_real_model_answers_stays_responsive_and_stops_when_nobody_listens() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let model = model_path();
    // A guess is checked in a batch, whose logits are others in their last bits.
    let sizes = ["--slots=2", "--context=2048", "--speculation=off"];
    let worker = Worker::start_engine(&[&["--model", &model][..], &sizes].concat()).await;
    it_answers(&worker).await;
    it_calls_the_tool_that_it_has_to(&worker).await;
    it_is_told_what_its_tools_said(&worker).await;
    it_refuses_a_prompt_beyond_its_context(&worker).await;
    health_answers_while_tokens_are_computed(&worker).await;
    a_long_prompt_stops_when_its_client_leaves(&worker).await;
}

async fn it_answers(worker: &Worker) {
    // Users of their own share nothing: each time the whole prompt is computed, and the logits are the same to the bit.
    let greedy = |user: &str| json!({"temperature": 0, "max_tokens": 24, "user": user});
    let question = "What is the capital of France? Answer in one word.";
    let reply: ChatCompletion = worker.client.chat(question, greedy("first")).await.json();
    let text = reply.choices[0].message.content.as_ref().unwrap();
    assert!(text.contains("Paris"), "{text}");
    assert!(!text.contains("<|"), "a control token shows: {text}");
    assert!(reply.usage.prompt_tokens > 10 && reply.usage.completion_tokens > 0);

    let streamed = worker.client.stream_chat(question, greedy("second")).await;
    assert_eq!((&streamed.text, streamed.done), (text, true));

    let mut texts = Vec::new();
    for user in ["first", "second"] {
        let seeded = json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12,
            "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 7, "user": user});
        let reply: CompletionReply = worker.client.post("/v1/completions", &seeded).await.json();
        texts.push(reply.choices[0].text.clone());
    }
    assert_eq!(texts[0], texts[1], "the seed does not hold");
}

/// Two tools with arguments that a small model would not get right by itself.
fn tools() -> Value {
    let tool = |name: &str, parameters: Value| {
        json!({"type": "function", "function": {
            "name": name, "description": "Books a trip.", "parameters": parameters,
        }})
    };
    let trip = json!({
        "type": "object",
        "properties": {
            "class": {"type": "string", "enum": ["first", "second"]},
            "seats": {"type": "integer", "minimum": 1, "maximum": 4},
            "window": {"type": "boolean"},
        },
        "required": ["class", "seats", "window"],
        "additionalProperties": false,
    });
    json!([tool("book_trip", trip), tool("list_trips", json!({}))])
}

#[track_caller]
fn assert_books_a_trip(arguments: &str) {
    let arguments: Map<String, Value> = serde_json::from_str(arguments).unwrap();
    assert_eq!(arguments.len(), 3, "{arguments:?}");
    assert!(["first", "second"].contains(&arguments["class"].as_str().unwrap()));
    assert!((1..=4).contains(&arguments["seats"].as_i64().unwrap()), "{arguments:?}");
    assert!(arguments["window"].is_boolean(), "{arguments:?}");
}

async fn it_calls_the_tool_that_it_has_to(worker: &Worker) {
    let named = json!({"type": "function", "function": {"name": "book_trip"}});
    for seed in 0..2 {
        // The same seed draws the same tokens where the logits are the same to the bit.
        let more = |user: String| {
            json!({"tools": tools(), "tool_choice": named, "temperature": 1.2, "seed": seed,
                "max_tokens": 200, "user": user})
        };
        let whole = worker.client.chat("Hello!", more(format!("whole-{seed}"))).await;
        let reply: ChatCompletion = whole.json();
        let choice = &reply.choices[0];
        assert_eq!(choice.finish_reason, FinishReason::ToolCalls, "{reply:?}");
        assert_eq!(choice.message.tool_calls.len(), 1, "{reply:?}");
        let call = &choice.message.tool_calls[0];
        assert_eq!(call.function.name, "book_trip");
        assert_eq!(choice.message.content, None);
        assert_books_a_trip(&call.function.arguments);

        let more = more(format!("streamed-{seed}"));
        let streamed = worker.client.stream_chat("Hello!", more).await;
        assert_eq!(streamed.finish_reason(), Some(FinishReason::ToolCalls));
        assert_eq!(streamed.calls(), [("book_trip".to_owned(), call.function.arguments.clone())]);
    }
    let more = json!({"tools": tools(), "tool_choice": "required", "temperature": 0,
        "max_tokens": 200});
    let reply: ChatCompletion = worker.client.chat("Book a trip.", more).await.json();
    for call in &reply.choices[0].message.tool_calls {
        match call.function.name.as_str() {
            "book_trip" => assert_books_a_trip(&call.function.arguments),
            name => assert_eq!((name, call.function.arguments.as_str()), ("list_trips", "{}")),
        }
    }
    assert_eq!(reply.choices[0].message.tool_calls.len(), 1, "{reply:?}");

    let mut wrong = tools();
    let optional: Map<String, Value> =
        (0..2500).map(|n| (format!("p{n}"), json!({"type": "null"}))).collect();
    for schema in [
        json!({"$ref": "#/nowhere"}),
        json!({"type": "object", "properties": optional}),
        json!({"properties": {"x".repeat(20_000): {}}, "additionalProperties": true}),
        json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    ] {
        wrong[1]["function"]["parameters"] = schema;
        let refused = worker.client.chat("Hi", json!({"tools": wrong})).await;
        assert_eq!(refused.code(), ErrorCode::ValidationFailed);
        assert_eq!(refused.error().param.as_deref(), Some("tools[1].function.parameters"));
    }
}

async fn it_is_told_what_its_tools_said(worker: &Worker) {
    let call = json!({"id": "call_1", "type": "function",
        "function": {"name": "book_trip", "arguments": "{\"class\": \"first\"}"}});
    let body = json!({"model": MODEL, "temperature": 0, "max_tokens": 8, "tools": tools(),
    "tool_choice": "none", "messages": [
        {"role": "user", "content": "Book a trip."},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Booked, seat 12."},
    ]});
    let reply: ChatCompletion = worker.client.post("/v1/chat/completions", &body).await.json();
    assert!(reply.choices[0].message.content.as_ref().is_some_and(|text| !text.is_empty()));
    let without = worker.client.chat("Book a trip.", json!({"max_tokens": 1})).await;
    let without: ChatCompletion = without.json();
    let more = reply.usage.prompt_tokens - without.usage.prompt_tokens;
    assert!(more > 100, "tools, call and result are {more} tokens");
}

async fn it_refuses_a_prompt_beyond_its_context(worker: &Worker) {
    let refused = worker.client.chat(&"word ".repeat(4000), json!({})).await;
    assert_eq!(refused.code(), ErrorCode::ContextLengthExceeded);
    let error = refused.error();
    assert!(error.message.contains("2048"), "{}", error.message);
}

async fn health_answers_while_tokens_are_computed(worker: &Worker) {
    let more = json!({"max_tokens": 2000, "temperature": 1.5});
    let _first = worker.client.open_chat("Tell a very long story.", more.clone()).await;
    let _second = worker.client.open_chat("Tell another one.", more).await;
    let mut times = Vec::new();
    for _ in 0..41 {
        let started = Instant::now();
        assert_eq!(worker.client.get("/health").await.status, 200);
        times.push(started.elapsed());
    }
    let before = worker.status().await.engine_steps;
    worker.until("it goes on", |status| status.engine_steps > before).await;
    times.sort_unstable();
    assert!(times[times.len() / 2] < HEALTH_TIME, "{times:?}");
}

async fn a_long_prompt_stops_when_its_client_leaves(worker: &Worker) {
    worker.until("the slots are free", |status| status.slots_available == 2).await;
    let client = worker.client.clone();
    let content = "The bee lives in a hive. ".repeat(250);
    let asking = tokio::spawn(async move { client.chat(&content, json!({})).await });
    worker.until("it is computed", |status| status.requests_running == 1).await;
    asking.abort();
    let took = worker.until("the slot is free", |status| status.slots_available == 2).await;
    assert!(took < RELEASE_TIME, "it took {took:?}");
}
