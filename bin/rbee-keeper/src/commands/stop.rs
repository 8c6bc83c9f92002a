//! `rbee stop`: ends workers.

use input_validation::WorkerId;
use rbee_api::queen::PlacedWorker;
use rbee_api::worker::{WorkerInfo, WorkerState};
use serde_json::json;

use crate::cli::StopArgs;
use crate::error::KeeperError;
use crate::keeper::Keeper;
use crate::model_argument::known_model;
use crate::queen_client::QueenClient;
use crate::queen_process;

pub(super) async fn stop(keeper: &Keeper, args: StopArgs) -> Result<(), KeeperError> {
    let output = &keeper.output;
    let chosen = match (args.target, keeper.find_queen().await?) {
        (Some(target), Some(queen)) => {
            let model = known_model(&target)?;
            let ids = select(&queen.workers().await?.workers, &target, model.as_str());
            if ids.is_empty() {
                return Err(KeeperError::NoSuchWorker { target });
            }
            Some((queen, ids))
        }
        (Some(_), None) => return Err(KeeperError::NoQueen),
        (None, Some(queen)) => {
            let ids = live(&queen.workers().await?.workers).map(|w| w.worker.id.clone()).collect();
            Some((queen, ids))
        }
        (None, None) => None,
    };
    let has_queen = chosen.is_some();
    let stopped = match chosen {
        Some((queen, ids)) => end_all(keeper, &queen, ids).await?,
        None => Vec::new(),
    };
    if output.is_json() {
        return output.json(&json!({ "stopped": stopped }));
    }
    if !has_queen {
        output.note(queen_process::absence(&keeper.home()?)?);
    } else if stopped.is_empty() {
        output.note("no worker runs");
    }
    stopped.iter().try_for_each(|id| output.line(&format!("stopped {id}")))
}

async fn end_all(
    keeper: &Keeper,
    queen: &QueenClient,
    ids: Vec<WorkerId>,
) -> Result<Vec<String>, KeeperError> {
    let mut stopped = Vec::with_capacity(ids.len());
    for id in ids {
        let _activity = keeper.output.activity(format!("stopping {id}"));
        stopped.push(queen.stop_worker(&id).await?.removed);
    }
    Ok(stopped)
}

/// The workers that run, and those that failed and would be started again.
fn live(workers: &[PlacedWorker]) -> impl Iterator<Item = &PlacedWorker> {
    let is_over = |worker: &WorkerInfo| {
        worker.state == WorkerState::Failed && worker.next_try_at_ms.is_none()
    };
    workers.iter().filter(move |placed| !is_over(&placed.worker))
}

/// Returns the workers that `target` names: the one of this id, whatever its state, or the live ones of this model.
fn select(workers: &[PlacedWorker], target: &str, model: &str) -> Vec<WorkerId> {
    if let Some(placed) = workers.iter().find(|placed| placed.worker.id.as_str() == target) {
        return vec![placed.worker.id.clone()];
    }
    let of_model = live(workers).filter(|placed| serves(placed, model));
    of_model.map(|placed| placed.worker.id.clone()).collect()
}

/// Whether a worker's model has this name.
pub(super) fn serves(placed: &PlacedWorker, model: &str) -> bool {
    let worker = &placed.worker;
    worker.model_ref.as_str() == model
        || worker.alias.as_ref().is_some_and(|alias| alias.as_str() == model)
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    fn worker(id: &str, alias: &str, state: &str) -> PlacedWorker {
        from_value(json!({
            "hive": "local", "id": id, "model_ref": "file:/m.gguf", "alias": alias,
            "backend": "echo", "device": "cpu", "url": "http://127.0.0.1:1", "state": state,
            "slots_total": 4, "slots_available": 4, "pid": 1, "started_at_ms": 0,
            "last_heartbeat_ms": null, "failure": null,
        }))
        .unwrap()
    }

    #[test]
    fn an_id_means_one_worker_and_a_model_its_live_ones() {
        let mut failing = worker("w-4", "d", "failed");
        failing.worker.next_try_at_ms = Some(1);
        let workers = [
            worker("w-1", "a", "ready"),
            worker("w-2", "a", "failed"),
            worker("w-3", "b", "starting"),
            failing,
        ];
        for (target, expected) in [
            ("w-1", &["w-1"][..]),
            ("w-2", &["w-2"]),
            ("a", &["w-1"]),
            ("b", &["w-3"]),
            ("d", &["w-4"]),
            ("file:/m.gguf", &["w-1", "w-3", "w-4"]),
            ("c", &[]),
        ] {
            let ids = select(&workers, target, target);
            let ids: Vec<&str> = ids.iter().map(AsRef::as_ref).collect();
            assert_eq!(ids, expected, "{target}");
        }
    }
}
