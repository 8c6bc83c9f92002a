//! Embeddings and scores: the llama engine against what llama-server gives for
//! the same files, and against itself in other batches; the echo engine for
//! what happens around them.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::openai::{EmbeddingList, EmbeddingVector, ModelCardList, RerankReply};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::Client;
use crate::process::{MODEL, Worker};
use crate::tiny_models::{
    DECODER_CONTEXT, DECODER_WIDTH, ENCODER_CONTEXT, ENCODER_WIDTH, Pooling, TinyModel,
};

/// Least cosine between two embeddings that are the same but for rounding.
const COSINE_MIN: f64 = 1.0 - 1e-4;
/// Most that two scores which are the same but for rounding may differ.
const SCORE_TOLERANCE: f64 = 1e-3;

/// What llama-server gives.
#[derive(Debug, Deserialize)]
struct Goldens {
    encoder: Vec<Embedded>,
    decoder: Vec<Embedded>,
    encoder_rank: Vec<Scored>,
    decoder_rank: Vec<Scored>,
}

#[derive(Debug, Deserialize)]
struct Embedded {
    text: String,
    repeat: usize,
    tokens: u64,
    embedding: Vec<f32>,
}

#[derive(Debug, Deserialize)]
struct Scored {
    query: String,
    document: String,
    tokens: u64,
    score: f64,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("goldens/embeddings.json")).unwrap()
}

async fn llama(model: &TinyModel, arguments: &[&str]) -> Worker {
    let path = model.path.to_str().unwrap();
    Worker::start_engine(&[&["--model", path, "--threads=1"], arguments].concat()).await
}

fn body(input: &Value, more: Value) -> Value {
    let mut body = json!({"model": MODEL, "input": input});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn embed(client: &Client, input: &Value) -> EmbeddingList {
    client.post("/v1/embeddings", &body(input, json!({}))).await.json()
}

fn numbers(list: &EmbeddingList) -> Vec<Vec<f32>> {
    let numbers = list.data.iter().filter_map(|data| match &data.embedding {
        EmbeddingVector::Numbers(numbers) => Some(numbers.clone()),
        EmbeddingVector::Base64(_) => None,
    });
    let numbers: Vec<_> = numbers.collect();
    assert_eq!(numbers.len(), list.data.len(), "base64 was not asked for");
    numbers
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[track_caller]
fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    let cosine = cosine(found, expected);
    assert!(cosine >= COSINE_MIN, "{what}: cosine {cosine}\n{found:?}\n{expected:?}");
    let length: f64 = found.iter().map(|number| f64::from(*number).powi(2)).sum();
    assert!((length - 1.0).abs() < 1e-4, "{what}: its length is not 1 but {length}");
}

/// Texts of very different lengths, some longer than a usual step.
fn texts(longest_words: usize) -> Vec<String> {
    let lengths = [1, 3, 40, 2, 7, longest_words, 1, 90, 15, 5, 33, 4, 120, 2];
    let words = ["bee", "honey", "hive", "the", "fox", "making", "wax"];
    let text = |(index, length): (usize, &usize)| {
        (0..*length)
            .map(|word| words[(word * (index + 2) + index) % 7])
            .collect::<Vec<_>>()
            .join(" ")
    };
    lengths.iter().enumerate().map(text).collect()
}

async fn gives_what_llama_server_gives(worker: &Worker, goldens: &[Embedded]) {
    let inputs: Vec<String> =
        goldens.iter().map(|golden| golden.text.repeat(golden.repeat)).collect();
    let list = embed(&worker.client, &json!(inputs)).await;
    for (golden, found) in goldens.iter().zip(numbers(&list)) {
        assert_same(&golden.text, &found, &golden.embedding);
    }
    let tokens = goldens.iter().map(|golden| golden.tokens).sum();
    assert_eq!((list.usage.prompt_tokens, list.usage.total_tokens), (tokens, tokens));
}

/// One input a request and one request at a time is the oracle: nothing shares
/// its step.
async fn batches_change_nothing(worker: &Worker, longest_words: usize) {
    let texts = texts(longest_words);
    let mut alone = Vec::new();
    for text in &texts {
        alone.push(numbers(&embed(&worker.client, &json!(text)).await).remove(0));
    }
    let together = embed(&worker.client, &json!(texts)).await;
    let order: Vec<u32> = together.data.iter().map(|data| data.index).collect();
    assert_eq!(order, (0..u32::try_from(texts.len()).unwrap()).collect::<Vec<_>>());
    for ((found, expected), text) in numbers(&together).iter().zip(&alone).zip(&texts) {
        assert_same(text, found, expected);
    }
    let mut requests = tokio::task::JoinSet::new();
    for start in 0..texts.len() {
        let (client, mut texts) = (worker.client.clone(), texts.clone());
        texts.rotate_left(start);
        requests.spawn(async move { (start, numbers(&embed(&client, &json!(texts)).await)) });
    }
    while let Some(joined) = requests.join_next().await {
        let (start, found) = joined.unwrap();
        let mut expected = alone.clone();
        expected.rotate_left(start);
        for (found, expected) in found.iter().zip(&expected) {
            assert_same(&format!("rotated by {start}"), found, expected);
        }
    }
    assert!(worker.status().await.batch_requests_max > 1, "no step held several requests");
}

#[tokio::test]
async fn an_encoder_gives_the_embeddings_of_llama_server_in_any_batch() {
    let model = TinyModel::encoder(Pooling::Mean);
    let worker = llama(&model, &[]).await;
    gives_what_llama_server_gives(&worker, &goldens().encoder).await;
    batches_change_nothing(&worker, 150).await;
    let status = worker.status().await;
    assert_eq!((status.context_tokens, status.slots_total), (ENCODER_CONTEXT, 64));
    // A reply can be there a moment before its slot is.
    let free = |status: &rbee_api::worker::WorkerStatus| {
        (status.slots_available, status.requests_running) == (64, 0)
    };
    worker.until("all slots are free", free).await;
}

#[tokio::test]
async fn a_decoder_gives_the_embeddings_of_llama_server_in_any_batch() {
    let model = TinyModel::decoder(Pooling::Last);
    let worker = llama(&model, &["--slots=7"]).await;
    gives_what_llama_server_gives(&worker, &goldens().decoder).await;
    batches_change_nothing(&worker, 160).await;
    assert_eq!(worker.status().await.context_tokens, DECODER_CONTEXT);
}

#[tokio::test]
async fn rerankers_score_as_llama_server_does_in_any_batch() {
    let goldens = goldens();
    for (model, goldens) in [
        (TinyModel::encoder(Pooling::Rank), goldens.encoder_rank),
        (TinyModel::decoder(Pooling::Rank), goldens.decoder_rank),
    ] {
        let worker = llama(&model, &[]).await;
        let documents: Vec<&str> = goldens.iter().map(|golden| golden.document.as_str()).collect();
        let asked = json!({"model": MODEL, "query": goldens[0].query, "documents": documents,
            "return_documents": true});
        let reply: RerankReply = worker.client.post("/v1/rerank", &asked).await.json();
        assert_eq!(reply.results.len(), goldens.len());
        for result in &reply.results {
            let golden = &goldens[result.index as usize];
            let score = f64::from(result.relevance_score);
            assert!((score - golden.score).abs() < SCORE_TOLERANCE, "{result:?} {golden:?}");
            assert_eq!(result.document.as_ref().unwrap().text, golden.document);
        }
        assert!(reply.results.is_sorted_by(|a, b| a.relevance_score >= b.relevance_score));
        let tokens: u64 = goldens.iter().map(|golden| golden.tokens).sum();
        assert_eq!(reply.usage.total_tokens, tokens);

        let best =
            json!({"model": MODEL, "query": goldens[0].query, "documents": documents, "top_n": 2});
        let best: RerankReply = worker.client.post("/v1/rerank", &best).await.json();
        let indices = |reply: &RerankReply| -> Vec<u32> {
            reply.results.iter().map(|result| result.index).take(2).collect()
        };
        assert_eq!((best.results.len(), indices(&best)), (2, indices(&reply)));
        assert!(best.results[0].document.is_none());
    }
}

#[tokio::test]
async fn tokens_base64_and_dimensions_say_the_same_as_text_and_numbers() {
    let model = TinyModel::decoder(Pooling::Last);
    let worker = llama(&model, &[]).await;
    let text = numbers(&embed(&worker.client, &json!("ab")).await).remove(0);
    assert_eq!(text.len(), DECODER_WIDTH as usize);
    // The bytes `a` and `b` as this vocabulary numbers them, and its end token.
    let tokens = embed(&worker.client, &json!([97, 98, 257])).await;
    assert_same("tokens", &numbers(&tokens)[0], &text);
    let lists = numbers(&embed(&worker.client, &json!([[97, 98, 257], [98]])).await);
    assert_same("a list of tokens", &lists[0], &text);
    assert_eq!(lists.len(), 2);

    let asked = body(&json!("ab"), json!({"encoding_format": "base64"}));
    let list: EmbeddingList = worker.client.post("/v1/embeddings", &asked).await.json();
    let expected =
        EmbeddingVector::encode(text.clone(), rbee_api::openai::EmbeddingEncoding::Base64);
    assert_eq!(list.data[0].embedding, expected);

    let asked = body(&json!("ab"), json!({"dimensions": 32}));
    let list: EmbeddingList = worker.client.post("/v1/embeddings", &asked).await.json();
    assert_same("cut", &numbers(&list)[0], &{
        let mut cut = text[..32].to_vec();
        let length = cut.iter().map(|number| number * number).sum::<f32>().sqrt();
        cut.iter_mut().for_each(|number| *number /= length);
        cut
    });
}

#[tokio::test]
async fn what_a_model_cannot_do_is_refused_with_the_field_at_fault() {
    let model = TinyModel::encoder(Pooling::Mean);
    let worker = llama(&model, &[]).await;
    let long = "bee ".repeat(ENCODER_CONTEXT as usize);
    let cases = [
        (body(&json!(["a", long]), json!({})), ErrorCode::ContextLengthExceeded, "input[1]"),
        (body(&json!(long), json!({})), ErrorCode::ContextLengthExceeded, "input"),
        (body(&json!([[1, 2], [70_000]]), json!({})), ErrorCode::ValidationFailed, "input[1]"),
        (
            body(&json!("a"), json!({"dimensions": 16})),
            ErrorCode::UnsupportedParameter,
            "dimensions",
        ),
        (body(&json!(["a", ""]), json!({})), ErrorCode::ValidationFailed, "input[1]"),
    ];
    for (asked, code, param) in cases {
        let error = worker.client.post("/v1/embeddings", &asked).await.error();
        assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{error:?}");
    }
    let full = body(&json!("a"), json!({"dimensions": ENCODER_WIDTH}));
    assert_eq!(worker.client.post("/v1/embeddings", &full).await.status, 200);
    let rank = json!({"model": MODEL, "query": "a", "documents": ["b"]});
    for refused in [
        worker.client.chat("hello", json!({})).await,
        worker.client.post("/v1/completions", &json!({"model": MODEL, "prompt": "a"})).await,
        worker.client.post("/v1/rerank", &rank).await,
    ] {
        let error = refused.error();
        assert_eq!(error.code, ErrorCode::UnsupportedParameter);
        assert_eq!(error.param.as_deref(), Some("model"));
        assert!(error.message.contains("/v1/embeddings"), "{}", error.message);
    }
    let cards: ModelCardList = worker.client.get("/v1/models").await.json();
    assert_eq!(cards.data[0].capabilities, ["embedding"]);

    let generator = Worker::start(&[]).await;
    let refused = generator.client.post("/v1/embeddings", &body(&json!("a"), json!({}))).await;
    assert_eq!(refused.code(), ErrorCode::UnsupportedParameter);
    assert!(refused.error().message.contains("generates text"), "{}", refused.body);
}

/// Echo inputs that take `ms` each; with one slot each is a step of its own.
fn slow(inputs: usize, ms: u32) -> Value {
    json!(vec![format!("[[delay_ms={ms}]] word"); inputs])
}

async fn embed_slowly(worker: &Worker, inputs: usize) -> tokio::task::JoinHandle<u16> {
    let client = worker.client.clone();
    let asked = body(&slow(inputs, 20), json!({}));
    let asking = tokio::spawn(async move { client.post("/v1/embeddings", &asked).await.status });
    worker.until("it is computed", |status| status.requests_running == 1).await;
    asking
}

#[tokio::test]
async fn a_request_of_thousands_does_not_keep_a_small_one_waiting() {
    let worker = Worker::start(&["--kind=embed", "--slots=4"]).await;
    let large = embed_slowly(&worker, 2000).await;
    let started = Instant::now();
    for _ in 0..3 {
        assert_eq!(embed(&worker.client, &json!("small")).await.data.len(), 1);
    }
    // Two steps of 20 ms each, where the large request has five hundred.
    assert!(started.elapsed() < Duration::from_secs(2), "it took {:?}", started.elapsed());
    assert!(!large.is_finished());
    assert!(worker.status().await.batch_requests_max >= 2);
    large.abort();
}

#[tokio::test]
async fn a_gone_client_a_deadline_and_a_cancel_end_a_request_between_steps() {
    let worker = Worker::start(&["--kind=embed", "--slots=1"]).await;
    let gone = embed_slowly(&worker, 2000).await;
    gone.abort();
    let took = worker.until("the slot is free", |status| status.slots_available == 1).await;
    assert!(took < Duration::from_secs(1), "it took {took:?}");

    let asked = body(&slow(2000, 20), json!({}));
    let post = |header: &'static str, value: &'static str| {
        worker
            .client
            .request(Method::POST, "/v1/embeddings")
            .json(&asked)
            .header(header, value)
            .send()
    };
    assert_eq!(post("x-request-timeout-ms", "150").await.unwrap().status(), 504);
    worker.until("the slot is free", |status| status.slots_available == 1).await;

    let cancelled = tokio::spawn(post("x-request-id", "req-9"));
    worker.until("it is computed", |status| status.requests_running == 1).await;
    assert_eq!(worker.client.delete("/api/v1/requests/req-9").await.status, 200);
    assert_eq!(cancelled.await.unwrap().unwrap().status(), 409);
    worker.until("the slot is free", |status| status.slots_available == 1).await;
    let metrics = worker.client.get("/metrics").await.body;
    assert!(metrics.contains("rbee_worker_requests_total{outcome=\"embedded\"} 0"), "{metrics}");
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_drain_lets_those_inside_finish() {
    let mut worker = Worker::start(&["--kind=embed", "--slots=1", "--queue=1"]).await;
    let first = embed_slowly(&worker, 10).await;
    let client = worker.client.clone();
    let second = tokio::spawn(async move { embed(&client, &json!("second")).await });
    worker.until("one waits", |status| status.requests_waiting == 1).await;
    let refused = worker.client.post("/v1/embeddings", &body(&json!("third"), json!({}))).await;
    assert_eq!(refused.code(), ErrorCode::AllSlotsBusy);
    assert_eq!(worker.client.post("/api/v1/shutdown", &json!({})).await.status, 200);
    let late = worker.client.post("/v1/embeddings", &body(&json!("late"), json!({}))).await;
    assert_eq!(late.code(), ErrorCode::Draining);
    assert_eq!(first.await.unwrap(), 200);
    assert_eq!(second.await.unwrap().data.len(), 1);
    assert!(worker.exit().await.success());
}

#[tokio::test]
async fn the_echo_reranker_prefers_documents_with_the_querys_words() {
    let worker = Worker::start(&["--kind=rerank"]).await;
    let asked = json!({"model": MODEL, "query": "do bees sleep",
        "documents": ["nothing", {"text": "bees sleep at night"}, "bees fly", "none either"]});
    let reply: RerankReply = worker.client.post("/v1/rerank", &asked).await.json();
    let indices: Vec<u32> = reply.results.iter().map(|result| result.index).collect();
    assert_eq!(indices, [1, 2, 0, 3], "equal scores stay in order");
    let refused = worker.client.post("/v1/embeddings", &body(&json!("a"), json!({}))).await;
    assert!(refused.error().message.contains("/v1/rerank"), "{}", refused.body);
}
