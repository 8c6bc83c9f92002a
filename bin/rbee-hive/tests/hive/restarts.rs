//! Workers that fail: with which cause, when they are started again, and when no longer.

use std::cell::Cell;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::worker::{WorkerInfo, WorkerSecrets, WorkerState};
use rbee_api::worker_exit::{Breaker, ExitCause};
use rbee_http::{HopClient, collect};
use rustix::process::Signal;
use secrets_management::Secret;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fake_queen::FakeQueen;
use crate::fake_worker::{failed, hive_with, mendable, starts, successor};
use crate::processes::{eventually, is_alive, signal, working_in, zombies_of};
use crate::program::{Hive, LIMIT, Place, code, refused, soon};
use crate::{fake_worker, gguf, stream};

/// Pauses long enough to be told apart and short enough to be waited for.
const SHORT: &str = "[restart]\ndelay_ms = 200\nfailures_max = 3\nprobe_delays_ms = [1500, 3000]\n";
/// Pauses that nothing here outlasts.
const NEVER: &str = "[restart]\ndelay_ms = 3600000\ndelay_max_ms = 3600000\n";
/// What starting a process may take more than the pause on a busy machine.
const MARGIN: Duration = Duration::from_secs(2);

async fn metrics(hive: &Hive) -> String {
    let text = hive.client.get_stream("/metrics", soon()).await.unwrap();
    String::from_utf8(collect(text, soon()).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn every_way_to_end_has_its_cause() {
    for (script, cause, exit_code, by_signal) in [
        ("exit 0", ExitCause::Exited, Some(0), None),
        ("exit 1", ExitCause::ExitCode, Some(1), None),
        ("exit 2", ExitCause::BadUsage, Some(2), None),
        ("exit 65", ExitCause::BadModel, Some(65), None),
        ("exit 66", ExitCause::ModelUnreadable, Some(66), None),
        ("exit 70", ExitCause::EngineFailed, Some(70), None),
        ("exit 71", ExitCause::NoResources, Some(71), None),
        ("exit 75", ExitCause::LeaseEnded, Some(75), None),
        ("exit 78", ExitCause::BadConfig, Some(78), None),
        ("exit 101", ExitCause::Panicked, Some(101), None),
        ("kill -SEGV $$", ExitCause::Segfault, None, Some(11)),
        ("kill -ABRT $$", ExitCause::Aborted, None, Some(6)),
        ("kill -KILL $$", ExitCause::Killed, None, Some(9)),
        ("kill -TERM $$", ExitCause::Signalled, None, Some(15)),
    ] {
        let hive = hive_with(script, NEVER).await;
        hive.start_worker("tiny").await.unwrap();
        let exit = failed(&hive, script, |_| true).await.last_exit.unwrap();
        assert_eq!(
            (exit.cause, exit.exit_code, exit.signal),
            (cause, exit_code, by_signal),
            "{script}"
        );
        let counted = format!("rbee_hive_worker_exits_total{{cause=\"{cause}\"}} 1");
        assert!(metrics(&hive).await.contains(&counted), "{script}");
    }
}

#[tokio::test]
async fn a_program_that_is_missing_opens_the_breaker() {
    let hive = Place::new().start_with("", &["--worker-path", "/no/such/worker"]).await;
    hive.import("tiny").await;
    assert_eq!(code(hive.start_worker("tiny").await), ErrorCode::WorkerStartFailed);
    let row = failed(&hive, "the start has failed", |_| true).await;
    assert_eq!(row.last_exit.unwrap().cause, ExitCause::ProgramMissing);
    assert_eq!(row.breaker, Breaker::Open);
    assert_eq!(code(hive.start_worker("tiny").await), ErrorCode::WorkerFailing);
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_though_nobody_asks() {
    let hive = Place::new().start_with(SHORT, &[]).await;
    let first = hive.ready_worker("tiny").await;
    signal(first.pid.unwrap(), Signal::KILL);
    let second = successor(&hive, &first.id).await;
    assert_eq!((second.restart_count, second.breaker), (1, Breaker::Closed));
    assert_eq!(second.last_exit.unwrap().cause, ExitCause::Killed);
    assert_eq!((&second.model_ref, second.slots_total), (&first.model_ref, first.slots_total));
    assert!(hive.worker(first.id.as_str()).await.is_none(), "one row a model");
    hive.chat(second.id.as_str(), "hello").await.unwrap();
    let pid = second.pid.unwrap();
    // Rust's handler lets the first one pass that no fault has brought about.
    eventually("it is dead", LIMIT, async || {
        signal(pid, Signal::SEGV);
        (!is_alive(pid)).then_some(())
    })
    .await;
    let third = successor(&hive, &second.id).await;
    assert_eq!((third.restart_count, third.last_exit.unwrap().cause), (2, ExitCause::Segfault));
    assert_eq!(
        (working_in(&hive.home()), zombies_of(hive.pid())),
        (vec![third.pid.unwrap()], vec![])
    );
    let text = metrics(&hive).await;
    for line in [
        "rbee_hive_worker_restarts_total{cause=\"killed\"} 1",
        "rbee_hive_worker_restarts_total{cause=\"segfault\"} 1",
        "rbee_hive_worker_restart_failures_total{cause=\"segfault\"} 1",
        "rbee_hive_breakers{state=\"open\"} 0",
    ] {
        assert!(text.contains(line), "no {line} in {text}");
    }
    // Stopped by request, it stays away.
    hive.stop_worker(third.id.as_str()).await.unwrap();
    assert_eq!(hive.workers().await.len(), 0);
}

#[tokio::test]
async fn a_start_that_the_machine_prevents_opens_no_breaker_and_works_once_it_can() {
    let config = "[restart]\ndelay_ms = 50\nfailures_max = 2\nprobe_delays_ms = [3600000]\n";
    let hive = Place::new().start_with(config, &[]).await;
    let first = hive.ready_worker("tiny").await;
    hive.import("other").await;
    let (logs, aside) = (hive.home().join("logs"), hive.home().join("logs.aside"));
    fs::rename(&logs, &aside).unwrap();
    fs::write(&logs, "no directory").unwrap();
    signal(first.pid.unwrap(), Signal::KILL);
    let tries = || hive.log().matches("worker could not be started").count();
    eventually("more tries than open the breaker", LIMIT, async || (tries() > 3).then_some(()))
        .await;
    let row = failed(&hive, "the last try has failed", |worker| worker.id != first.id).await;
    assert_eq!((row.breaker, row.last_exit.unwrap().cause), (Breaker::Closed, ExitCause::Killed));
    for _ in 0..3 {
        assert_eq!(code(hive.start_worker("other").await), ErrorCode::WorkerStartFailed);
    }
    fs::remove_file(&logs).unwrap();
    fs::rename(&aside, &logs).unwrap();
    let next = successor(&hive, &row.id).await;
    assert_eq!((next.breaker, next.restart_count), (Breaker::Closed, 1));
    let other = hive.start_worker("other").await.unwrap();
    hive.worker_in(other.id.as_str(), WorkerState::Ready).await;
}

#[tokio::test]
async fn a_request_that_comes_in_the_pause_waits_for_its_end() {
    let hive = Place::new().start().await;
    let first = hive.ready_worker("tiny").await;
    signal(first.pid.unwrap(), Signal::KILL);
    hive.worker_in(first.id.as_str(), WorkerState::Failed).await;
    let asked = Instant::now();
    let second = hive.start_worker("tiny").await.unwrap();
    assert_ne!(second.id, first.id);
    assert!(asked.elapsed() > Duration::from_millis(500), "the pause is one second at least");
    hive.worker_in(second.id.as_str(), WorkerState::Ready).await;
}

#[tokio::test]
async fn an_adopted_worker_that_dies_is_replaced() {
    let hive = Place::new().start().await;
    let first = hive.ready_worker("tiny").await;
    let hive = hive.kill().start_with(SHORT, &[]).await;
    hive.worker_in(first.id.as_str(), WorkerState::Ready).await;
    signal(first.pid.unwrap(), Signal::KILL);
    let second = successor(&hive, &first.id).await;
    assert_eq!(second.last_exit.unwrap().cause, ExitCause::Unknown);
}

#[tokio::test]
async fn an_adopted_worker_that_fails_of_itself_says_why() {
    let script =
        "cat > secrets.part; mv secrets.part secrets.json; while [ ! -e end ]; do sleep 0.05; done";
    let place = Place::new();
    let flags = fake_worker::flags(&place, script);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with(NEVER, &flags).await;
    hive.import("tiny").await;
    let id = hive.start_worker("tiny").await.unwrap().id;
    let secrets: WorkerSecrets = eventually("the worker has its secrets", LIMIT, async || {
        serde_json::from_slice(&fs::read(hive.home().join("secrets.json")).ok()?).ok()
    })
    .await;
    let hive = hive.kill().start_with(NEVER, &flags).await;
    let token = Secret::from_bytes(secrets.callback_token.as_bytes(), "test").unwrap();
    let worker = HopClient::new(&hive.url, Arc::new(token)).unwrap();
    let path = format!("/api/v1/workers/{id}/ending");
    let told = worker.post::<_, Value>(&path, &json!({"exit_code": 70}), soon()).await;
    refused(told).unwrap();
    fs::write(hive.home().join("end"), "").unwrap();
    let exit = failed(&hive, "it has ended", |worker| worker.id == id).await.last_exit.unwrap();
    assert_eq!((exit.cause, exit.exit_code), (ExitCause::EngineFailed, Some(70)));
}

#[tokio::test]
async fn a_crash_loop_keeps_to_the_schedule_and_opens_the_breaker() {
    let script = "date +%s%N >> starts; exit 3";
    let hive = hive_with(script, SHORT).await;
    hive.start_worker("tiny").await.unwrap();
    let row = failed(&hive, "the breaker is open", |worker| worker.breaker == Breaker::Open).await;
    assert_eq!(starts(&hive).len(), 3);
    assert!(row.next_try_at_ms.is_some() && row.pid.is_none());
    let refusal = hive.start_worker("tiny").await.unwrap_err();
    let figures = refusal.details.unwrap();
    assert_eq!(refusal.code, ErrorCode::WorkerFailing);
    assert_eq!((&figures["cause"], &figures["breaker"]), (&json!("exit_code"), &json!("open")));
    // Three workers have failed, of which two had been started again.
    assert_eq!((&figures["failure_count"], row.restart_count), (&json!(3), 2));
    let retry_after_ms = figures["retry_after_ms"].as_u64().unwrap();
    assert!((1..=1875).contains(&retry_after_ms), "{figures}");
    eventually("the second probe", LIMIT, async || (starts(&hive).len() >= 5).then_some(())).await;
    let times = starts(&hive);
    for (pair, pause) in times.windows(2).zip([200, 400, 1500, 3000].map(Duration::from_millis)) {
        let gap = pair[1].saturating_sub(pair[0]);
        assert!(gap >= pause && gap <= pause.mul_f64(1.25) + MARGIN, "{pause:?}: {times:?}");
    }
    let text = metrics(&hive).await;
    assert!(text.contains("rbee_hive_breaker_opened_total{cause=\"exit_code\"} "), "{text}");
    assert!(
        text.contains("rbee_hive_worker_restart_failures_total{cause=\"exit_code\"} "),
        "{text}"
    );
}

#[tokio::test]
async fn what_a_retry_cannot_cure_is_tried_once_and_a_probe_finds_it_mended() {
    let hive = hive_with(&mendable(), SHORT).await;
    hive.start_worker("tiny").await.unwrap();
    let row = failed(&hive, "the breaker is open", |worker| worker.breaker == Breaker::Open).await;
    assert_eq!(starts(&hive).len(), 1);
    fs::write(hive.home().join("mended"), "").unwrap();
    let next = successor(&hive, &row.id).await;
    assert_eq!((next.breaker, next.restart_count), (Breaker::HalfOpen, 1));
    assert_eq!(starts(&hive).len(), 2);
    hive.chat(next.id.as_str(), "hello").await.unwrap();
    assert!(metrics(&hive).await.contains("rbee_hive_breakers{state=\"half_open\"} 1"));
    // It has not been healthy for long, so the next failure opens the breaker again, for longer.
    signal(next.pid.unwrap(), Signal::KILL);
    let row = failed(&hive, "the breaker is open again", |worker| worker.id == next.id).await;
    assert_eq!(row.breaker, Breaker::Open);
}

#[tokio::test]
async fn removing_a_model_ends_the_tries_for_it() {
    let hive = hive_with("date +%s%N >> starts; exit 65", SHORT).await;
    hive.start_worker("tiny").await.unwrap();
    failed(&hive, "the breaker is open", |worker| worker.breaker == Breaker::Open).await;
    hive.remove_model("tiny").await.unwrap();
    hive.import("tiny").await;
    assert_eq!(starts(&hive).len(), 1);
    hive.start_worker("tiny").await.expect("the model is as new");
    eventually("it is started", LIMIT, async || (starts(&hive).len() >= 2).then_some(())).await;
}

#[tokio::test]
async fn many_workers_that_crash_together_leave_the_hive_quick() {
    const WORKERS: usize = 64;
    let script = "date +%s%N >> starts; exit 3";
    let config = "workers_max = 64\n[restart]\ndelay_ms = 300\nprobe_delays_ms = [3600000]\n";
    let hive = hive_with(script, config).await;
    for index in 0..WORKERS {
        let name = format!("m{index}");
        let path =
            hive.place().file(&format!("{name}.gguf"), &gguf::tiny(u8::try_from(index).unwrap()));
        let request = json!({"reference": format!("file:{}", path.display()), "alias": name});
        stream::pull(&hive.client, &request).await.unwrap();
    }
    for index in 0..WORKERS {
        hive.start_worker(&format!("m{index}")).await.unwrap();
    }
    let slowest = Cell::new(Duration::ZERO);
    eventually("all breakers are open", LIMIT * 3, async || {
        let asked = Instant::now();
        let workers = hive.workers().await;
        slowest.set(slowest.get().max(asked.elapsed()));
        let open = workers.iter().filter(|worker| worker.breaker == Breaker::Open).count();
        (open == WORKERS).then_some(())
    })
    .await;
    assert!(slowest.get() < Duration::from_secs(1), "{slowest:?}");
    assert_eq!(starts(&hive).len(), 3 * WORKERS, "three starts each and no more");
}

#[tokio::test]
async fn an_end_is_known_to_hive_and_queen_at_once() {
    const ROUNDS: usize = 20;
    let place = Place::new();
    let queen = FakeQueen::start(&place).await;
    let config = "[restart]\ndelay_ms = 1\ndelay_max_ms = 1\nfailures_max = 1000\n";
    let hive = place.start_with(config, &["--queen-url", &queen.url]).await;
    let mut worker = hive.ready_worker("tiny").await;
    let mut known = Vec::new();
    for _ in 0..ROUNDS {
        let killed = Instant::now();
        signal(worker.pid.unwrap(), Signal::KILL);
        let is_gone = |workers: &[WorkerInfo]| {
            let same = workers.iter().find(|other| other.id == worker.id);
            same.is_none_or(|worker| worker.state == WorkerState::Failed)
        };
        eventually("the hive knows", LIMIT, async || is_gone(&hive.workers().await).then_some(()))
            .await;
        let by_hive = killed.elapsed();
        eventually("the queen knows", LIMIT, async || {
            is_gone(&queen.last()?.workers).then_some(())
        })
        .await;
        known.push((by_hive, killed.elapsed()));
        worker = successor(&hive, &worker.id).await;
    }
    known.sort();
    let (median, _) = known[ROUNDS / 2];
    let slowest = known.iter().map(|(_, by_queen)| *by_queen).max().unwrap();
    // Other work on the machine may hold up one round, not half of them.
    assert!(median <= Duration::from_millis(50), "{known:?}");
    assert!(slowest <= Duration::from_millis(500), "{known:?}");
}
