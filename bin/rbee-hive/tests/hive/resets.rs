//! Failures that are forgotten because somebody asks for it, and what is said of that.

use std::fs;

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::worker::{WorkerReset, WorkerState};
use rbee_api::worker_exit::Breaker;
use rustix::process::Signal;
use serde_json::json;

use crate::fake_worker::{failed, hive_with, mendable, starts, successor};
use crate::processes::signal;
use crate::program::{Hive, Place, code, refused, soon};

const NEVER_AGAIN: &str = "[restart]\nprobe_delays_ms = [3600000]\n";

async fn reset(hive: &Hive, id: &str) -> Result<WorkerReset, Box<ErrorDetail>> {
    refused(hive.client.post(&format!("/api/v1/workers/{id}/reset"), &json!({}), soon()).await)
}

#[tokio::test]
async fn a_reset_closes_the_breaker_and_tries_at_once() {
    let hive = hive_with(&mendable(), NEVER_AGAIN).await;
    hive.start_worker("tiny").await.unwrap();
    let row = failed(&hive, "the breaker is open", |worker| worker.breaker == Breaker::Open).await;
    assert_eq!(code(reset(&hive, "w-1").await), ErrorCode::WorkerNotFound);
    let second = reset(&hive, row.id.as_str()).await.unwrap();
    assert_eq!((second.failures_cleared, second.breaker_was), (1, Breaker::Open));
    let second = second.worker;
    assert_eq!((second.restart_count, second.breaker), (0, Breaker::Closed));
    let row = failed(&hive, "it has failed again", |worker| worker.id == second.id).await;
    assert_eq!((starts(&hive).len(), row.breaker), (2, Breaker::Open));
    fs::write(hive.home().join("mended"), "").unwrap();
    let third = reset(&hive, row.id.as_str()).await.unwrap().worker;
    let third = hive.worker_in(third.id.as_str(), WorkerState::Ready).await;
    hive.chat(third.id.as_str(), "hello").await.unwrap();
}

#[tokio::test]
async fn a_worker_that_runs_goes_on_and_its_failures_are_forgotten_once() {
    let hive = Place::new().start_with("[restart]\ndelay_ms = 1\n", &[]).await;
    let first = hive.ready_worker("tiny").await;
    let id = first.id.as_str();
    let nothing = reset(&hive, id).await.unwrap();
    assert_eq!((nothing.failures_cleared, nothing.breaker_was), (0, Breaker::Closed));
    assert_eq!((nothing.worker.id.as_str(), nothing.worker.pid), (id, first.pid));
    signal(first.pid.unwrap(), Signal::KILL);
    let second = successor(&hive, &first.id).await;
    assert_eq!(second.restart_count, 1);
    for cleared in [1, 0] {
        let done = reset(&hive, second.id.as_str()).await.unwrap();
        assert_eq!((done.failures_cleared, done.worker.restart_count), (cleared, 0));
        assert_eq!((&done.worker.id, done.worker.pid), (&second.id, second.pid));
    }
}
