//! How a worker starts, keeps contact and ends.

use std::fs;
use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::worker::{WorkerHeartbeat, WorkerState, WorkerStatus};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use crate::client::Streamed;
use crate::hive::Mood;
use crate::process::{
    CALLBACK_TOKEN, TOKEN, WORKER_ID, Worker, died_by, eventually, program, run, secrets,
};

#[tokio::test]
async fn the_hive_is_told_once_that_it_is_ready_and_then_how_it_goes() {
    let worker = Worker::start(&["--slots=3", "--context=100", "--heartbeat-seconds=1"]).await;
    eventually("two heartbeats", async || {
        worker.hive.reports(|reports| (reports.heartbeats.len() >= 2).then_some(()))
    })
    .await;
    worker.hive.reports(|reports| {
        assert_eq!(reports.endings, [0; 0]);
        let [ready] = reports.ready.as_slice() else { panic!("{reports:?}") };
        assert_eq!((ready.slots_total, ready.context_tokens), (3, 100));
        let sequences: Vec<u64> = reports.heartbeats.iter().map(|beat| beat.sequence).collect();
        assert!(sequences.windows(2).all(|pair| pair[0] < pair[1]), "{sequences:?}");
        assert!(reports.heartbeats.iter().all(|beat| beat.slots_available == 3));
    });
}

#[tokio::test]
async fn the_hive_decides_how_often_it_is_told() {
    // A heartbeat an hour, but for the hive's answer to the first report.
    let worker = Worker::start(&["--heartbeat-seconds=3600"]).await;
    let sent = eventually("heartbeats", async || {
        worker.hive.reports(|reports| (reports.heartbeats.len() >= 3).then_some(()))
    });
    sent.await;
    let content = "[[tokens=2 delay_ms=3000]] long";
    let _running = worker.client.open_chat(content, json!({})).await;
    eventually("heartbeats in the middle of a step", async || {
        worker.hive.reports(|reports| {
            let steps = |beat: &&WorkerHeartbeat| beat.is_stepping;
            (reports.heartbeats.iter().filter(steps).count() >= 3).then_some(())
        })
    })
    .await;
}

#[tokio::test]
async fn the_hive_is_told_how_far_the_load_is() {
    let worker = Worker::start(&["--echo-load-ms=1500"]).await;
    worker.hive.reports(|reports| {
        let shares = &reports.loading;
        assert!(shares.len() >= 3, "{shares:?}");
        assert!(shares.windows(2).all(|pair| pair[0] < pair[1]), "{shares:?}");
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{shares:?}");
    });
    assert!((worker.status().await.load_progress - 1.0).abs() < f32::EPSILON);
}

/// Longest that a worker may take to end while it loads.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_load_ends_at_once_when_the_worker_is_to_stop_or_is_nobodys_any_more() {
    let begin = || Worker::begin(&["--engine=echo", "--echo-load-ms=600000"]);
    let is_loading = async |worker: &Worker| {
        eventually("the load is under way", async || {
            worker.hive.reports(|reports| (!reports.loading.is_empty()).then_some(()))
        })
        .await;
        let status = worker.status().await;
        assert_eq!(status.state, WorkerState::Starting);
        assert!(status.load_progress > 0.0 && status.load_progress < 0.5, "{status:?}");
    };
    let ends = async |mut worker: Worker| {
        let started = Instant::now();
        assert_eq!(worker.exit().await.code(), Some(0));
        assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    };
    let told = begin().await;
    is_loading(&told).await;
    told.signal(Signal::TERM);
    ends(told).await;

    let disowned = begin().await;
    is_loading(&disowned).await;
    disowned.hive.set_mood(Mood::Disowns);
    ends(disowned).await;
}

#[tokio::test]
async fn a_worker_that_its_hive_disowns_ends_in_order() {
    let mut worker = Worker::start(&["--heartbeat-seconds=1"]).await;
    worker.hive.set_mood(Mood::Disowns);
    assert_eq!(worker.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_worker_whose_lease_is_over_ends_in_order() {
    let mut worker = Worker::start(&["--heartbeat-seconds=1", "--lease-seconds=2"]).await;
    // The listener closes with the hive.
    worker.hive = crate::hive::FakeHive::start().await;
    assert_eq!(worker.exit().await.code(), Some(75));
}

#[tokio::test]
async fn sigterm_lets_running_requests_finish_and_takes_no_new_ones() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut worker = Worker::start(&[]).await;
        let content = "[[tokens=40 delay_ms=20]] going on";
        let running = worker.client.open_chat(content, json!({})).await;
        worker.signal(signal);
        worker.until("it stops", |status| status.state == WorkerState::Stopping).await;
        let refused = worker.client.chat("too late", json!({})).await;
        assert_eq!(refused.code(), ErrorCode::Draining);
        assert_eq!(worker.client.get("/health").await.status, 503);
        let streamed = Streamed::read(running).await;
        assert!(streamed.done && streamed.text.split(' ').count() == 40, "{streamed:?}");
        assert_eq!(worker.exit().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_request_that_outlasts_the_drain_ends_with_an_error_event() {
    let mut worker = Worker::start(&["--drain-seconds=1"]).await;
    let content = "[[tokens=100000 delay_ms=20]] going on";
    let running = worker.client.open_chat(content, json!({"max_tokens": 100_000})).await;
    let status: WorkerStatus = worker.client.post("/api/v1/shutdown", &json!({})).await.json();
    assert_eq!(status.state, WorkerState::Stopping);
    let streamed = Streamed::read(running).await;
    assert_eq!(streamed.error_code(), Some(ErrorCode::Draining));
    assert_eq!(worker.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_script_can_have_sigterm_ignored() {
    let mut worker = Worker::start(&[]).await;
    worker.client.chat("[[ignore_term=1]] stubborn", json!({})).await;
    worker.signal(Signal::TERM);
    // A signal sent later is handled later, so the first one has been seen.
    worker.client.chat("[[delay_ms=100 tokens=3]] x", json!({})).await;
    assert_eq!(worker.status().await.state, WorkerState::Ready);
    worker.client.post("/api/v1/shutdown", &json!({})).await;
    assert_eq!(worker.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_crash_breaks_the_stream_off_and_shows_in_the_exit() {
    let mut worker = Worker::start(&[]).await;
    let content = "[[tokens=20 delay_ms=20 die_at=5]] a b c d e f";
    let streamed = worker.client.stream_chat(content, json!({})).await;
    assert!("a b c d".starts_with(&streamed.text), "{}", streamed.text);
    assert!(!streamed.done);
    assert_eq!(died_by(worker.exit().await), Some(Signal::ABORT));
}

#[tokio::test]
async fn an_engine_that_hangs_ends_its_requests_and_the_process() {
    let mut worker = Worker::start(&["--stall-seconds=1"]).await;
    let content = "[[tokens=20 delay_ms=5 hang_at=5]] a b c d e f";
    let running = worker.client.open_chat(content, json!({})).await;
    assert_eq!(worker.client.get("/livez").await.status, 200);
    let streamed = Streamed::read(running).await;
    assert_eq!((streamed.text.as_str(), streamed.done), ("a b c d", false));
    assert_eq!(streamed.error_code(), Some(ErrorCode::WorkerFailed));
    assert_eq!(died_by(worker.exit().await), Some(Signal::ABORT));
    worker.hive.reports(|reports| assert_eq!(reports.endings, [70], "it has said so"));
}

#[tokio::test]
async fn the_secrets_show_nowhere() {
    let worker = Worker::start(&[]).await;
    for file in ["cmdline", "environ"] {
        let shown = fs::read(format!("/proc/{}/{file}", worker.pid())).unwrap();
        let shown = String::from_utf8_lossy(&shown);
        assert!(!shown.contains(TOKEN) && !shown.contains(CALLBACK_TOKEN), "{file}: {shown}");
    }
}

/// The arguments of a llama worker for the file at `path`.
fn llama(path: &str) -> Vec<String> {
    let hive_url = "http://127.0.0.1:9";
    ["--worker-id", WORKER_ID, "--model-name", "m:1", "--hive-url", hive_url, "--model", path]
        .map(str::to_owned)
        .to_vec()
}

#[test]
fn a_bad_start_has_its_own_exit_code_and_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let corrupt = directory.path().join("corrupt.gguf");
    fs::write(&corrupt, b"GGUF\x03\0\0\0 this is no model").unwrap();
    let missing = directory.path().join("missing.gguf");
    let (corrupt, missing) = (corrupt.to_str().unwrap(), missing.to_str().unwrap());
    let cases = [
        (llama(corrupt), secrets(), 65, "not usable"),
        (llama(missing), secrets(), 66, "cannot be read"),
        (llama(corrupt), b"garbage canary".to_vec(), 78, "secrets"),
        (llama(corrupt), Vec::new(), 78, "empty"),
        (vec!["--engine=echo".to_owned()], secrets(), 2, "--worker-id"),
        (vec!["--no-such-flag".to_owned()], secrets(), 2, "--no-such-flag"),
    ];
    for (arguments, input, code, said) in cases {
        let mut command = program();
        command.args(&arguments);
        let output = run(command, &input);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{said}: {stderr}");
        assert!(code == 2 || stderr.contains("\nhint: "), "{stderr}");
        assert!(!stderr.contains("canary"), "{stderr}");
    }
}

#[test]
fn a_worker_started_by_hand_says_who_starts_workers() {
    let mut command = program();
    command.args(llama("/m.gguf")).env_remove("LISTEN_FDS").stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("no listening socket") && stderr.contains("rbee-hive"), "{stderr}");
}

#[test]
fn arguments_can_be_checked_without_a_start() {
    let mut command = program();
    command.args(llama("/m.gguf")).arg("--validate-config");
    assert!(command.output().unwrap().status.success());
}

#[tokio::test]
async fn health_answers_while_tokens_are_computed() {
    let worker = Worker::start(&[]).await;
    let content = "[[tokens=100000 delay_ms=1]] x";
    let _running = worker.client.open_chat(content, json!({"max_tokens": 100_000})).await;
    for path in ["/health", "/readyz", "/livez"] {
        let answered = tokio::time::timeout(Duration::from_secs(1), worker.client.get(path)).await;
        assert_eq!(answered.unwrap().status, 200, "{path}");
    }
}
