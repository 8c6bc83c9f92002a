//! `rbee ps`: the workers. Also owns how a worker is shown anywhere else.

use rbee_api::queen::{PlacedWorker, PlacedWorkerList};
use rbee_api::worker::{WorkerInfo, WorkerState};

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
            state(worker.state).to_owned(),
            busy(worker),
            worker.device.clone(),
            placed.hive.to_string(),
            figures::ago(worker.started_at_ms, now),
        ]
    });
    let output = &keeper.output;
    output.table(["WORKER", "MODEL", "STATE", "BUSY", "DEVICE", "ON", "STARTED"], rows)?;
    for placed in workers {
        if let Some(failure) = &placed.worker.failure {
            output.note(&format!("{} failed: {}", placed.worker.id, failure.message));
        }
    }
    Ok(())
}

fn name(placed: &PlacedWorker) -> String {
    let worker = &placed.worker;
    worker.alias.as_ref().map_or_else(|| worker.model_ref.to_string(), ToString::to_string)
}

/// Slots in use, which only a worker that is ready can have.
fn busy(worker: &WorkerInfo) -> String {
    if worker.state != WorkerState::Ready {
        return "-".to_owned();
    }
    let busy = worker.slots_total.saturating_sub(worker.slots_available);
    format!("{busy}/{}", worker.slots_total)
}

const fn state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Starting => "loading",
        WorkerState::Ready => "ready",
        WorkerState::Stopping => "stopping",
        WorkerState::Failed => "failed",
    }
}
