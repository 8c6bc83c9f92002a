//! A worker's log, through the hive.

use rbee_api::error::ErrorCode;
use rbee_http::collect;

use crate::fake_worker;
use crate::processes::eventually;
use crate::program::{Hive, LIMIT, Place, code, refused, soon};

async fn log(hive: &Hive, id: &str, query: &str) -> String {
    let path = format!("/api/v1/workers/{id}/logs{query}");
    let response = refused(hive.client.get_stream(&path, soon()).await).unwrap();
    String::from_utf8(collect(response, soon()).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn the_last_lines_of_a_log_can_be_read_while_the_worker_lives_and_after() {
    let place = Place::new();
    let flags = fake_worker::flags(&place, r"printf 'one\ntwo\033[2J\nthree\n'; exit 1");
    let hive = place.start_with("", &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    hive.import("tiny").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    let id = worker.id.as_str();
    assert_eq!(log(&hive, id, "?follow=true").await, "one\ntwo\\u{1b}[2J\nthree\n");
    assert_eq!(log(&hive, id, "").await, "one\ntwo\\u{1b}[2J\nthree\n");
    assert_eq!(log(&hive, id, "?lines=1").await, "three\n");
}

#[tokio::test]
async fn a_log_that_is_followed_ends_with_its_worker() {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let id = worker.id.as_str();
    let path = format!("/api/v1/workers/{id}/logs?follow=true");
    let mut response = hive.client.get_stream(&path, soon()).await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert!(!first.is_empty());
    hive.stop_worker(id).await.unwrap();
    collect(response, soon()).await.unwrap();
    assert!(log(&hive, id, "").await.len() >= first.len(), "the log outlives the worker");
}

#[tokio::test]
async fn only_logs_of_workers_can_be_read() {
    let hive = Place::new().start().await;
    for (id, expected) in [
        ("w-1", ErrorCode::WorkerNotFound),
        ("..%2Frun%2Fhive", ErrorCode::ValidationFailed),
        ("W-1", ErrorCode::ValidationFailed),
    ] {
        let path = format!("/api/v1/workers/{id}/logs");
        let refusal = refused(hive.client.get_stream(&path, soon()).await.map(drop));
        assert_eq!(code(refusal), expected, "{id}");
    }
}

#[tokio::test]
async fn only_the_newest_logs_of_workers_are_kept_however_long_a_hive_runs() {
    let hive = Place::new().start().await;
    let logs = hive.home().join("logs");
    for number in 0..30 {
        std::fs::write(logs.join(format!("w-{number:04}.log")), b"of long ago\n").unwrap();
    }
    let worker = hive.ready_worker("tiny").await;
    hive.stop_worker(worker.id.as_str()).await.unwrap();
    let kept = || {
        let names = std::fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("w-")).count()
    };
    eventually("old logs are removed", LIMIT, async || (kept() == 20).then_some(())).await;
    assert!(logs.join(format!("{}.log", worker.id)).exists());
}
