//! Failures that outlive a hive which was killed, and not one that ended in order.

use std::fs;
use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::worker::{WorkerInfo, WorkerState};
use rbee_api::worker_exit::{Breaker, ExitCause};
use rusqlite::Connection;
use rustix::process::Signal;

use crate::fake_worker::{failed, flags, hive_with, mendable, starts, successor};
use crate::processes::{eventually, signal};
use crate::program::{Hive, LIMIT, Place, code};

const NEVER_AGAIN: &str = "[restart]\nprobe_delays_ms = [3600000]\n";

/// Waits until the failures of so many models are written down.
async fn written_down(hive: &Hive, models: i64) {
    let ledger = hive.home().join("workers.db");
    eventually("the failures are written down", LIMIT, async || {
        let connection = Connection::open(&ledger).unwrap();
        connection.busy_timeout(Duration::from_secs(1)).unwrap();
        let count = connection.query_row("SELECT count(*) FROM failing", [], |row| row.get(0));
        (count == Ok(models)).then_some(())
    })
    .await;
}

/// A hive with an open breaker, which stands in the ledger.
async fn with_an_open_breaker(config: &str) -> (Hive, WorkerInfo) {
    let hive = hive_with(&mendable(), config).await;
    hive.start_worker("tiny").await.unwrap();
    let row = failed(&hive, "the breaker is open", |worker| worker.breaker == Breaker::Open).await;
    written_down(&hive, 1).await;
    (hive, row)
}

/// Starts the next hive, with the same script.
async fn next_hive(place: Place, config: &str) -> Hive {
    let flags = flags(&place, &mendable());
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    place.start_with(config, &flags).await
}

#[tokio::test]
async fn a_breaker_stays_open_over_the_death_of_its_hive() {
    let (hive, row) = with_an_open_breaker(NEVER_AGAIN).await;
    let hive = next_hive(hive.kill(), NEVER_AGAIN).await;
    let again = hive.worker(row.id.as_str()).await.expect("the row is there again");
    assert_eq!((again.state, again.breaker), (WorkerState::Failed, Breaker::Open));
    assert_eq!((&again.failure, again.last_exit), (&row.failure, row.last_exit));
    let moved = again.next_try_at_ms.unwrap().abs_diff(row.next_try_at_ms.unwrap());
    assert!(moved < 10_000, "the next try is when it was: {moved}");
    assert_eq!(code(hive.start_worker("tiny").await), ErrorCode::WorkerFailing);
    assert_eq!(starts(&hive).len(), 1, "nothing was tried meanwhile");
    assert!(hive.metrics().await.contains("rbee_hive_breakers{state=\"open\"} 1"));
}

#[tokio::test]
async fn a_try_that_is_due_is_made_by_the_next_hive() {
    let (hive, row) = with_an_open_breaker("[restart]\nprobe_delays_ms = [1500]\n").await;
    fs::write(hive.home().join("mended"), "").unwrap();
    let hive = next_hive(hive.kill(), NEVER_AGAIN).await;
    let next = successor(&hive, &row.id).await;
    assert_eq!((next.breaker, next.restart_count), (Breaker::HalfOpen, 1));
    // The next failure opens it again: the first one counts.
    signal(next.pid.unwrap(), Signal::KILL);
    failed(&hive, "it is open again", |worker| worker.breaker == Breaker::Open).await;
}

#[tokio::test]
async fn the_past_of_a_worker_that_lives_on_is_known_too() {
    let config = "[restart]\ndelay_ms = 1\n";
    let hive = Place::new().start_with(config, &[]).await;
    let first = hive.ready_worker("tiny").await;
    signal(first.pid.unwrap(), Signal::KILL);
    let second = successor(&hive, &first.id).await;
    written_down(&hive, 1).await;
    let hive = hive.kill().start_with(config, &[]).await;
    let adopted = hive.worker_in(second.id.as_str(), WorkerState::Ready).await;
    assert_eq!((adopted.pid, adopted.restart_count), (second.pid, 1));
    assert_eq!(adopted.last_exit.unwrap().cause, ExitCause::Killed);
    assert_eq!(hive.workers().await.len(), 1, "the failed one has its successor");
}

#[tokio::test]
async fn a_hive_that_ends_in_order_forgets() {
    let (mut hive, _) = with_an_open_breaker(NEVER_AGAIN).await;
    signal(hive.pid(), Signal::TERM);
    assert_eq!(hive.ended(LIMIT).await.code(), Some(0));
    let hive = next_hive(hive.into_place(), NEVER_AGAIN).await;
    assert_eq!(hive.workers().await, []);
    hive.start_worker("tiny").await.expect("whoever restarted it may have mended the cause");
    eventually("it is started", LIMIT, async || (starts(&hive).len() == 2).then_some(())).await;
}
