//! `rbee workers`: has the failures of workers forgotten, so that failed ones are started again at once. Never decides
//! what counts as a failure.

use input_validation::WorkerId;
use rbee_api::queen::{PlacedWorker, PlacedWorkerReset};
use rbee_api::worker::WorkerState;
use rbee_api::worker_exit::Breaker;
use serde_json::json;

use super::stop::serves;
use crate::cli::{ResetArgs, WorkersAction};
use crate::error::KeeperError;
use crate::keeper::Keeper;
use crate::model_argument::known_model;
use crate::queen_client::QueenClient;

pub(super) async fn workers(keeper: &Keeper, action: WorkersAction) -> Result<(), KeeperError> {
    match action {
        WorkersAction::Reset(args) => reset(keeper, args).await,
    }
}

async fn reset(keeper: &Keeper, args: ResetArgs) -> Result<(), KeeperError> {
    let output = &keeper.output;
    let queen = keeper.find_queen().await?.ok_or(KeeperError::NoQueen)?;
    let ids = chosen(&queen, args.target).await?;
    let mut done = Vec::with_capacity(ids.len());
    for id in ids {
        let _activity = output.activity(format!("resetting {id}"));
        done.push((queen.reset_worker(&id).await?, id));
    }
    if output.is_json() {
        let done: Vec<&PlacedWorkerReset> = done.iter().map(|(reset, _)| reset).collect();
        return output.json(&json!({ "reset": done }));
    }
    if done.is_empty() {
        return output.line("nothing to reset: no worker has failed");
    }
    done.iter().try_for_each(|(reset, before)| output.line(&told(reset, before)))
}

/// Finds the workers that are meant; without a name, all that have something to be forgotten.
///
/// # Errors
/// [`KeeperError::NoSuchWorker`] where nothing has the name, no model either.
async fn chosen(queen: &QueenClient, target: Option<String>) -> Result<Vec<WorkerId>, KeeperError> {
    let workers = queen.workers().await?.workers;
    let Some(target) = target else {
        return Ok(ids(workers.iter().filter(|placed| has_past(placed))));
    };
    let model = known_model(&target)?;
    let found = select(&workers, &target, model.as_str());
    if found.is_empty() {
        let models = queen.models().await?.models;
        if !models.iter().any(|placed| placed.model.answers_to(&model)) {
            return Err(KeeperError::NoSuchWorker { target });
        }
    }
    Ok(found)
}

fn has_past(placed: &PlacedWorker) -> bool {
    let worker = &placed.worker;
    worker.state == WorkerState::Failed
        || worker.restart_count > 0
        || worker.breaker != Breaker::Closed
}

/// Returns the workers that `target` names: the one of this id, or those of this model, whatever their state.
fn select(workers: &[PlacedWorker], target: &str, model: &str) -> Vec<WorkerId> {
    let by_id = workers.iter().find(|placed| placed.worker.id.as_str() == target);
    by_id.map_or_else(
        || ids(workers.iter().filter(|placed| serves(placed, model))),
        |placed| vec![placed.worker.id.clone()],
    )
}

fn ids<'a>(workers: impl Iterator<Item = &'a PlacedWorker>) -> Vec<WorkerId> {
    workers.map(|placed| placed.worker.id.clone()).collect()
}

/// Says what was forgotten, and what runs now.
fn told(done: &PlacedWorkerReset, before: &WorkerId) -> String {
    let reset = &done.reset;
    let id = &reset.worker.id;
    let follows = if id == before { String::new() } else { format!("; {id} starts in its place") };
    let breaker = match reset.breaker_was {
        Breaker::Closed => "",
        Breaker::Open => " and the breaker closed",
        Breaker::HalfOpen => " and the half-open breaker closed",
    };
    match reset.failures_cleared {
        0 => format!("nothing to reset: {before} has no failures that count{follows}"),
        1 => format!("reset {before}: 1 failure forgotten{breaker}{follows}"),
        count => format!("reset {before}: {count} failures forgotten{breaker}{follows}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value};

    use super::*;

    fn worker(id: &str, alias: &str, more: &Value) -> Value {
        let mut worker = json!({
            "hive": "local", "id": id, "model_ref": "file:/m.gguf", "alias": alias,
            "backend": "echo", "device": "cpu", "url": "http://127.0.0.1:1", "state": "ready",
            "slots_total": 4, "slots_available": 4, "pid": 1, "started_at_ms": 0,
            "last_heartbeat_ms": null, "failure": null,
        });
        let fields = more.as_object().unwrap().clone();
        worker.as_object_mut().unwrap().extend(fields);
        worker
    }

    #[test]
    fn a_name_means_workers_in_any_state_and_none_means_those_that_have_failed() {
        let workers: Vec<PlacedWorker> = [
            worker("w-1", "a", &json!({})),
            worker("w-2", "b", &json!({"state": "failed"})),
            worker("w-3", "c", &json!({"restart_count": 1})),
            worker("w-4", "d", &json!({"breaker": "half_open"})),
        ]
        .map(|worker| from_value(worker).unwrap())
        .into();
        for (target, expected) in
            [("w-1", &["w-1"][..]), ("a", &["w-1"]), ("b", &["w-2"]), ("e", &[])]
        {
            let found = select(&workers, target, target);
            let found: Vec<&str> = found.iter().map(AsRef::as_ref).collect();
            assert_eq!(found, expected, "{target}");
        }
        let failed = ids(workers.iter().filter(|placed| has_past(placed)));
        assert_eq!(
            failed.iter().map(AsRef::<str>::as_ref).collect::<Vec<_>>(),
            ["w-2", "w-3", "w-4"]
        );
    }

    #[test]
    fn what_was_forgotten_is_said_and_that_there_was_nothing() {
        let before: WorkerId = "w-1".parse().unwrap();
        for (id, failures, breaker, expected) in [
            ("w-1", 0, "closed", "nothing to reset: w-1 has no failures that count"),
            ("w-1", 1, "closed", "reset w-1: 1 failure forgotten"),
            (
                "w-2",
                3,
                "open",
                "reset w-1: 3 failures forgotten and the breaker closed; w-2 starts in its place",
            ),
        ] {
            let more = json!({"failures_cleared": failures, "breaker_was": breaker});
            let done: PlacedWorkerReset = from_value(worker(id, "a", &more)).unwrap();
            assert_eq!(told(&done, &before), expected);
        }
    }
}
