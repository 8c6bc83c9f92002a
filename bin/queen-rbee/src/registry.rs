//! What the queen knows of the cluster: one state behind one lock, snapshots
//! out, a wake-up on every change. Fed by heartbeats, by the answers of hives
//! and by the keeper of the local hive. Decides nothing and calls nobody.

mod silence;
mod standing;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use input_validation::{NodeName, WorkerId};
use rbee_api::error::ErrorDetail;
use rbee_api::hive::{HiveInfo, HiveSnapshot};
use rbee_api::worker::WorkerInfo;
use rbee_http::HopClient;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::cluster::{Cluster, HiveView, is_live};
use standing::{Contact, Facts, is_stale, judge, stale_at};

/// How long a machine that answers may take for its first report, and a machine
/// of which nothing is known for its first sign of life.
const REPORT_GRACE: Duration = Duration::from_secs(10);
/// How long a machine that failed a call is waited for while it is checked.
const CHECK_GRACE: Duration = Duration::from_secs(10);
/// How long a worker named in an answer counts without a report that names it.
const NOTED_MAX: Duration = Duration::from_secs(10);

/// No such machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such hive")]
pub(crate) struct UnknownHive;

/// Everything the queen knows of machines and workers.
#[derive(Debug)]
pub(crate) struct Registry {
    state: Mutex<State>,
    changed: watch::Sender<()>,
    load_fell: Notify,
    check: Notify,
    interval: Duration,
}

#[derive(Debug)]
struct State {
    hives: BTreeMap<NodeName, Entry>,
    load: BTreeMap<WorkerId, u32>,
}

#[derive(Debug)]
struct Entry {
    /// Whether it is found and checked by this queen, instead of known by its address.
    is_local: bool,
    client: Option<HopClient>,
    contact: Contact,
    snapshot: Option<Arc<HiveSnapshot>>,
    /// When the last report of the process that is being talked to came.
    heard_at: Option<Instant>,
    noted: Vec<Noted>,
}

#[derive(Debug)]
struct Noted {
    worker: WorkerInfo,
    at: Instant,
}

/// Counts the slots that one request takes for its worker until dropped.
#[derive(Debug)]
pub(crate) struct Load {
    registry: Arc<Registry>,
    worker: WorkerId,
    slots: u32,
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut state = self.registry.lock();
        if let Some(count) = state.load.get_mut(&self.worker) {
            *count -= self.slots;
            if *count == 0 {
                state.load.remove(&self.worker);
            }
        }
        drop(state);
        self.registry.load_fell.notify_one();
    }
}

impl Registry {
    /// Starts with the machine this queen runs on, and no other.
    pub(crate) fn new(local: NodeName, interval: Duration) -> Self {
        let state = State { hives: BTreeMap::new(), load: BTreeMap::new() };
        let (changed, _) = watch::channel(());
        let (load_fell, check) = (Notify::new(), Notify::new());
        let registry = Self { state: Mutex::new(state), changed, load_fell, check, interval };
        registry.insert(local, true, None);
        registry
    }

    /// Adds another machine, which is called at a fixed address.
    pub(crate) fn add_remote(&self, name: NodeName, client: HopClient) {
        self.insert(name, false, Some(client));
    }

    fn insert(&self, name: NodeName, is_local: bool, client: Option<HopClient>) {
        let entry = Entry {
            is_local,
            client,
            contact: Contact::Awaited { until: Instant::now() + REPORT_GRACE },
            snapshot: None,
            heard_at: None,
            noted: Vec::new(),
        };
        self.lock().hives.insert(name, entry);
    }

    /// Forgets a machine and all it told; the one this queen runs on stays.
    pub(crate) fn remove(&self, hive: &NodeName) {
        let mut state = self.lock();
        if state.hives.get(hive).is_some_and(|entry| !entry.is_local) {
            state.hives.remove(hive);
        }
        drop(state);
        self.bump();
    }

    /// Returns what changes from now on can be waited for with.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns the cluster as it is known at this moment.
    pub(crate) fn view(&self) -> Cluster {
        let now = Instant::now();
        let state = self.lock();
        let hives = state.hives.iter().map(|(name, entry)| self.view_of(name, entry, now));
        Cluster { hives: hives.collect(), load: state.load.clone() }
    }

    /// Returns the client for a machine, where its address is known.
    pub(crate) fn client(&self, hive: &NodeName) -> Option<HopClient> {
        self.lock().hives.get(hive)?.client.clone()
    }

    /// Takes a machine's report, and returns the epoch of the newest one. One that is not newer than the last is ignored.
    ///
    /// # Errors
    /// [`UnknownHive`] for a name that was never added.
    pub(crate) fn heartbeat(
        &self,
        hive: &NodeName,
        report: HiveSnapshot,
    ) -> Result<u64, UnknownHive> {
        let now = Instant::now();
        let mut state = self.lock();
        let entry = state.hives.get_mut(hive).ok_or(UnknownHive)?;
        let order = (report.epoch, report.sequence);
        let last = entry.snapshot.as_ref().map(|last| (last.epoch, last.sequence));
        if let Some(last) = last.filter(|last| order <= *last) {
            tracing::debug!(%hive, epoch = order.0, sequence = order.1, "late heartbeat ignored");
            return Ok(last.0);
        }
        let restarted = last.is_some_and(|(epoch, _)| epoch != 0 && epoch != report.epoch);
        entry.noted.retain(|noted| {
            !restarted && !report.workers.iter().any(|worker| worker.id == noted.worker.id)
        });
        entry.snapshot = Some(Arc::new(report));
        entry.heard_at = Some(now);
        let address_is_sure = entry.client.is_some() && !(restarted && entry.is_local);
        if address_is_sure {
            entry.contact = Contact::Up;
        } else {
            // The address comes from this machine's run file, never from the one who reports.
            entry.contact = Contact::Awaited { until: now + CHECK_GRACE };
            self.check.notify_one();
        }
        drop(state);
        self.bump();
        Ok(order.0)
    }

    /// Says whether there is a machine of this name.
    pub(crate) fn knows(&self, hive: &NodeName) -> bool {
        self.lock().hives.contains_key(hive)
    }

    /// Says whether the process on a machine has told nothing yet.
    pub(crate) fn is_unheard(&self, hive: &NodeName) -> bool {
        self.lock().hives.get(hive).is_some_and(|entry| entry.heard_at.is_none())
    }

    /// Notes that a machine answered a question after our credential, through
    /// `client`, and what it told. Its next report is newer in any case.
    pub(crate) fn answered(&self, hive: &NodeName, client: HopClient, told: Option<HiveSnapshot>) {
        self.change(hive, |entry| {
            entry.client = Some(client);
            entry.answers(told);
        });
    }

    /// Notes what a machine elsewhere told when it was asked. Its address stays the one that is known by now.
    pub(crate) fn told(&self, hive: &NodeName, told: HiveSnapshot) {
        self.change(hive, |entry| entry.answers(Some(told)));
    }

    /// Notes that the process on a machine is gone and another one is coming;
    /// what the old one reported stays visible until then.
    pub(crate) fn restarting(&self, hive: &NodeName, until: Instant) {
        self.change(hive, |entry| {
            entry.client = None;
            entry.heard_at = None;
            entry.noted.clear();
            entry.contact = Contact::Awaited { until };
        });
    }

    /// Notes that a machine cannot be used, and why.
    pub(crate) fn lost(&self, hive: &NodeName, reason: ErrorDetail) {
        self.change(hive, |entry| entry.contact = Contact::Lost(reason));
    }

    /// Notes that a call to a machine failed, and has the local one checked.
    pub(crate) fn suspect(&self, hive: &NodeName) {
        let now = Instant::now();
        self.change(hive, |entry| {
            // Nobody waits for one that was silent for too long before it failed.
            let is_stale = entry.heard_at.is_some_and(|at| now > stale_at(at, self.interval));
            if matches!(entry.contact, Contact::Up) && !is_stale {
                entry.contact = Contact::Awaited { until: now + CHECK_GRACE };
            }
        });
        self.ask_for_check();
    }

    /// Has the local machine checked as soon as its keeper can.
    pub(crate) fn ask_for_check(&self) {
        self.check.notify_one();
    }

    /// Waits until somebody asks for a check of the local machine.
    pub(crate) async fn check_is_asked_for(&self) {
        self.check.notified().await;
    }

    /// Notes a worker that a machine named in an answer, until a report names it.
    pub(crate) fn note_worker(&self, hive: &NodeName, worker: WorkerInfo) {
        let at = Instant::now();
        self.change(hive, |entry| {
            let is_reported = entry.snapshot.as_ref().is_some_and(|snapshot| {
                snapshot.workers.iter().any(|reported| reported.id == worker.id)
            });
            entry.noted.retain(|noted| noted.worker.id != worker.id && at < noted.at + NOTED_MAX);
            if !is_reported {
                entry.noted.push(Noted { worker, at });
            }
        });
    }

    /// Counts a request that takes so many slots of `worker` until the guard is
    /// dropped.
    pub(crate) fn load(self: &Arc<Self>, worker: &WorkerId, slots: u32) -> Load {
        *self.lock().load.entry(worker.clone()).or_insert(0) += slots;
        Load { registry: Arc::clone(self), worker: worker.clone(), slots }
    }

    /// Has turns looked for, as if a worker had less to do than before.
    pub(crate) fn look_for_room(&self) {
        self.load_fell.notify_one();
    }

    /// Waits until a worker has less to do than before; one that waits at a time.
    pub(crate) async fn load_fell(&self) {
        self.load_fell.notified().await;
    }

    /// Returns the machine that has named `worker`.
    pub(crate) fn hive_of(&self, worker: &WorkerId) -> Option<NodeName> {
        let cluster = self.view();
        let hive = cluster.hives.iter().find(|hive| hive.workers().any(|w| w.id == *worker))?;
        Some(hive.name.clone())
    }

    /// Returns the machines as listings show them.
    pub(crate) fn hive_infos(&self) -> Vec<HiveInfo> {
        let now = Instant::now();
        let state = self.lock();
        let infos = state.hives.iter().map(|(name, entry)| {
            let view = self.view_of(name, entry, now);
            let listed = || entry.snapshot.iter().filter(|_| view.is_listed());
            HiveInfo {
                name: name.clone(),
                url: entry.client.as_ref().map_or_else(String::new, |c| c.base_url().to_owned()),
                state: view.state(),
                plain_http_on_network: entry
                    .snapshot
                    .as_ref()
                    .is_some_and(|snapshot| snapshot.plain_http_on_network),
                last_heartbeat_age_ms: entry.heard_at.map(|at| {
                    u64::try_from(now.saturating_duration_since(at).as_millis()).unwrap_or(u64::MAX)
                }),
                resources: entry.snapshot.as_ref().map(|snapshot| snapshot.resources.clone()),
                workers: count(listed().flat_map(|s| &s.workers).filter(|w| is_live(w))),
                models: count(listed().flat_map(|s| &s.models)),
            }
        });
        infos.collect()
    }

    fn view_of(&self, name: &NodeName, entry: &Entry, now: Instant) -> HiveView {
        let facts = Facts {
            contact: &entry.contact,
            heard_at: entry.heard_at,
            is_draining: entry.snapshot.as_ref().is_some_and(|snapshot| snapshot.draining),
        };
        HiveView {
            name: name.clone(),
            reach: judge(&facts, self.interval, now),
            snapshot: entry.snapshot.clone(),
            noted: entry.noted_workers(now),
            is_stale: is_stale(entry.heard_at, self.interval, now),
        }
    }

    fn change(&self, hive: &NodeName, with: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.lock().hives.get_mut(hive) {
            with(entry);
        }
        self.bump();
    }

    fn bump(&self) {
        self.changed.send_replace(());
    }

    /// A panic elsewhere leaves no state half-written: each change is one assignment after another.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Notes an answer, and what it told, if nothing was reported yet.
    fn answers(&mut self, told: Option<HiveSnapshot>) {
        let now = Instant::now();
        if let (None, Some(told)) = (self.heard_at, told) {
            let before_any_report = HiveSnapshot { epoch: 0, sequence: 0, ..told };
            self.snapshot = Some(Arc::new(before_any_report));
            self.heard_at = Some(now);
        }
        self.contact = match self.heard_at {
            Some(_) => Contact::Up,
            None => Contact::Awaited { until: now + REPORT_GRACE },
        };
    }

    fn noted_workers(&self, now: Instant) -> Vec<WorkerInfo> {
        let is_fresh = |noted: &&Noted| now < noted.at + NOTED_MAX;
        self.noted.iter().filter(is_fresh).map(|noted| noted.worker.clone()).collect()
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
