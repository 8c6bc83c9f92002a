//! One moment of the cluster, as the registry hands it out and placement reads
//! it: machines, their models, their workers, and how busy each worker is.
//! Plain values; never changes anything and never looks at a clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use input_validation::{ModelRef, NodeName, WorkerId};
use rbee_api::error::ErrorDetail;
use rbee_api::hive::{HiveSnapshot, HiveState};
use rbee_api::model::ModelInfo;
use rbee_api::worker::{WorkerInfo, WorkerState};
use tokio::time::Instant;

/// How like a name another must be to be meant by it: 0 for nothing in common,
/// 1 for the same.
const LIKENESS_MIN: f64 = 0.8;

/// Stands for every model that no machine has.
pub(crate) const UNKNOWN_MODEL: &str = "unknown";

/// All that placement needs to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cluster {
    /// The machines, in order of name.
    pub(crate) hives: Vec<HiveView>,
    /// Slots taken by the requests that this queen is forwarding, by worker; an
    /// absent one has none taken.
    pub(crate) load: BTreeMap<WorkerId, u32>,
}

/// One machine.
#[derive(Debug, Clone)]
pub(crate) struct HiveView {
    pub(crate) name: NodeName,
    pub(crate) reach: Reach,
    /// What it reported last; nothing before its first report.
    pub(crate) snapshot: Option<Arc<HiveSnapshot>>,
    /// Workers it named in an answer and not yet in a report.
    pub(crate) noted: Vec<WorkerInfo>,
    /// Whether it was heard of too long ago for that to be relied on, whatever is known of it since.
    pub(crate) is_stale: bool,
}

/// Whether a machine can be given work.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reach {
    /// Yes.
    Online,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// It is being started, found or checked; worth waiting for until then.
    Awaited {
        /// When waiting stops being worthwhile.
        until: Instant,
    },
    /// Not now: it has been silent for too long; and what is said of that.
    Suspect(ErrorDetail),
    /// No: it has been silent for so long that what it told last is not to be relied on.
    Stale(ErrorDetail),
    /// No; and why.
    Lost(ErrorDetail),
}

impl Reach {
    /// Returns why no work can be given, where it will not be soon.
    pub(crate) const fn obstacle(&self) -> Option<&ErrorDetail> {
        match self {
            Self::Suspect(why) | Self::Stale(why) | Self::Lost(why) => Some(why),
            Self::Online | Self::Draining | Self::Awaited { .. } => None,
        }
    }
}

impl Cluster {
    /// Returns the name under which metrics may count requests for `name`: that
    /// of a model some machine has, so that clients cannot invent label values.
    pub(crate) fn label(&self, name: &ModelRef) -> Option<String> {
        self.hives.iter().find_map(|hive| hive.model(name)).map(ModelInfo::display_name)
    }

    /// Returns the name of the model that somebody may have meant who typed
    /// `name`, which no machine knows.
    pub(crate) fn likely_meant(&self, name: &ModelRef) -> Option<String> {
        let typed = name.to_string();
        let models = self.hives.iter().filter_map(|hive| hive.snapshot.as_ref());
        models
            .flat_map(|snapshot| snapshot.models.iter().map(ModelInfo::display_name))
            .map(|known| (strsim::jaro_winkler(&known, &typed), known))
            .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, known)| known)
    }

    /// Returns the name of the line in which requests for `name` wait: one for
    /// each model, however it is called; one for all of which nothing is known.
    pub(crate) fn line_of(&self, name: &ModelRef) -> String {
        let running = || {
            let worker = self.hives.iter().find_map(|hive| hive.workers_for(name).next())?;
            let alias = worker.alias.as_ref().map(ToString::to_string);
            Some(alias.unwrap_or_else(|| worker.model_ref.to_string()))
        };
        self.label(name).or_else(running).unwrap_or_else(|| UNKNOWN_MODEL.to_owned())
    }

    /// Returns what is known of a worker.
    pub(crate) fn worker(&self, id: &WorkerId) -> Option<&WorkerInfo> {
        self.hives.iter().flat_map(HiveView::workers).find(|worker| worker.id == *id)
    }

    /// Says whether no machine has reported yet and one is about to.
    pub(crate) fn is_gathering(&self) -> bool {
        let is_awaited = |hive: &HiveView| matches!(hive.reach, Reach::Awaited { .. });
        !self.has_reports() && self.hives.iter().any(is_awaited)
    }

    /// Says whether some machine has told what it has.
    pub(crate) fn has_reports(&self) -> bool {
        self.hives.iter().any(|hive| hive.snapshot.is_some())
    }

    /// Returns how many more requests `worker` could decode now. The queen
    /// counts what it forwards, since a report is half a minute old at worst.
    pub(crate) fn slots_available(&self, worker: &WorkerInfo) -> u32 {
        match worker.state {
            WorkerState::Ready => worker.slots_total.saturating_sub(self.load_of(&worker.id)),
            WorkerState::Starting | WorkerState::Stopping | WorkerState::Failed => 0,
        }
    }

    /// Returns how many slots of `worker` the requests take that this queen is
    /// forwarding to it.
    pub(crate) fn load_of(&self, worker: &WorkerId) -> u32 {
        self.load.get(worker).copied().unwrap_or(0)
    }
}

impl HiveView {
    /// Returns its state as listings and metrics tell it. One that is being looked for is suspect if it was ever there.
    pub(crate) const fn state(&self) -> HiveState {
        match (&self.reach, &self.snapshot) {
            (Reach::Online, _) => HiveState::Online,
            (Reach::Draining, _) => HiveState::Draining,
            (Reach::Suspect(_), _) | (Reach::Awaited { .. }, Some(_)) => HiveState::Suspect,
            (Reach::Stale(_), _) => HiveState::Stale,
            (Reach::Lost(_), _) | (Reach::Awaited { .. }, None) => HiveState::Unreachable,
        }
    }

    /// Says whether its models and workers are listed: what it told too long ago may be long gone.
    pub(crate) const fn is_listed(&self) -> bool {
        !self.is_stale
    }

    /// Returns its workers, the failed ones too.
    pub(crate) fn workers(&self) -> impl Iterator<Item = &WorkerInfo> {
        self.snapshot.iter().flat_map(|snapshot| &snapshot.workers).chain(&self.noted)
    }

    /// Returns its workers that answer to `name`.
    pub(crate) fn workers_for(&self, name: &ModelRef) -> impl Iterator<Item = &WorkerInfo> {
        self.workers().filter(move |worker| serves(worker, name))
    }

    /// Returns the model on its disk that `name` means there.
    pub(crate) fn model(&self, name: &ModelRef) -> Option<&ModelInfo> {
        let snapshot = self.snapshot.as_ref()?;
        snapshot.models.iter().find(|model| model.answers_to(name))
    }

    /// Says whether it has `name`, on disk or already loaded.
    pub(crate) fn knows(&self, name: &ModelRef) -> bool {
        self.model(name).is_some() || self.workers_for(name).any(is_live)
    }
}

/// Says whether a worker answers to `name`: its model's reference or short name.
fn serves(worker: &WorkerInfo, name: &ModelRef) -> bool {
    worker.model_ref == *name
        || worker.alias.as_ref().is_some_and(|alias| alias.as_str() == name.as_str())
}

/// Says whether a worker takes requests now or soon.
pub(crate) fn is_live(worker: &WorkerInfo) -> bool {
    match worker.state {
        WorkerState::Starting | WorkerState::Ready => true,
        WorkerState::Stopping | WorkerState::Failed => false,
    }
}
