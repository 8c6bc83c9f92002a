//! Requests that come before there is a worker for them.

use std::time::Duration;

use futures_util::future::join_all;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::worker::{LoadEvent, WorkerState};
use reqwest::Method;
use serde_json::json;

use crate::daemon::{Queen, TestHome, error_of, eventually};
use crate::fake_hive::Reply;
use crate::pair::{ALIAS, Pair, REFERENCE};

#[tokio::test]
async fn requests_at_once_for_a_cold_model_cause_one_start_and_are_all_answered() {
    let pair = Pair::cold("").await;
    pair.hive.script([Reply::Json("{}")]);
    pair.hive.start_gate.forget_permits(usize::MAX);
    let requests =
        (0..8).map(|n| pair.queen.chat(if n % 2 == 0 { ALIAS } else { REFERENCE }, false).send());
    let worker = async {
        eventually("all requests wait", async || {
            let status = pair.queen.get_json("/api/v1/status").await;
            (status["requests_running"] == 8 && pair.starts() > 0).then_some(())
        })
        .await;
        pair.hive.start_gate.add_permits(8);
        eventually("the worker is noted", async || {
            (pair.queen.get_json("/api/v1/workers").await["workers"][0]["id"] == "w-1")
                .then_some(())
        })
        .await;
        assert_eq!(pair.hive.forwarded_count(), 0, "it is not ready");
        pair.hive.set_worker("w-1", WorkerState::Ready);
        pair.report().await;
    };
    let (replies, ()) = tokio::join!(join_all(requests), worker);
    for reply in replies {
        assert_eq!(reply.unwrap().status(), 200);
    }
    assert_eq!((pair.starts(), pair.hive.forwarded_count()), (1, 8));
}

#[tokio::test]
async fn a_load_can_be_followed_as_events() {
    let pair = Pair::cold("").await;
    pair.hive.set_worker("w-1", WorkerState::Starting);
    pair.hive.set_load_progress("w-1", 0.25);
    pair.report().await;
    let follow = pair.queen.request(Method::GET, "/api/v1/workers/w-1/load").send();
    let events = async {
        let reply = follow.await.unwrap();
        assert_eq!(reply.headers()["content-type"], "text/event-stream");
        reply.text().await.unwrap()
    };
    let load = async {
        for share in [0.5, 0.75] {
            pair.hive.set_load_progress("w-1", share);
            pair.report().await;
        }
        pair.hive.set_worker("w-1", WorkerState::Ready);
        pair.report().await;
    };
    let (events, ()) = tokio::join!(events, load);
    let events: Vec<LoadEvent> = events
        .split_terminator("\n\n")
        .map(|frame| serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    let (last, before) = events.split_last().unwrap();
    assert!(matches!(last, LoadEvent::Ready { worker } if worker.id.as_str() == "w-1"), "{last:?}");
    let shares: Vec<f32> = before
        .iter()
        .map(|event| match event {
            LoadEvent::Progress { load_progress } => *load_progress,
            other => panic!("{other:?}"),
        })
        .collect();
    // Reports that come between two looks are seen as one.
    assert!(shares.windows(2).all(|pair| pair[0] < pair[1]), "{shares:?}");
    let unknown = pair.queen.request(Method::GET, "/api/v1/workers/w-9/load");
    let (status, error) = error_of(unknown.send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (404, &json!("worker_not_found")));
}

#[tokio::test]
async fn a_refused_start_is_the_answer() {
    let pair = Pair::cold("").await;
    *pair.hive.refuse_start.lock().unwrap() = Some(ErrorCode::InsufficientMemory);
    let (status, error) = error_of(pair.queen.chat(ALIAS, true).send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (503, &json!("insufficient_memory")));
    assert_eq!(pair.starts(), 1);
}

#[tokio::test]
async fn a_worker_that_fails_to_load_is_the_answer_and_is_not_started_again() {
    let pair = Pair::cold("").await;
    let failure = async {
        eventually("the start", async || (pair.starts() == 1).then_some(())).await;
        pair.hive
            .fail_worker("w-1", ErrorDetail::new(ErrorCode::InvalidModelFile, "it is no model"));
        pair.report().await;
    };
    let (reply, ()) = tokio::join!(pair.queen.chat(ALIAS, false).send(), failure);
    let (status, error) = error_of(reply.unwrap()).await;
    assert_eq!((status, &error["message"]), (400, &json!("it is no model")));
    assert_eq!(pair.starts(), 1);
}

#[tokio::test]
async fn the_deadline_ends_the_wait_for_a_worker() {
    let pair = Pair::cold("").await;
    let request = pair.queen.chat(ALIAS, true).header("x-request-timeout-ms", "300");
    let (status, error) = error_of(request.send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (504, &json!("deadline_exceeded")));
    assert!(error["message"].as_str().unwrap().contains(ALIAS), "{error}");
    assert_eq!((pair.starts(), pair.hive.forwarded_count()), (1, 0));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_leaves_the_start_going() {
    let pair = Pair::cold("").await;
    pair.hive.start_gate.forget_permits(usize::MAX);
    let request = tokio::spawn(pair.queen.chat(ALIAS, false).send());
    eventually("the start", async || (pair.starts() == 1).then_some(())).await;
    request.abort();
    assert!(request.await.is_err());
    eventually("nobody waits", async || {
        (pair.queen.get_json("/api/v1/status").await["requests_running"] == 0).then_some(())
    })
    .await;
    pair.hive.start_gate.add_permits(1);
    eventually("the worker is noted", async || {
        (pair.queen.get_json("/api/v1/workers").await["workers"][0]["id"] == "w-1").then_some(())
    })
    .await;
    assert_eq!((pair.starts(), pair.hive.forwarded_count()), (1, 0));
}

#[tokio::test]
async fn an_unknown_model_is_refused_only_once_the_hive_has_reported() {
    let pair = Pair::silent("").await;
    pair.hive.script([Reply::Json("{}")]);
    pair.hive.set_worker("w-1", WorkerState::Ready);
    let known = pair.queen.chat(ALIAS, false).send();
    let unknown = pair.queen.chat("other:1b", false).send();
    let report = async {
        eventually("both wait", async || {
            let status = pair.queen.get_json("/api/v1/status").await;
            (status["requests_running"] == 2).then_some(())
        })
        .await;
        pair.report().await;
    };
    let (known, unknown, ()) = tokio::join!(known, unknown, report);
    assert_eq!(known.unwrap().status(), 200);
    let (status, error) = error_of(unknown.unwrap()).await;
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (404, &json!("model_not_found"), &json!("model"))
    );
    let message = error["message"].as_str().unwrap();
    for part in ["other:1b", "rbee pull", "rbee list"] {
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test]
async fn a_queen_that_is_started_again_asks_the_hive_instead_of_waiting_for_its_report() {
    let mut pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Json("{}")]);
    pair.queen.signal(rustix::process::Signal::KILL);
    pair.queen.ended().await;
    pair.hive.tells_models.store(true, std::sync::atomic::Ordering::SeqCst);
    let settings = format!("local_hive_url = '{}'", pair.hive.url);
    let queen = Queen::start(&pair.home, &settings).await;
    assert_eq!(queen.chat(ALIAS, false).send().await.unwrap().status(), 200);
    assert_eq!(queen.get_json("/v1/models").await["data"][0]["id"], ALIAS);
}

#[tokio::test]
async fn a_hive_that_cannot_be_started_is_told_without_paths() {
    let home = TestHome::new();
    for program in ["/nonexistent/rbee-hive", "/bin/false"] {
        let queen = Queen::start(&home, &format!("hive_path = '{program}'")).await;
        let reply = queen.chat(ALIAS, false).timeout(Duration::from_secs(60)).send().await.unwrap();
        let (status, error) = error_of(reply).await;
        assert_eq!((status, &error["code"]), (502, &json!("hive_unreachable")), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(!message.contains('/') && message.contains(".log"), "{message}");
        // Clients are told first, and both queens write to one log.
        let reason = if program == "/bin/false" { "exit status: 1" } else { program };
        eventually("the reason is logged", async || home.log().contains(reason).then_some(()))
            .await;
        assert!(zombies(queen.pid()).is_empty(), "an ended hive is not waited for");
    }
}

#[tokio::test]
async fn a_hive_that_is_tried_again_and_again_is_told_with_what_keeps_it_from_starting() {
    const TRIES: usize = 4;
    let home = TestHome::new();
    let program = home.path().join("hive.sh");
    // The exit code of a wrong configuration.
    std::fs::write(&program, "#!/bin/sh\necho start >> \"$3/starts\"\nexit 78\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&program, mode).unwrap();
    let settings = format!("hive_path = '{}'", program.display());
    let queen = Queen::start(&home, &settings).await;
    let starts = home.home.root().join("starts");
    eventually("it is tried at long intervals", async || {
        let text = std::fs::read_to_string(&starts).unwrap_or_default();
        (text.lines().count() >= TRIES).then_some(())
    })
    .await;
    // The pause before the next start has begun, or is about to.
    for _ in 0..20 {
        let reply = queen.chat(ALIAS, false).timeout(Duration::from_secs(60)).send().await.unwrap();
        let (status, error) = error_of(reply).await;
        assert_eq!(status, 502, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("its configuration is wrong"), "{message}");
    }
}

/// Returns the children of `parent` that ended and were not waited for.
fn zombies(parent: u32) -> Vec<String> {
    let stats = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok());
    let is_zombie = |stat: &String| {
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[0] == "Z" && fields[1] == parent.to_string()
    };
    stats.filter(is_zombie).collect()
}
