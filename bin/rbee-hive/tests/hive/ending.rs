//! The end of a hive: what it waits for, and what it leaves.

use std::net::TcpListener;
use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::worker::WorkerState;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::fake_worker;
use crate::processes::{eventually, signal, working_in};
use crate::program::{Hive, LIMIT, Place, code, refused, soon};
use crate::stream::{Chat, text_of};

/// Checks that nothing of a hive that ended with 0 is left.
fn nothing_is_left(hive: &Hive) {
    assert_eq!(working_in(&hive.home()), [0; 0]);
    assert!(!hive.home().join("run/hive.json").exists());
    TcpListener::bind(hive.address()).expect("the port is free");
}

#[tokio::test]
async fn a_signal_ends_the_hive_and_all_its_workers() {
    for end in [Signal::TERM, Signal::INT] {
        let mut hive = Place::new().start().await;
        hive.ready_worker("tiny").await;
        hive.ready_worker("other").await;
        assert_eq!(working_in(&hive.home()).len(), 2);
        signal(hive.pid(), end);
        assert_eq!(hive.ended(Duration::from_secs(5)).await.code(), Some(0));
        nothing_is_left(&hive);
    }
}

#[tokio::test]
async fn an_answer_that_has_begun_is_finished_and_new_work_is_refused() {
    let mut hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let id = worker.id.as_str();
    let mut chat = Chat::begin(&hive.client, id, "[[tokens=40 delay_ms=25]] x").await.unwrap();
    chat.more().await;
    refused(hive.client.post::<_, Value>("/api/v1/shutdown", &json!({}), soon()).await).unwrap();
    eventually("the hive drains", LIMIT, || async { hive.chat(id, "hello").await.err() }).await;
    assert_eq!(code(hive.chat(id, "hello").await), ErrorCode::Draining);
    assert_eq!(code(hive.start_worker("tiny").await), ErrorCode::Draining);
    let events = chat.rest().await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(text_of(&events).matches('x').count(), 40);
    assert_eq!(hive.ended(LIMIT).await.code(), Some(0));
    nothing_is_left(&hive);
}

#[tokio::test]
async fn a_second_signal_ends_it_without_waiting() {
    let mut hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let mut chat = Chat::begin(&hive.client, worker.id.as_str(), "[[tokens=9999 delay_ms=25]] x")
        .await
        .unwrap();
    chat.more().await;
    signal(hive.pid(), Signal::TERM);
    hive.worker_in(worker.id.as_str(), WorkerState::Stopping).await;
    signal(hive.pid(), Signal::TERM);
    let ended = hive.ended(Duration::from_secs(1));
    let (exit, events) = tokio::join!(ended, chat.rest());
    assert_eq!(exit.code(), Some(0));
    assert!(events.last().unwrap().starts_with("{\"error\":"), "{events:?}");
    nothing_is_left(&hive);
}

#[tokio::test]
async fn a_worker_that_ignores_everything_is_killed_with_all_it_has_started() {
    let place = Place::new();
    let script = "trap '' TERM INT HUP\nsleep 1000 &\nwhile :; do sleep 1000; done";
    let flags = fake_worker::flags(&place, script);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with("stop_grace_seconds = 1\n", &flags).await;
    hive.import("tiny").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    eventually("all are there", LIMIT, async || {
        (working_in(&hive.home()).len() == 3).then_some(())
    })
    .await;
    hive.stop_worker(worker.id.as_str()).await.unwrap();
    eventually("all are gone", LIMIT, async || working_in(&hive.home()).is_empty().then_some(()))
        .await;
    assert_eq!(hive.workers().await.len(), 0);
}

#[tokio::test]
async fn a_worker_that_was_halted_is_ended_all_the_same() {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    signal(worker.pid.unwrap(), Signal::STOP);
    // Sooner than it would be killed: it is woken, and ends by itself.
    let stopped = timeout(Duration::from_secs(5), hive.stop_worker(worker.id.as_str())).await;
    stopped.expect("it is woken").unwrap();
    assert_eq!(working_in(&hive.home()), [0; 0]);
}
