//! Many requests at once: batches, queue, cancelling, deadlines, slow readers.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::queen::Removed;
use reqwest::{Method, Response};
use serde_json::json;
use tokio::time::Instant;

use crate::client::Streamed;
use crate::process::Worker;

/// Long enough that nothing ends by itself during a test.
const ENDLESS: &str = "[[tokens=100000 delay_ms=5]] word";

/// Begins a stream and reads its first bytes, so that its slot is taken.
async fn begin(worker: &Worker, content: &str) -> Response {
    let mut response = worker.client.open_chat(content, json!({"max_tokens": 100_000})).await;
    assert!(response.chunk().await.unwrap().is_some());
    response
}

#[tokio::test]
async fn eight_streams_at_once_share_their_steps_and_keep_apart() {
    let worker = Worker::start(&["--slots=8"]).await;
    let mut streams = tokio::task::JoinSet::new();
    for stream in 0..8 {
        let client = worker.client.clone();
        streams.spawn(async move {
            let content = format!("[[tokens=40 delay_ms=10 text=stream-{stream}]]");
            (stream, client.stream_chat(&content, json!({})).await)
        });
    }
    while let Some(joined) = streams.join_next().await {
        let (stream, streamed) = joined.unwrap();
        let expected = vec![format!("stream-{stream}"); 40].join(" ");
        assert_eq!((streamed.text, streamed.done), (expected, true));
    }
    let status = worker.status().await;
    assert_eq!(status.batch_requests_max, 8);
    assert!(status.engine_steps < 8 * 40, "{} steps", status.engine_steps);
    assert_eq!((status.slots_available, status.requests_running), (8, 0));
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_at_once() {
    let worker = Worker::start(&["--slots=1"]).await;
    for _ in 0..3 {
        let response = begin(&worker, ENDLESS).await;
        assert_eq!(worker.status().await.slots_available, 0);
        drop(response);
        let took = worker.until("the slot is free", |status| status.slots_available == 1).await;
        assert!(took < Duration::from_millis(250), "it took {took:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_never_computed() {
    let worker = Worker::start(&["--slots=1"]).await;
    let first = begin(&worker, ENDLESS).await;
    let client = worker.client.clone();
    let waiting = tokio::spawn(async move { client.chat("never said", json!({})).await });
    worker.until("one waits", |status| status.requests_waiting == 1).await;
    waiting.abort();
    let took = worker.until("none waits", |status| status.requests_waiting == 0).await;
    assert!(took < Duration::from_millis(250), "it took {took:?}");
    drop(first);
    worker.until("the slot is free", |status| status.slots_available == 1).await;
    let metrics = worker.client.get("/metrics").await.body;
    assert!(metrics.contains("rbee_worker_requests_total{outcome=\"cancelled\"} 2"), "{metrics}");
    assert!(metrics.contains("rbee_worker_queue_seconds_count 1"), "it was computed");
}

#[tokio::test]
async fn a_request_is_cancelled_by_its_id() {
    let worker = Worker::start(&["--slots=1"]).await;
    let body = json!({"model": crate::process::MODEL, "stream": true, "max_tokens": 100_000,
        "messages": [{"role": "user", "content": ENDLESS}]});
    let request = worker.client.request(Method::POST, "/v1/chat/completions").json(&body);
    let response = request.header("x-request-id", "req-7").send().await.unwrap();
    let unknown = worker.client.delete("/api/v1/requests/req-8").await;
    assert_eq!(unknown.code(), ErrorCode::RequestNotFound);
    let removed: Removed = worker.client.delete("/api/v1/requests/req-7").await.json();
    assert_eq!(removed.removed, "req-7");
    let streamed = Streamed::read(response).await;
    let error = streamed.error.unwrap();
    assert_eq!(
        (error.code, error.request_id.as_deref()),
        (ErrorCode::RequestCancelled, Some("req-7"))
    );
    assert!(!streamed.done);
    worker.until("the slot is free", |status| status.slots_available == 1).await;
}

#[tokio::test]
async fn a_full_queue_is_refused_and_a_waiting_request_gets_its_turn() {
    let worker = Worker::start(&["--slots=1", "--queue=1"]).await;
    let first = begin(&worker, ENDLESS).await;
    let client = worker.client.clone();
    let second = tokio::spawn(async move { client.chat("second", json!({})).await });
    worker.until("one waits", |status| status.requests_waiting == 1).await;
    let refused = worker.client.chat("third", json!({})).await;
    assert_eq!(refused.code(), ErrorCode::AllSlotsBusy);
    assert!(refused.error().retryable);
    drop(first);
    assert!(second.await.unwrap().body.contains("second"));
}

#[tokio::test]
async fn a_request_whose_time_is_over_ends_wherever_it_is() {
    let worker = Worker::start(&["--slots=1"]).await;
    let post = |timeout_ms: &str, stream: bool| {
        let body = json!({"model": crate::process::MODEL, "stream": stream, "max_tokens": 100_000,
            "messages": [{"role": "user", "content": ENDLESS}]});
        let request = worker.client.request(Method::POST, "/v1/chat/completions").json(&body);
        request.header("x-request-timeout-ms", timeout_ms).send()
    };
    assert_eq!(post("0", true).await.unwrap().status(), 504);
    assert_eq!(post("many", true).await.unwrap().status(), 400);
    let started = Instant::now();
    let streamed = Streamed::read(post("300", true).await.unwrap()).await;
    assert_eq!(streamed.error_code(), Some(ErrorCode::DeadlineExceeded));
    assert!(!streamed.text.is_empty() && !streamed.done);
    assert!(started.elapsed() < Duration::from_secs(2));
    worker.until("the slot is free", |status| status.slots_available == 1).await;
    assert_eq!(post("200", false).await.unwrap().status(), 504);
    let _busy = begin(&worker, ENDLESS).await;
    assert_eq!(post("200", true).await.unwrap().status(), 504, "expired in the queue");
}

#[tokio::test]
async fn a_reader_that_lags_pauses_its_own_job_only() {
    let worker = Worker::start(&["--slots=2", "--context=1000000"]).await;
    // Words of 200 bytes fill what the sockets buffer within a few thousand.
    let content = format!("[[tokens=1000000 text={}]]", "w".repeat(200));
    let unread = worker.client.open_chat(&content, json!({"max_tokens": 1_000_000})).await;
    let steps = worker.pauses().await;
    assert!(steps < 1_000_000, "nothing paused");
    assert_eq!(worker.status().await.requests_running, 1);
    let other = worker.client.stream_chat("[[tokens=50]] other", json!({})).await;
    assert!(other.done);
    drop(unread);
    worker.until("the slots are free", |status| status.slots_available == 2).await;
}
