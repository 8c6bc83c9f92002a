//! What dies, and what is known and left of it.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::worker::{WorkerInfo, WorkerState};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::fake_worker;
use crate::processes::{eventually, signal, working_in, zombies_of};
use crate::program::{Hive, Place, code};
use crate::stream::Chat;

/// How late the hive may know that a worker is gone.
const KNOWN: Duration = Duration::from_millis(500);
/// How late the client may know that its answer is cut off.
const TOLD: Duration = Duration::from_millis(250);

#[tokio::test]
async fn a_killed_worker_is_known_at_once_with_its_cause_and_leaves_no_zombie() {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let id = worker.id.as_str();
    signal(worker.pid.unwrap(), Signal::KILL);
    let failed = eventually("the worker has failed", KNOWN, || async {
        hive.worker(id).await.filter(|worker| worker.state == WorkerState::Failed)
    })
    .await;
    let failure = failed.failure.unwrap();
    assert_eq!(
        (failure.code, failure.details),
        (ErrorCode::WorkerFailed, Some(json!({"signal": 9})))
    );
    assert_eq!(failed.pid, None);
    assert_eq!(zombies_of(hive.pid()), [0; 0]);
    assert_eq!(code(hive.chat(id, "hello").await), ErrorCode::WorkerFailed);
    let next = hive.start_worker("tiny").await.unwrap();
    assert_ne!(next.id.as_str(), id);
    hive.worker_in(next.id.as_str(), WorkerState::Ready).await;
    hive.chat(next.id.as_str(), "hello").await.unwrap();
}

#[tokio::test]
async fn an_answer_that_breaks_off_ends_with_an_error_and_never_in_silence() {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let mut chat = Chat::begin(&hive.client, worker.id.as_str(), "[[tokens=9999 delay_ms=20]] x")
        .await
        .unwrap();
    chat.more().await;
    signal(worker.pid.unwrap(), Signal::KILL);
    let events = timeout(TOLD, chat.rest()).await.expect("the client is told in time");
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "worker_failed", "{events:?}");
    assert!(last["error"]["request_id"].is_string(), "{last}");
    assert_eq!(last["error"]["details"], json!({"cause": "killed"}), "{last}");
}

#[tokio::test]
async fn an_answer_in_one_piece_fails_with_its_worker() {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let refusal = hive.chat(worker.id.as_str(), "[[tokens=9 delay_ms=10 die_at=5]] x").await;
    let refusal = refusal.unwrap_err();
    let figures = Some(json!({"cause": "aborted"}));
    assert_eq!((refusal.code, refusal.details), (ErrorCode::WorkerFailed, figures));
    let failed = hive.worker_in(worker.id.as_str(), WorkerState::Failed).await;
    assert_eq!(failed.failure.unwrap().details, Some(json!({"signal": 6})));
    let late = hive.chat(worker.id.as_str(), "hello").await.unwrap_err();
    assert_eq!(
        (late.code, late.details),
        (ErrorCode::WorkerFailed, Some(json!({"signal": 6, "taken": false}))),
        "who comes afterwards has no part in it"
    );
}

/// Starts a worker that is a shell script, and waits until it has failed.
async fn failed_script(script: &str, config: &str) -> (Hive, WorkerInfo) {
    let place = Place::new();
    let flags = fake_worker::flags(&place, script);
    let hive =
        place.start_with(config, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    hive.import("tiny").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    let failed = hive.worker_in(worker.id.as_str(), WorkerState::Failed).await;
    (hive, failed)
}

#[tokio::test]
async fn a_worker_that_ends_while_loading_leaves_the_reason() {
    for (script, expected, figures) in [
        ("exit 65", ErrorCode::InvalidModelFile, json!({"exit_code": 65})),
        ("exit 71", ErrorCode::WorkerStartFailed, json!({"exit_code": 71})),
        ("exit 0", ErrorCode::WorkerStartFailed, json!({"exit_code": 0})),
        ("kill -SEGV $$", ErrorCode::WorkerStartFailed, json!({"signal": 11})),
    ] {
        let (hive, failed) = failed_script(script, "").await;
        let failure = failed.failure.unwrap();
        assert_eq!((failure.code, failure.details), (expected, Some(figures)), "{script}");
        assert_eq!(zombies_of(hive.pid()), [0; 0]);
    }
}

#[tokio::test]
async fn a_worker_that_does_not_load_in_time_is_ended() {
    let (hive, failed) = failed_script("sleep 1000", "load_timeout_seconds = 1\n").await;
    let failure = failed.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::WorkerStartFailed);
    assert_eq!(failure.details, Some(json!({"load_timeout_seconds": 1})));
    eventually("its process is gone", KNOWN, async || {
        working_in(&hive.home()).is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_program_that_is_missing_is_told_to_who_asked() {
    let hive = Place::new().start_with("", &["--worker-path", "/no/such/worker"]).await;
    hive.import("tiny").await;
    let refusal = hive.start_worker("tiny").await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::WorkerStartFailed);
    assert!(
        refusal.message.contains("llm-worker-rbee") && !refusal.message.contains("/no/such"),
        "{refusal}"
    );
    assert!(hive.log().contains("/no/such/worker"), "the log has the path");
}
