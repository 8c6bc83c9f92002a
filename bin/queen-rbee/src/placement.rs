//! Where a request runs: the queen's one decision, a pure function of the
//! cluster, of what became of the request so far, and of the time. Carries
//! nothing out and never waits; `search.rs` does what is decided here.

mod want;

use std::cmp::Reverse;
use std::time::Duration;

use input_validation::{ModelRef, NodeName, WorkerId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::worker::{WorkerInfo, WorkerState};
use tokio::time::Instant;

use crate::cluster::{Cluster, HiveView, Reach, is_live};
pub(crate) use want::{Part, Want};

/// How many workers one request may have started: more means that they vanish.
const STARTS_MAX: usize = 3;
/// How long the report of a worker's end may take once a request found it gone.
const REPORT_TIME: Duration = Duration::from_secs(5);
/// Longest wait before looking again, so that nothing hangs on one lost report.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What to do with a request now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Forward it to this worker, or to another ready one, once it has its turn.
    Use {
        /// The machine.
        hive: NodeName,
        /// A ready worker on it.
        worker: WorkerId,
    },
    /// Have the machine start a worker, then decide again.
    Start {
        /// The machine.
        hive: NodeName,
        /// The reference of the model on that machine.
        model: ModelRef,
    },
    /// Decide again when the cluster changes, at the latest at `until`.
    Wait {
        /// The worker that is being waited for, where it is one.
        worker: Option<WorkerId>,
        /// When to look again without a change.
        until: Instant,
    },
    /// Answer with this error.
    Refuse(ErrorDetail),
}

/// Says whether another worker might do better: the failure is the worker's or
/// its machine's, not the request's.
pub(crate) fn may_go_elsewhere(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::HiveUnreachable
            | ErrorCode::WorkerFailed
            | ErrorCode::WorkerNotFound
            | ErrorCode::Draining
            | ErrorCode::Loading
    )
}

/// Decides what to do with a request: in this order, give up, refuse what the
/// model is not for before anything is loaded for it, use a ready
/// worker, wait for one that is on its way, start one, wait for a machine,
/// refuse.
pub(crate) fn place(cluster: &Cluster, want: &Want, now: Instant) -> Decision {
    too_many_failures(want)
        .or_else(|| wrong_kind(cluster, want))
        .or_else(|| ready_worker(cluster, want))
        .or_else(|| failed_load(cluster, want))
        .or_else(|| worker_on_its_way(cluster, want, now))
        .or_else(|| new_worker(cluster, want))
        .or_else(|| machine_on_its_way(cluster, want, now))
        .unwrap_or_else(|| Decision::Refuse(reason_to_refuse(cluster, want)))
}

fn too_many_failures(want: &Want) -> Option<Decision> {
    if want.is_convicted() {
        return Some(Decision::Refuse(likely_cause(want)));
    }
    want.is_given_up().then(|| Decision::Refuse(last_error(want)))
}

/// What is said of a request that workers end of. Whoever sent it again would
/// only end more of them.
fn likely_cause(want: &Want) -> ErrorDetail {
    let last = last_error(want);
    let message = format!(
        "the workers for {} ended while they computed this request, one after the other, so it \
         is not tried again; the last one: {}",
        want.model, last.message
    );
    let detail = ErrorDetail::new(ErrorCode::WorkerFailed, message);
    ErrorDetail { retryable: false, details: last.details, ..detail }
}

fn wrong_kind(cluster: &Cluster, want: &Want) -> Option<Decision> {
    let model = cluster.hives.iter().find_map(|hive| hive.model(&want.model))?;
    model.kind.refusal(want.asks, &want.model).map(Decision::Refuse)
}

fn ready_worker(cluster: &Cluster, want: &Want) -> Option<Decision> {
    least_loaded(cluster, want, |_| true)
        .map(|(hive, worker)| Decision::Use { hive: hive.name.clone(), worker: worker.id.clone() })
}

/// Returns the worker with the smallest share of its slots taken by requests of
/// ours, the oldest of those, among the ready ones that the request can use and
/// that have `room`.
pub(crate) fn least_loaded<'a>(
    cluster: &'a Cluster,
    want: &Want,
    room: impl Fn(&WorkerInfo) -> bool,
) -> Option<(&'a HiveView, &'a WorkerInfo)> {
    // In millionths: whole numbers order exactly, and no worker has a million slots.
    let share = |worker: &WorkerInfo| {
        let load = u64::from(cluster.load_of(&worker.id)) * 1_000_000;
        load / u64::from(worker.slots_total.max(1))
    };
    ready_workers(cluster, &want.model)
        .filter(|(hive, worker)| {
            want.can_use(worker) && want.suits_worker(hive, worker) && room(worker)
        })
        .min_by_key(|(_, worker)| (share(worker), worker.started_at_ms, worker.id.as_str()))
}

/// Returns the workers that take requests for `model`.
pub(crate) fn ready_workers<'a>(
    cluster: &'a Cluster,
    model: &ModelRef,
) -> impl Iterator<Item = (&'a HiveView, &'a WorkerInfo)> {
    online(cluster)
        .flat_map(|hive| hive.workers_for(model).map(move |worker| (hive, worker)))
        .filter(|(_, worker)| worker.state == WorkerState::Ready)
}

/// A worker this request waited for could not load the model: so could no other.
fn failed_load(cluster: &Cluster, want: &Want) -> Option<Decision> {
    cluster
        .hives
        .iter()
        .flat_map(HiveView::workers)
        .filter(|worker| worker.state == WorkerState::Failed && want.awaited.contains(&worker.id))
        .find(|worker| !want.is_broken(worker))
        .map(|worker| {
            Decision::Refuse(worker.failure.clone().unwrap_or_else(|| {
                let message = format!("the worker for {} ended while it was starting", want.model);
                ErrorDetail::new(ErrorCode::WorkerStartFailed, message)
            }))
        })
}

/// A worker that is starting; or one that failed this request and whose machine
/// has not yet said what became of it.
fn worker_on_its_way(cluster: &Cluster, want: &Want, now: Instant) -> Option<Decision> {
    let live = || {
        online(cluster)
            .flat_map(|hive| hive.workers_for(&want.model).map(move |worker| (hive, worker)))
            .filter(|(hive, worker)| is_live(worker) && want.suits_worker(hive, worker))
            .map(|(_, worker)| worker)
    };
    if let Some(worker) = live().find(|worker| !want.is_broken(worker)) {
        let until = now + LOOK_AGAIN;
        return Some(Decision::Wait { worker: Some(worker.id.clone()), until });
    }
    let report_is_due = |worker: &WorkerInfo| {
        let (_, since) = want.broken.iter().find(|(id, _)| *id == worker.id)?;
        Some(*since + REPORT_TIME).filter(|until| *until > now)
    };
    live().find_map(report_is_due).map(|until| Decision::Wait { worker: None, until })
}

/// The machine with the most free memory among those that have the model.
fn new_worker(cluster: &Cluster, want: &Want) -> Option<Decision> {
    if want.starts >= STARTS_MAX || !want.may_start {
        return None;
    }
    online(cluster)
        .filter(|hive| !want.refused_by.contains(&hive.name))
        .filter_map(|hive| Some((hive, hive.snapshot.as_ref()?, hive.model(&want.model)?)))
        .filter(|(_, _, model)| want.suits(model))
        .min_by_key(|(hive, snapshot, _)| {
            (Reverse(snapshot.resources.memory_available_bytes), hive.name.as_str())
        })
        .map(|(hive, _, model)| Decision::Start {
            hive: hive.name.clone(),
            model: model.reference.clone(),
        })
}

/// A machine that has the model, or may have it for all that is known.
fn machine_on_its_way(cluster: &Cluster, want: &Want, now: Instant) -> Option<Decision> {
    cluster
        .hives
        .iter()
        .filter(|hive| hive.snapshot.is_none() || hive.knows(&want.model))
        .filter(|hive| hive.model(&want.model).is_none_or(|model| want.suits(model)))
        .filter_map(|hive| match hive.reach {
            Reach::Awaited { until } if until > now => Some(until.min(now + LOOK_AGAIN)),
            Reach::Awaited { .. }
            | Reach::Online
            | Reach::Draining
            | Reach::Suspect(_)
            | Reach::Stale(_)
            | Reach::Lost(_) => None,
        })
        .min()
        .map(|until| Decision::Wait { worker: None, until })
}

fn reason_to_refuse(cluster: &Cluster, want: &Want) -> ErrorDetail {
    if want.last_error.is_some() || want.starts >= STARTS_MAX {
        return last_error(want);
    }
    let model = &want.model;
    let knows = cluster.hives.iter().find(|hive| hive.knows(model));
    let nobody_reported = cluster.hives.iter().all(|hive| hive.snapshot.is_none());
    match knows.or_else(|| cluster.hives.first().filter(|_| nobody_reported)) {
        Some(hive) => match &hive.reach {
            Reach::Suspect(reason) | Reach::Stale(reason) | Reach::Lost(reason) => reason.clone(),
            Reach::Draining => {
                let message = format!("the machine that has {model} is shutting down");
                ErrorDetail::new(ErrorCode::NoWorkerAvailable, message)
            }
            Reach::Online | Reach::Awaited { .. } => {
                let message = format!("no machine can run {model} now; try again");
                ErrorDetail::new(ErrorCode::NoWorkerAvailable, message)
            }
        },
        None => {
            let meant = cluster.likely_meant(model);
            let meant = meant.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default();
            let message = format!(
                "no machine has the model {model}{meant}; `rbee list` shows the models there are, \
                 and `rbee pull` fetches one"
            );
            ErrorDetail::new(ErrorCode::ModelNotFound, message).with_param("model")
        }
    }
}

fn last_error(want: &Want) -> ErrorDetail {
    want.last_error.clone().unwrap_or_else(|| {
        let message = format!("the workers for {} end before they can be used", want.model);
        ErrorDetail::new(ErrorCode::NoWorkerAvailable, message)
    })
}

fn online(cluster: &Cluster) -> impl Iterator<Item = &HiveView> {
    cluster.hives.iter().filter(|hive| hive.reach == Reach::Online)
}

#[cfg(test)]
mod tests;
