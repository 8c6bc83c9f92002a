//! `rbee workers`: has workers that keep failing started again at once.

use input_validation::WorkerId;
use rbee_api::queen::PlacedWorker;
use rbee_api::worker::WorkerState;
use serde_json::json;

use super::stop::serves;
use crate::cli::{ResetArgs, WorkersAction};
use crate::error::KeeperError;
use crate::keeper::Keeper;
use crate::model_argument::known_model;

pub(super) async fn workers(keeper: &Keeper, action: WorkersAction) -> Result<(), KeeperError> {
    match action {
        WorkersAction::Reset(args) => reset(keeper, args).await,
    }
}

async fn reset(keeper: &Keeper, args: ResetArgs) -> Result<(), KeeperError> {
    let output = &keeper.output;
    let queen = keeper.find_queen().await?.ok_or(KeeperError::NoQueen)?;
    let workers = queen.workers().await?.workers;
    let ids = match args.target {
        Some(target) => {
            let model = known_model(&target)?;
            let ids = select(&workers, &target, model.as_str());
            if ids.is_empty() {
                return Err(KeeperError::NoSuchWorker { target });
            }
            ids
        }
        None => failed(&workers).map(|placed| placed.worker.id.clone()).collect(),
    };
    let mut begun = Vec::with_capacity(ids.len());
    for id in ids {
        let _activity = output.activity(format!("starting the worker after {id}"));
        begun.push((queen.reset_worker(&id).await?, id));
    }
    if output.is_json() {
        let begun: Vec<&PlacedWorker> = begun.iter().map(|(placed, _)| placed).collect();
        return output.json(&json!({ "reset": begun }));
    }
    if begun.is_empty() {
        output.note("no worker has failed");
    }
    begun.iter().try_for_each(|(placed, before)| {
        let id = &placed.worker.id;
        if id == before {
            output.line(&format!("reset {id}"))
        } else {
            output.line(&format!("reset {before}; {id} starts in its place"))
        }
    })
}

fn failed(workers: &[PlacedWorker]) -> impl Iterator<Item = &PlacedWorker> {
    workers.iter().filter(|placed| placed.worker.state == WorkerState::Failed)
}

/// Returns the workers that `target` names: the one of this id, whatever its state, or the failed ones of this model.
fn select(workers: &[PlacedWorker], target: &str, model: &str) -> Vec<WorkerId> {
    if let Some(placed) = workers.iter().find(|placed| placed.worker.id.as_str() == target) {
        return vec![placed.worker.id.clone()];
    }
    let of_model = failed(workers).filter(|placed| serves(placed, model));
    of_model.map(|placed| placed.worker.id.clone()).collect()
}
