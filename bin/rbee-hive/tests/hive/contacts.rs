//! What workers tell the hive and the hive tells the queen.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::worker::{LoadEvent, WorkerInfo, WorkerSecrets, WorkerState};
use rbee_http::HopClient;
use rustix::process::Signal;
use secrets_management::Secret;
use serde_json::{Value, json};

use crate::fake_queen::FakeQueen;
use crate::fake_worker;
use crate::processes::{eventually, signal};
use crate::program::{Hive, LIMIT, Place, code, refused, soon};
use crate::stream::Load;

/// How late the queen may know what the hive knows.
const AT_ONCE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_worker_speaks_for_itself_alone_and_only_while_it_lives() {
    let (hive, worker, own) = loading_worker().await;
    let secrets: WorkerSecrets =
        serde_json::from_slice(&fs::read(hive.home().join("secrets.json")).unwrap()).unwrap();
    let as_worker = |token: &str| {
        HopClient::new(&hive.url, Arc::new(Secret::from_bytes(token.as_bytes(), "test").unwrap()))
            .unwrap()
    };
    let ready = json!({"slots_total": 4, "context_tokens": 512, "device": "test", "load_ms": 1});
    let beat = json!({"sequence": 1, "slots_available": 3, "requests_running": 1, "requests_waiting": 0, "engine_steps": 9});
    let id = worker.id.as_str();
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

/// A hive with a worker that gives its secrets away and loads for ever, and the client by which the test speaks for it.
async fn loading_worker() -> (Hive, WorkerInfo, HopClient) {
    let place = Place::new();
    let script = "cat > secrets.part; mv secrets.part secrets.json; exec sleep 1000";
    let flags = fake_worker::flags(&place, script);
    let hive = place.start_with("", &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    hive.import("tiny").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    let secrets: WorkerSecrets = eventually("the worker has its secrets", LIMIT, async || {
        serde_json::from_slice(&fs::read(hive.home().join("secrets.json")).ok()?).ok()
    })
    .await;
    let token = Secret::from_bytes(secrets.callback_token.as_bytes(), "test").unwrap();
    let client = HopClient::new(&hive.url, Arc::new(token)).unwrap();
    (hive, worker, client)
}

async fn tell(
    client: &HopClient,
    id: &str,
    what: &str,
    report: Value,
) -> Result<(), Box<ErrorDetail>> {
    let path = format!("/api/v1/workers/{id}/{what}");
    refused(client.post::<_, Value>(&path, &report, soon()).await).map(drop)
}

#[tokio::test]
async fn a_load_is_told_as_events_and_in_the_listing_until_it_is_done() {
    let (hive, worker, client) = loading_worker().await;
    let id = worker.id.as_str();
    let mut load = Load::follow(&hive.client, id).await.unwrap();
    let progress = |share| LoadEvent::Progress { load_progress: share };
    assert_eq!(load.next().await, Some(progress(0.0)));
    for (told, known) in [(0.25, Some(0.25)), (0.125, None), (0.75, Some(0.75))] {
        tell(&client, id, "loading", json!({"load_progress": told})).await.unwrap();
        if let Some(known) = known {
            assert_eq!(load.next().await, Some(progress(known)));
        }
    }
    assert_eq!(hive.worker(id).await.unwrap().load_progress.to_bits(), 0.75_f32.to_bits());
    for wrong in [-0.1, 1.1] {
        let refusal = tell(&client, id, "loading", json!({"load_progress": wrong})).await;
        let refusal = refusal.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::ValidationFailed);
        assert_eq!(refusal.param.as_deref(), Some("load_progress"));
    }
    let ready = json!({"slots_total": 4, "context_tokens": 512, "device": "test", "load_ms": 1});
    tell(&client, id, "ready", ready).await.unwrap();
    match load.next().await {
        Some(LoadEvent::Ready { worker }) => {
            assert_eq!(
                (worker.id.as_str(), worker.load_progress.to_bits()),
                (id, 1.0_f32.to_bits())
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(load.next().await, None);
    // What comes late finds it done.
    let mut late = Load::follow(&hive.client, id).await.unwrap();
    assert!(matches!(late.next().await, Some(LoadEvent::Ready { .. })));
    assert_eq!(late.next().await, None);
    let unknown = refused(Load::follow(&hive.client, "w-1").await.map(drop));
    assert_eq!(code(unknown), ErrorCode::WorkerNotFound);
}

#[tokio::test]
async fn a_load_that_is_stopped_ends_its_events_with_the_reason() {
    let (hive, worker, _client) = loading_worker().await;
    let id = worker.id.as_str();
    let mut load = Load::follow(&hive.client, id).await.unwrap();
    assert_eq!(load.next().await, Some(LoadEvent::Progress { load_progress: 0.0 }));
    signal(hive.worker(id).await.unwrap().pid.unwrap(), Signal::KILL);
    match load.next().await {
        Some(LoadEvent::Failed { error }) => {
            assert_eq!(error.code, ErrorCode::WorkerStartFailed);
            assert!(error.message.contains("signal 9"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(load.next().await, None);
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
