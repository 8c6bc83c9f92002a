//! `rbee ps`: the workers. Also owns how a worker is shown anywhere else.

use std::time::Duration;

use rbee_api::queen::{PlacedWorker, PlacedWorkerList};
use rbee_api::worker::{WorkerInfo, WorkerState};
use rbee_api::worker_exit::Breaker;

use super::now_ms;
use crate::error::KeeperError;
use crate::figures;
use crate::keeper::Keeper;
use crate::queen_process;

pub(super) async fn ps(keeper: &Keeper) -> Result<(), KeeperError> {
    let output = &keeper.output;
    let list = match keeper.find_queen().await? {
        Some(queen) => queen.workers().await?,
        None => {
            output.note(queen_process::absence(&keeper.home()?)?);
            PlacedWorkerList::default()
        }
    };
    if output.is_json() {
        return output.json(&list);
    }
    table(keeper, &list.workers)
}

/// Prints workers as a table, and under it why some failed.
pub(super) fn table(keeper: &Keeper, workers: &[PlacedWorker]) -> Result<(), KeeperError> {
    let now = now_ms();
    let rows = workers.iter().map(|placed| {
        let worker = &placed.worker;
        [
            worker.id.to_string(),
            name(placed),
            state(placed).to_owned(),
            busy(placed),
            worker.restart_count.to_string(),
            worker.device.clone(),
            placed.hive.to_string(),
            figures::ago(worker.started_at_ms, now),
        ]
    });
    let output = &keeper.output;
    output
        .table(["WORKER", "MODEL", "STATE", "BUSY", "RESTARTS", "DEVICE", "ON", "STARTED"], rows)?;
    for placed in workers {
        let worker = &placed.worker;
        if let Some(failure) = &worker.failure {
            let next = next_try(worker, now);
            output.note(&format!("{} failed: {}{next}", worker.id, failure.message));
        }
    }
    Ok(())
}

/// Says when a failed worker is started again.
fn next_try(worker: &WorkerInfo, now_ms: u64) -> String {
    let Some(at_ms) = worker.next_try_at_ms else { return String::new() };
    let pause = Duration::from_millis(at_ms.saturating_sub(now_ms));
    if pause < Duration::from_secs(1) {
        return "; it is started again now".to_owned();
    }
    let why = match worker.breaker {
        Breaker::Closed | Breaker::HalfOpen => "it is started again",
        Breaker::Open => "it keeps failing; the next try is",
    };
    let id = &worker.id;
    format!("; {why} in {}, or at once with `rbee workers reset {id}`", figures::lasting(pause))
}

fn name(placed: &PlacedWorker) -> String {
    let worker = &placed.worker;
    worker.alias.as_ref().map_or_else(|| worker.model_ref.to_string(), ToString::to_string)
}

/// Slots in use, which only a worker can have that is ready, and is known only of one that can be reached.
fn busy(placed: &PlacedWorker) -> String {
    let worker = &placed.worker;
    if worker.state != WorkerState::Ready || !placed.hive_state.is_reachable() {
        return "-".to_owned();
    }
    let busy = worker.slots_total.saturating_sub(worker.slots_available);
    format!("{busy}/{}", worker.slots_total)
}

/// What is said of its machine counts more than what that said of it last.
const fn state(placed: &PlacedWorker) -> &'static str {
    if !placed.hive_state.is_reachable() {
        return "unreachable";
    }
    match placed.worker.state {
        WorkerState::Starting => "loading",
        WorkerState::Ready => "ready",
        WorkerState::Stopping => "stopping",
        WorkerState::Failed => "failed",
    }
}
