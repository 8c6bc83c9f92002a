//! What workers tell the hive and the hive tells the queen.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::worker::{WorkerSecrets, WorkerState};
use rbee_http::HopClient;
use rustix::process::Signal;
use secrets_management::Secret;
use serde_json::{Value, json};

use crate::fake_queen::FakeQueen;
use crate::fake_worker;
use crate::processes::{eventually, signal};
use crate::program::{LIMIT, Place, code, refused, soon};

/// How late the queen may know what the hive knows.
const AT_ONCE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_worker_speaks_for_itself_alone_and_only_while_it_lives() {
    let place = Place::new();
    // It gives its secrets away, and lets this test speak for it.
    let script = "cat > secrets.part; mv secrets.part secrets.json; exec sleep 1000";
    let flags = fake_worker::flags(&place, script);
    let hive = place.start_with("", &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    hive.import("tiny").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    let secrets: WorkerSecrets = eventually("the worker has its secrets", LIMIT, async || {
        serde_json::from_slice(&fs::read(hive.home().join("secrets.json")).ok()?).ok()
    })
    .await;
    let as_worker = |token: &str| {
        HopClient::new(&hive.url, Arc::new(Secret::from_bytes(token.as_bytes(), "test").unwrap()))
            .unwrap()
    };
    let tell = async |client: &HopClient, id: &str, what: &str, report: Value| {
        let path = format!("/api/v1/workers/{id}/{what}");
        refused(client.post::<_, Value>(&path, &report, soon()).await)
    };
    let ready = json!({"slots_total": 4, "context_tokens": 512, "device": "test", "load_ms": 1});
    let beat = json!({"sequence": 1, "slots_available": 3, "requests_running": 1, "requests_waiting": 0, "engine_steps": 9});
    let id = worker.id.as_str();
    let own = as_worker(&secrets.callback_token);

    assert_eq!(code(tell(&own, "w-1", "ready", ready.clone()).await), ErrorCode::Forbidden);
    let from_above = as_worker(&secrets.token);
    assert_eq!(code(tell(&from_above, id, "ready", ready.clone()).await), ErrorCode::Unauthorized);
    let as_queen = refused(own.get::<Value>("/api/v1/status", soon()).await);
    assert_eq!(code(as_queen), ErrorCode::Forbidden);
    assert_eq!(hive.worker(id).await.unwrap().state, WorkerState::Starting);

    tell(&own, id, "ready", ready.clone()).await.unwrap();
    tell(&own, id, "heartbeat", beat.clone()).await.unwrap();
    let known = hive.worker(id).await.unwrap();
    assert_eq!(
        (known.state, known.slots_available, known.device.as_str()),
        (WorkerState::Ready, 3, "test")
    );

    signal(known.pid.unwrap(), Signal::KILL);
    hive.worker_in(id, WorkerState::Failed).await;
    assert_eq!(code(tell(&own, id, "heartbeat", beat).await), ErrorCode::Unauthorized);
}

#[tokio::test]
async fn the_queen_is_told_of_every_change_at_once() {
    let place = Place::new();
    let queen = FakeQueen::start(&place).await;
    let hive = place.start_with("", &["--queen-url", &queen.url, "--name", "box"]).await;
    let known = async |what: &str, limit, state: Option<WorkerState>| {
        eventually(what, limit, async || {
            let workers = queen.last()?.workers;
            (workers.first().map(|worker| worker.state) == state).then_some(workers)
        })
        .await
    };
    known("the first contact", LIMIT, None).await;
    hive.import("tiny").await;
    eventually("the model", AT_ONCE, async || (queen.last()?.models.len() == 1).then_some(()))
        .await;
    let worker = hive.start_worker("tiny").await.unwrap();
    hive.worker_in(worker.id.as_str(), WorkerState::Ready).await;
    let workers = known("ready", AT_ONCE, Some(WorkerState::Ready)).await;
    signal(workers[0].pid.unwrap(), Signal::KILL);
    let workers = known("failed", AT_ONCE, Some(WorkerState::Failed)).await;
    assert_eq!(workers[0].failure.as_ref().unwrap().code, ErrorCode::WorkerFailed);

    let received = queen.received();
    assert!(received.iter().all(|(name, _)| name == "box"));
    assert!(received.windows(2).all(|pair| pair[0].1.sequence < pair[1].1.sequence));
    assert!(received.windows(2).all(|pair| pair[0].1.epoch == pair[1].1.epoch));
}

#[tokio::test]
async fn a_queen_that_comes_later_is_found_by_its_run_file() {
    let place = Place::new();
    let queen = FakeQueen::start(&place).await;
    let hive = place.start().await;
    assert_eq!(queen.received().len(), 0);
    let run = json!({"url": queen.url, "pid": 1}).to_string();
    fs::write(hive.home().join("run/queen.json"), run).unwrap();
    let snapshot = eventually("the contact", LIMIT, async || queen.last()).await;
    assert!(snapshot.resources.workers_max > 0 && !snapshot.draining);
}
