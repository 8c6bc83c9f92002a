//! Takes over the workers of a former hive: those whose process is proven to be the one in the ledger. Any other process
//! is a stranger, whatever its number, and is left alone.
//!
//! Each is asked about itself until it answers, and a heartbeat tells as much. One that had loaded its model under the
//! former hive is watched meanwhile like any that serves, and not like one that loads.

use std::sync::Arc;
use std::time::Duration;

use auth_min::TokenDigest;
use deadline_propagation::Deadline;
use input_validation::WorkerId;
use rbee_api::worker::{WorkerInfo, WorkerState, WorkerStatus};
use rbee_http::HopClient;
use tokio::time::{Instant, sleep};

use super::Supervisor;
use super::life::Life;
use super::owned::OwnedProcess;
use crate::ledger::{Entry, Started};
use crate::liveness::{Watched, load_allowance};
use crate::platform::ProcessHandle;
use crate::registry::{Granted, Serving, starting};

/// How long an adopted worker may take to tell about itself; one that loads answers too.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Pause before one that did not answer is asked again; each further one is twice as long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Longest such pause: as long as between two heartbeats by default, which tell of a worker too.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(30);

impl Supervisor {
    /// Takes over what is left of `entries`. To be called before the first request: a worker that is not in the
    /// registry when it calls is disowned.
    pub(crate) async fn adopt(self: &Arc<Self>, entries: Vec<Entry>) {
        for entry in entries {
            let pid = entry.process.as_ref().map(|process| process.identity.pid);
            let found = entry.process.clone().and_then(prove);
            // A model that is gone from the catalog adds nothing to the time of a load.
            let model = self.models.find(&entry.model_ref).await.ok().flatten();
            let allowance = load_allowance(model.map_or(0, |model| model.size_bytes));
            let adopted =
                found.and_then(|(handle, url)| self.enter(&entry, handle, &url, allowance));
            match adopted {
                Some(life) => {
                    tracing::info!(worker_id = %entry.id, pid = life.process.pid(), "worker adopted");
                    self.note_adoption(&entry.id, life.process.pid());
                    metrics::counter!("rbee_hive_workers_adopted_total").increment(1);
                    let life = Arc::clone(self).go_on(life, entry.is_stopping);
                    self.lives.spawn(self.vital().keep("worker", life));
                }
                None => {
                    tracing::warn!(worker_id = %entry.id, "a worker of the former hive is gone, or not proven to be it");
                    self.launcher.cgroups.clear_remains(&entry.id, pid).await;
                    self.strike_out(&entry.id).await;
                }
            }
        }
    }

    fn enter(
        &self,
        entry: &Entry,
        handle: ProcessHandle,
        url: &str,
        load_allowance: Duration,
    ) -> Option<Life> {
        let (token, callback) = self.secrets_of(&entry.id).ok()?;
        let client = HopClient::new(url, Arc::new(token)).ok()?;
        let limit_bytes = self.launcher.memory_limit.of(entry.memory_bytes);
        let pid = handle.identity().pid;
        let group = self.launcher.cgroups.of_adopted(&entry.id, pid, limit_bytes);
        let process = OwnedProcess::adopt(handle, group).ok()?;
        let callback = TokenDigest::of(callback.expose());
        let Entry { id, model_ref, alias, backend, started_at_ms, .. } = entry.clone();
        let info = WorkerInfo {
            url: url.to_owned(),
            pid: process.pid(),
            ..starting(id, model_ref, alias, backend, started_at_ms)
        };
        let interval = Duration::from_secs(entry.heartbeat_seconds);
        let watched = Watched::new(Instant::now(), interval, load_allowance);
        let (granted, serving) = (Granted::before(entry.memory_bytes), entry.serving.clone());
        let has_loaded = serving.is_some();
        let signals =
            self.registry.adopt(info, granted, callback, client.clone(), watched, serving);
        let load_limit = self.rules.load_timeout + load_allowance;
        let id = entry.id.clone();
        Some(Life { id, process, client, signals, load_limit, has_loaded })
    }

    async fn go_on(self: Arc<Self>, life: Life, is_stopping: bool) {
        let Life { id, client, signals, .. } = &life;
        let (id, client, gone) = (id.clone(), client.clone(), signals.gone.clone());
        let asked = async {
            if is_stopping {
                self.registry.begin_stop(&id);
            } else {
                gone.run_until_cancelled(self.ask(&id, &client)).await;
            }
        };
        tokio::join!(self.live_on(life), asked);
    }

    /// Learns from a worker how far it is, however often it has to be asked. One that loads reports later by itself. Never
    /// gives up: one that neither answers nor reports is ended like any other, by those who watch it.
    async fn ask(&self, id: &WorkerId, client: &HopClient) {
        let mut pause = ASK_AGAIN;
        loop {
            let limit = Deadline::after(ASK_LIMIT);
            match client.get::<WorkerStatus>("/api/v1/status", limit).await {
                Ok(status) => return self.take_note(id, status),
                Err(error) => {
                    tracing::warn!(worker_id = %id, %error, "an adopted worker does not answer; it is asked again");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(ASK_AGAIN_MAX);
        }
    }

    fn take_note(&self, id: &WorkerId, status: WorkerStatus) {
        match status.state {
            WorkerState::Ready => {
                let serving = Serving { slots_total: status.slots_total, device: status.device };
                // It may have ended meanwhile.
                self.registry.serves(id, &serving).ok();
            }
            WorkerState::Stopping => {
                self.registry.begin_stop(id);
            }
            WorkerState::Starting | WorkerState::Failed => {}
        }
    }
}

/// Opens the process of an entry, if it is that process still.
fn prove(started: Started) -> Option<(ProcessHandle, String)> {
    let handle = ProcessHandle::open(started.identity.pid).ok()?;
    let is_the_same = started.identity.proves(handle.identity());
    is_the_same.then_some((handle, started.url))
}
