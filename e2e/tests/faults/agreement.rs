//! What has to agree once things are quiet: the processes that live, the ledger, and
//! the listing. The invariants of the fault suite:
//!
//! 1. every living worker process has exactly one row in the ledger;
//! 2. every row, and every worker that is listed as ready, has its living process;
//! 3. one hive at most, and no zombie.

use std::time::Duration;

use e2e::holds_within;

use crate::ledger;
use crate::site::{Site, is_ready, pid_of};

/// A worker that nobody knows asks its hive at most this much later: interval, retry, drain.
const QUIET_WITHIN: Duration = Duration::from_secs(12);

/// Waits until everything agrees.
pub(crate) fn assert_agreement(site: &Site, context: &str) {
    let mut last = None;
    let agrees = holds_within(QUIET_WITHIN, || {
        last = disagreement(site);
        last.is_none()
    });
    assert!(agrees, "{context}: {}\n{}", last.unwrap_or_default(), site.log("rbee-hive"));
}

/// Waits until every worker that lives has its row: all that has to agree while a ledger
/// that could not be written waits for the next hive.
pub(crate) fn assert_owned(site: &Site, context: &str) {
    let mut last = None;
    let owned = holds_within(QUIET_WITHIN, || {
        last = unowned(site);
        last.is_none()
    });
    assert!(owned, "{context}: {}\n{}", last.unwrap_or_default(), site.log("rbee-hive"));
}

/// Waits until nothing of the site lives and nothing is written down.
pub(crate) fn assert_nothing_left(site: &Site, context: &str) {
    let empty = holds_within(QUIET_WITHIN, || site.cluster.processes().is_empty());
    assert!(empty, "{context}: left behind: {:?}", site.cluster.processes());
    assert_eq!(ledger::rows(&site.cluster.home()), [], "{context}: the ledger");
}

/// Says what does not agree; the hive has to serve.
fn disagreement(site: &Site) -> Option<String> {
    let Some(listed) = site.listed() else { return Some("the hive does not answer".to_owned()) };
    if let Some(unowned) = unowned(site) {
        return Some(unowned);
    }
    let workers = site.living("llm-worker-rbee");
    let lives = |pid: u32| workers.iter().any(|worker| worker.pid == pid);
    let rows = ledger::rows(&site.cluster.home());
    if let Some(row) = rows.iter().find(|row| !row.pid.is_some_and(lives)) {
        return Some(format!("{row:?} has no living process of {workers:?}"));
    }
    let unsettled = |state: &str| matches!(state, "starting" | "stopping");
    let wrong = listed.iter().find(|worker| match worker["state"].as_str() {
        Some(state) if unsettled(state) => true,
        _ => is_ready(worker) && !lives(pid_of(worker)),
    });
    wrong.map(|worker| format!("listed: {worker}; alive: {workers:?}"))
}

/// Says whom nobody owns, or who has not ended.
fn unowned(site: &Site) -> Option<String> {
    let processes = site.cluster.processes();
    let rows = ledger::rows(&site.cluster.home());
    if let Some(zombie) = processes.iter().find(|process| process.state == 'Z') {
        return Some(format!("{zombie:?} is not reaped"));
    }
    let of = |program: &str| processes.iter().filter(|p| p.program == program).collect::<Vec<_>>();
    let (hives, workers) = (of("rbee-hive"), of("llm-worker-rbee"));
    if hives.len() != 1 {
        return Some(format!("hives: {hives:?}"));
    }
    workers.into_iter().find_map(|worker| {
        let owners = rows.iter().filter(|row| row.pid == Some(worker.pid)).count();
        (owners != 1).then(|| format!("{worker:?} has {owners} rows of {rows:?}"))
    })
}
