//! Workers that live and do nothing: found out, killed and replaced; and those that only look like it.

use std::time::Duration;

use futures_util::future::join;
use rbee_api::worker::{WorkerInfo, WorkerState};
use rbee_api::worker_exit::ExitCause;
use rusqlite::Connection;
use rustix::process::Signal;
use tokio::time::{Instant, timeout};

use crate::fake_worker;
use crate::processes::{eventually, is_alive, signal};
use crate::program::{Hive, LIMIT, Place, worker_program};
use crate::stream::{Chat, text_of};

/// The shortest interval there is, and a restart that is not waited for.
const CONFIG: &str =
    "heartbeat_interval_seconds = 1\nhang_timeout_seconds = 2\n[restart]\ndelay_ms = 100\n";
/// Two intervals, and what finding out, killing and replacing may take.
const REPLACED: Duration = Duration::from_secs(14);

#[tokio::test]
async fn a_worker_that_was_halted_is_killed_and_replaced() {
    let hive = Place::new().start_with(CONFIG, &[]).await;
    let halted = hive.ready_worker("tiny").await;
    signal(halted.pid.unwrap(), Signal::STOP);
    let next = eventually("another is ready", REPLACED, async || {
        let workers = hive.workers().await;
        workers
            .into_iter()
            .find(|worker| worker.state == WorkerState::Ready && worker.id != halted.id)
    })
    .await;
    assert_eq!((next.last_exit.unwrap().cause, next.restart_count), (ExitCause::Stale, 1));
    assert!(!is_alive(halted.pid.unwrap()));
    hive.chat(next.id.as_str(), "hello").await.unwrap();
}

#[tokio::test]
async fn an_adopted_worker_that_was_halted_is_killed_and_replaced() {
    let hive = Place::new().start_with(CONFIG, &[]).await;
    let halted = hive.ready_worker("tiny").await;
    let hive = hive.kill().start_with(CONFIG, &[]).await;
    hive.worker_in(halted.id.as_str(), WorkerState::Ready).await;
    signal(halted.pid.unwrap(), Signal::STOP);
    let gone = async || (!is_alive(halted.pid.unwrap())).then_some(());
    eventually("it is killed", REPLACED, gone).await;
}

/// What the ledger says of a worker's model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ledger {
    KnowsItLoaded,
    HasForgotten,
}

/// A hive that took over, at the same address, from one that was killed beside a ready worker; that was halted before.
async fn taken_over_with_a_halted_worker(config: &str, then: Ledger) -> (Hive, WorkerInfo) {
    let hive = Place::new().start_with(config, &[]).await;
    let worker = hive.ready_worker("tiny").await;
    let address = hive.address().to_string();
    let ledger = hive.home().join("workers.db");
    eventually("it is written down that the worker is ready", LIMIT, async || {
        let known = Connection::open(&ledger).unwrap().query_row(
            "SELECT COUNT(slots_total) FROM worker",
            [],
            |row| row.get::<_, u32>(0),
        );
        (known.unwrap() == 1).then_some(())
    })
    .await;
    signal(worker.pid.unwrap(), Signal::STOP);
    let place = hive.kill();
    if then == Ledger::HasForgotten {
        let connection = Connection::open(&ledger).unwrap();
        connection.execute("UPDATE worker SET slots_total = NULL, device = NULL", []).unwrap();
    }
    (place.start_with(config, &["--bind", &address]).await, worker)
}

#[tokio::test]
async fn an_adopted_worker_that_misses_a_question_and_reports_later_goes_on() {
    let config = "heartbeat_interval_seconds = 4\nload_stall_seconds = 9\n";
    let goes_on = async |then| {
        let (hive, before) = taken_over_with_a_halted_worker(config, then).await;
        let begun = Instant::now();
        eventually("it has missed the question", LIMIT, async || {
            hive.log().contains("an adopted worker does not answer").then_some(())
        })
        .await;
        signal(before.pid.unwrap(), Signal::CONT);
        let longer = Duration::from_secs(12);
        eventually("its load would have stalled", LIMIT, async || {
            (begun.elapsed() >= longer).then_some(())
        })
        .await;
        let same = hive.worker(before.id.as_str()).await.unwrap();
        assert_eq!((same.state, same.pid), (WorkerState::Ready, before.pid));
        assert_eq!((same.slots_total, &same.device), (before.slots_total, &before.device));
        hive.chat(same.id.as_str(), "hello").await.unwrap();
    };
    join(goes_on(Ledger::KnowsItLoaded), goes_on(Ledger::HasForgotten)).await;
}

#[tokio::test]
async fn an_adopted_worker_that_was_halted_before_is_found_as_soon_as_any() {
    let config = format!("load_stall_seconds = 3600\n{CONFIG}");
    let (_hive, halted) = taken_over_with_a_halted_worker(&config, Ledger::KnowsItLoaded).await;
    let gone = async || (!is_alive(halted.pid.unwrap())).then_some(());
    eventually("it is killed", REPLACED, gone).await;
}

#[tokio::test]
async fn a_worker_whose_engine_hangs_is_killed_and_its_client_is_told() {
    let place = Place::new();
    // One that does not notice it by itself.
    let script = format!(
        "set -- $(echo \"$*\" | sed 's/--stall-seconds [0-9]*/--stall-seconds 1000/'); exec {} \"$@\"",
        worker_program().display()
    );
    let flags = fake_worker::flags(&place, &script);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with(CONFIG, &flags).await;
    ends_by_a_hang(&hive, ExitCause::Hung).await;
}

#[tokio::test]
async fn a_worker_gives_itself_up_within_the_time_that_is_set_for_a_step() {
    let hive = Place::new().start_with(CONFIG, &[]).await;
    ends_by_a_hang(&hive, ExitCause::Aborted).await;
}

async fn ends_by_a_hang(hive: &Hive, cause: ExitCause) {
    let worker = hive.ready_worker("tiny").await;
    let chat = Chat::begin(&hive.client, worker.id.as_str(), "[[tokens=20 hang_at=5]] a b c d e")
        .await
        .unwrap();
    let events = timeout(LIMIT, chat.rest()).await.expect("the stream ends");
    assert!(events.last().unwrap().contains("worker_failed"), "{events:?}");
    let next = eventually("another is ready", LIMIT, async || {
        let workers = hive.workers().await;
        workers.into_iter().find(|other| other.state == WorkerState::Ready && other.id != worker.id)
    })
    .await;
    assert_eq!(next.last_exit.unwrap().cause, cause);
}

#[tokio::test]
async fn a_worker_that_computes_for_long_is_neither_silent_nor_hung() {
    let config = "heartbeat_interval_seconds = 1\nhang_timeout_seconds = 60\n";
    let hive = Place::new().start_with(config, &[]).await;
    let worker = hive.ready_worker("tiny").await;
    // One step that takes longer than two intervals.
    let chat = Chat::begin(&hive.client, worker.id.as_str(), "[[tokens=2 delay_ms=4000]] a b");
    let events = chat.await.unwrap().rest().await;
    assert_eq!((text_of(&events).as_str(), events.last().unwrap().as_str()), ("a b", "[DONE]"));
    // And many short ones that together take longer than a step may.
    let config = "heartbeat_interval_seconds = 1\nhang_timeout_seconds = 1\n";
    let hive = Place::new().start_with(config, &[]).await;
    let worker = hive.ready_worker("tiny").await;
    let chat = Chat::begin(&hive.client, worker.id.as_str(), "[[tokens=40 delay_ms=100]] x");
    let events = chat.await.unwrap().rest().await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let same = hive.worker(worker.id.as_str()).await.unwrap();
    assert_eq!((same.state, same.pid, same.restart_count), (WorkerState::Ready, worker.pid, 0));
}

#[tokio::test]
async fn a_hive_that_was_halted_blames_no_worker() {
    let hive = Place::new().start_with(CONFIG, &[]).await;
    let worker = hive.ready_worker("tiny").await;
    signal(hive.pid(), Signal::STOP);
    let begun = Instant::now();
    let long = Duration::from_secs(5);
    eventually("it is halted for long", LIMIT, async || (begun.elapsed() >= long).then_some(()))
        .await;
    signal(hive.pid(), Signal::CONT);
    let heard = hive.worker(worker.id.as_str()).await.unwrap().last_heartbeat_ms;
    eventually("the worker reports on", LIMIT, async || {
        let worker = hive.worker(worker.id.as_str()).await?;
        (worker.last_heartbeat_ms > heard.map(|at| at + 3000)).then_some(())
    })
    .await;
    let same = hive.worker(worker.id.as_str()).await.unwrap();
    assert_eq!((same.state, same.pid), (WorkerState::Ready, worker.pid));
}

#[tokio::test]
async fn a_load_that_does_not_come_on_is_given_up() {
    let place = Place::new();
    let flags = fake_worker::flags(&place, "exec sleep 1000");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with("load_stall_seconds = 1\n", &flags).await;
    hive.import("tiny").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    let failed = hive.worker_in(worker.id.as_str(), WorkerState::Failed).await;
    assert_eq!(failed.last_exit.unwrap().cause, ExitCause::LoadStalled);
    assert!(failed.failure.unwrap().message.contains("load_stall_seconds"));
}
