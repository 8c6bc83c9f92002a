//! The past of each model's workers as a hive hands it on to the next one: read out, and put back. Writes no file, and
//! starts nothing.

use input_validation::{ModelAlias, ModelRef};
use rbee_api::worker::WorkerInfo;
use rbee_api::worker_exit::WorkerExit;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Registry;
use super::restarts::Lineage;
use super::worker::Worker;
use crate::restart::{KeptRecord, Moment};

/// The past of one model, as of this moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Past {
    model: ModelRef,
    lineage: Lineage,
    /// The row of the worker that failed last, until another has taken its place.
    failed: Option<WorkerInfo>,
}

/// The same as it is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeptPast {
    pub(crate) model: ModelRef,
    alias: Option<ModelAlias>,
    last_exit: WorkerExit,
    record: KeptRecord,
    failed: Option<WorkerInfo>,
}

impl Past {
    pub(crate) fn kept(&self, moment: Moment) -> KeptPast {
        KeptPast {
            model: self.model.clone(),
            alias: self.lineage.alias.clone(),
            last_exit: self.lineage.last_exit,
            record: self.lineage.record.kept(moment),
            failed: self.failed.clone(),
        }
    }
}

impl Registry {
    /// Returns the past of all models that have one, in order of name, and when the next of them will be forgiven.
    pub(crate) fn past(&self, now: Instant) -> (Vec<Past>, Option<Instant>) {
        let mut state = self.lock();
        state.forgive(&self.restart_rules, now);
        let lineages: Vec<_> = state
            .lineages
            .iter()
            .filter(|(_, lineage)| lineage.record.failures() > 0)
            .map(|(model, lineage)| (model.clone(), lineage.clone()))
            .collect();
        let forgiven =
            lineages.iter().filter_map(|(_, l)| l.record.recovers_at(&self.restart_rules)).min();
        let mut pasts: Vec<_> = lineages
            .into_iter()
            .map(|(model, lineage)| {
                let failed = state.failed_of(&model).map(|worker| worker.info.clone());
                Past { model, lineage, failed }
            })
            .collect();
        pasts.sort_by(|a, b| a.model.as_str().cmp(b.model.as_str()));
        (pasts, forgiven)
    }

    /// Puts back what a hive that was killed has written down. To be called before its workers are adopted: one that
    /// lives takes the place of the failed one before it.
    pub(crate) fn restore(&self, pasts: Vec<KeptPast>, moment: Moment) {
        let mut state = self.lock();
        for KeptPast { model, alias, last_exit, record, failed } in pasts {
            let record = record.restored(&self.restart_rules, moment);
            let next_try_at_ms = record.next_try().map(|at| moment.wall_at(at));
            let breaker = record.breaker();
            let row = failed.map(|info| WorkerInfo { breaker, next_try_at_ms, ..info });
            state.workers.extend(row.map(|info| Worker::failed_before(info, moment.now)));
            state.lineages.insert(model, Lineage { record, last_exit, alias });
        }
        drop(state);
        self.touch();
    }
}
