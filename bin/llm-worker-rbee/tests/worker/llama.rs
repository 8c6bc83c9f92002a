//! The real model behind the real socket: it answers, it stays responsive while
//! it computes, and it stops when nobody listens.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::openai::{ChatCompletion, CompletionReply};
use serde_json::json;
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
    let worker = Worker::start_engine(&["--model", &model, "--slots=2", "--context=2048"]).await;
    it_answers(&worker).await;
    it_refuses_a_prompt_beyond_its_context(&worker).await;
    health_answers_while_tokens_are_computed(&worker).await;
    a_long_prompt_stops_when_its_client_leaves(&worker).await;
}

async fn it_answers(worker: &Worker) {
    let greedy = json!({"temperature": 0, "max_tokens": 24});
    let question = "What is the capital of France? Answer in one word.";
    let reply: ChatCompletion = worker.client.chat(question, greedy.clone()).await.json();
    let text = &reply.choices[0].message.content;
    assert!(text.contains("Paris"), "{text}");
    assert!(!text.contains("<|"), "a control token shows: {text}");
    assert!(reply.usage.prompt_tokens > 10 && reply.usage.completion_tokens > 0);

    let streamed = worker.client.stream_chat(question, greedy).await;
    assert_eq!((&streamed.text, streamed.done), (text, true));

    let seeded = json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 12,
        "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 7});
    let mut texts = Vec::new();
    for _ in 0..2 {
        let reply: CompletionReply = worker.client.post("/v1/completions", &seeded).await.json();
        texts.push(reply.choices[0].text.clone());
    }
    assert_eq!(texts[0], texts[1], "the seed does not hold");
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
