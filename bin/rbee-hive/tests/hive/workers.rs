//! Workers: start, use, stop, limits.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::hive::HiveStatus;
use rbee_api::worker::WorkerState;
use rbee_http::collect;
use serde_json::{Value, json};

use crate::processes::{eventually, is_alive, working_in};
use crate::program::{LIMIT, Place, code, refused, soon};
use crate::stream::{Chat, text_of};

#[tokio::test]
async fn a_worker_starts_once_answers_and_is_stopped() {
    let hive = Place::new().start().await;
    hive.import("tiny").await;
    let first = hive.start_worker("tiny").await.unwrap();
    assert_eq!((first.state, first.slots_total), (WorkerState::Starting, 0));
    let second = hive.start_worker("tiny").await.unwrap();
    assert_eq!(first.id, second.id);
    let id = first.id.as_str();
    let ready = hive.worker_in(id, WorkerState::Ready).await;
    assert!(ready.slots_total > 0 && ready.slots_available == ready.slots_total);
    let pid = ready.pid.unwrap();
    assert_eq!(working_in(&hive.home()), [pid]);

    let answer = hive.chat(id, "hello world").await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "hello world");
    let events = Chat::begin(&hive.client, id, "one two three").await.unwrap().rest().await;
    assert_eq!(text_of(&events), "one two three");
    assert_eq!(events.last().unwrap(), "[DONE]");
    let path = format!("/api/v1/workers/{id}/v1/completions");
    let request = json!({"model": "tiny", "prompt": "a b c", "max_tokens": 2});
    let reply: Value = refused(hive.client.post(&path, &request, soon()).await).unwrap();
    assert_eq!(reply["choices"][0]["finish_reason"], "length", "{reply}");

    hive.stop_worker(id).await.unwrap();
    assert!(!is_alive(pid));
    assert_eq!(hive.workers().await.len(), 0);
    assert_eq!(code(hive.stop_worker(id).await), ErrorCode::WorkerNotFound);
    assert_eq!(code(hive.chat(id, "hello").await), ErrorCode::WorkerNotFound);
}

#[tokio::test]
async fn a_request_is_checked_before_it_is_passed_on_and_a_refusal_comes_back_whole() {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let path = format!("/api/v1/workers/{}/v1/chat/completions", worker.id);
    let message = json!([{"role": "user", "content": "x"}]);
    for (request, code, param) in [
        (json!({"model": "tiny", "messages": []}), ErrorCode::ValidationFailed, Some("messages")),
        (
            json!({"model": "tiny", "messages": message, "functions": [{"name": "f"}]}),
            ErrorCode::UnsupportedParameter,
            Some("functions"),
        ),
        (json!({"model": "other", "messages": message}), ErrorCode::ModelNotFound, Some("model")),
    ] {
        let detail =
            refused(hive.client.post::<_, Value>(&path, &request, soon()).await).unwrap_err();
        assert_eq!((detail.code, detail.param.as_deref()), (code, param), "{request}");
    }
}

#[tokio::test]
async fn the_limit_on_workers_holds_and_is_told_with_figures() {
    let hive = Place::new().start_with("workers_max = 1\n", &[]).await;
    let worker = hive.ready_worker("tiny").await;
    hive.import("second").await;
    let refusal = hive.start_worker("second").await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::WorkerLimitReached);
    assert_eq!(refusal.details.unwrap(), json!({"workers": 1, "workers_max": 1}));
    hive.stop_worker(worker.id.as_str()).await.unwrap();
    hive.start_worker("second").await.unwrap();
}

#[tokio::test]
async fn a_model_that_is_not_here_cannot_be_started() {
    let hive = Place::new().start().await;
    let refusal = hive.start_worker("nothing").await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::ModelNotFound);
    assert!(refusal.message.contains("rbee pull"), "{refusal}");
}

#[tokio::test]
async fn a_worker_that_nobody_asks_is_stopped() {
    let hive = Place::new().start_with("", &["--idle-stop-seconds", "1"]).await;
    let worker = hive.ready_worker("tiny").await;
    // 60 tokens of 25 ms: longer than the idle time, which must not count meanwhile.
    let chat =
        Chat::begin(&hive.client, worker.id.as_str(), "[[tokens=60 delay_ms=25]] x").await.unwrap();
    assert_eq!(chat.rest().await.last().unwrap(), "[DONE]");
    eventually("the idle worker is gone", Duration::from_secs(5), || async {
        hive.workers().await.is_empty().then_some(())
    })
    .await;
    assert_eq!(working_in(&hive.home()), [0; 0]);
}

#[tokio::test]
async fn status_and_metrics_show_what_is_there() {
    let hive = Place::new().start_with("", &["--name", "bench-1", "--managed"]).await;
    let worker = hive.ready_worker("tiny").await;
    hive.chat(worker.id.as_str(), "hello").await.unwrap();
    let status: HiveStatus = hive.get("/api/v1/status").await.unwrap();
    assert_eq!((status.name.as_str(), status.managed, status.draining), ("bench-1", true, false));
    assert_eq!((status.models, status.workers.len()), (1, 1));
    assert!(status.resources.memory_total_bytes > status.resources.memory_available_bytes);
    let metrics = hive.client.get_stream("/metrics", soon()).await.unwrap();
    let text = String::from_utf8(collect(metrics, soon()).await.unwrap().to_vec()).unwrap();
    for line in [
        "rbee_hive_workers{state=\"ready\"} 1",
        "rbee_hive_models 1",
        "rbee_hive_worker_spawns_total 1",
        "rbee_hive_requests_forwarded_total 1",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
}

#[tokio::test]
async fn two_starts_at_once_make_one_worker() {
    let hive = Place::new().start().await;
    hive.import("tiny").await;
    let (one, other) = tokio::join!(hive.start_worker("tiny"), hive.start_worker("tiny"));
    assert_eq!(one.unwrap().id, other.unwrap().id);
    eventually("one process", LIMIT, || async {
        (working_in(&hive.home()).len() == 1).then_some(())
    })
    .await;
}
