//! Starts of workers that are under way: at most one at a time for a model on a
//! machine, however many requests want it, and it goes on when they leave.
//! Never decides that a worker is needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadline_propagation::Deadline;
use input_validation::{ModelRef, NodeName};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::worker::{StartWorker, WorkerInfo};
use rbee_http::CallError;
use tokio::sync::watch;

use crate::cluster::{Cluster, is_live};
use crate::placement::Want;
use crate::registry::Registry;
use crate::tasks::Tasks;

/// How long a machine may take to start a process; loading the model comes after it.
const START_LIMIT: Duration = Duration::from_secs(30);

/// What a machine answered, or why it did not.
#[derive(Debug, Clone)]
pub(crate) enum Started {
    /// The worker that starts or runs.
    Worker(Box<WorkerInfo>),
    /// The machine said no.
    Refused(Box<ErrorDetail>),
    /// The machine did not answer.
    Unreachable(Box<ErrorDetail>),
}

type Flight = (NodeName, ModelRef);
type Outcome = watch::Receiver<Option<Started>>;

/// The starts under way.
#[derive(Debug)]
pub(crate) struct Starts {
    flights: Arc<Mutex<HashMap<Flight, Outcome>>>,
    registry: Arc<Registry>,
    tasks: Tasks,
}

impl Starts {
    pub(crate) fn new(registry: Arc<Registry>, tasks: Tasks) -> Self {
        Self { flights: Arc::default(), registry, tasks }
    }

    /// Has `hive` start a worker for `model`, or joins the start under way, and
    /// returns the outcome. `None` means that a worker has come up meanwhile
    /// and the cluster should be looked at again. Cancel safe: the start goes on.
    pub(crate) async fn join(
        &self,
        hive: &NodeName,
        model: &ModelRef,
        want: &Want,
    ) -> Option<Started> {
        let mut outcome = self.enter(hive, model, want)?;
        // The sender only goes away unused when the queen ends.
        outcome.wait_for(Option::is_some).await.ok()?.clone()
    }

    fn enter(&self, hive: &NodeName, model: &ModelRef, want: &Want) -> Option<Outcome> {
        let flight = (hive.clone(), model.clone());
        let mut flights = lock(&self.flights);
        if let Some(outcome) = flights.get(&flight) {
            return Some(outcome.clone());
        }
        // A start that has just ended left its worker in the registry before it left the table.
        if has_usable_worker(&self.registry.view(), hive, model, want) {
            return None;
        }
        let (sender, outcome) = watch::channel(None);
        flights.insert(flight.clone(), outcome.clone());
        let landing = Landing { flights: Arc::clone(&self.flights), flight };
        let registry = Arc::clone(&self.registry);
        self.tasks.spawn(async move {
            let (hive, model) = &landing.flight;
            let started = start(&registry, hive, model).await;
            if let Started::Worker(worker) = &started {
                registry.note_worker(hive, (**worker).clone());
            }
            drop(landing);
            sender.send_replace(Some(started));
        });
        Some(outcome)
    }
}

/// Takes a start out of the table, however it ends.
struct Landing {
    flights: Arc<Mutex<HashMap<Flight, Outcome>>>,
    flight: Flight,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.flights).remove(&self.flight);
    }
}

fn has_usable_worker(cluster: &Cluster, hive: &NodeName, model: &ModelRef, want: &Want) -> bool {
    cluster
        .hives
        .iter()
        .filter(|view| view.name == *hive)
        .flat_map(|view| view.workers_for(model))
        .any(|worker| is_live(worker) && !want.is_broken(worker))
}

async fn start(registry: &Registry, hive: &NodeName, model: &ModelRef) -> Started {
    let Some(client) = registry.client(hive) else {
        return Started::Unreachable(no_answer());
    };
    let body = StartWorker { model: model.clone() };
    let answer: Result<WorkerInfo, _> =
        client.post("/api/v1/workers", &body, Deadline::after(START_LIMIT)).await;
    match answer {
        Ok(worker) => {
            tracing::info!(%hive, worker_id = %worker.id, %model, "worker asked for");
            Started::Worker(Box::new(worker))
        }
        Err(error) => {
            tracing::warn!(%hive, %model, error = %error, "no worker was started");
            match error {
                // Told to those who wait, each under the id of its own request.
                CallError::Refused(detail) => {
                    Started::Refused(Box::new(ErrorDetail { request_id: None, ..*detail }))
                }
                CallError::Unreachable(_)
                | CallError::TimedOut
                | CallError::Foreign { .. }
                | CallError::Setup(_)
                | CallError::Tls(_) => Started::Unreachable(no_answer()),
            }
        }
    }
}

fn no_answer() -> Box<ErrorDetail> {
    let message = "the machine that should start the worker does not answer";
    Box::new(ErrorDetail::new(ErrorCode::HiveUnreachable, message))
}

fn lock(flights: &Mutex<HashMap<Flight, Outcome>>) -> MutexGuard<'_, HashMap<Flight, Outcome>> {
    // A panic elsewhere leaves the table whole: it is changed in single calls.
    flights.lock().unwrap_or_else(PoisonError::into_inner)
}
