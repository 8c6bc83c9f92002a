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

/// Waits until nothing of the site lives and nothing is written down.
pub(crate) fn assert_nothing_left(site: &Site, context: &str) {
    let empty = holds_within(QUIET_WITHIN, || site.cluster.processes().is_empty());
    assert!(empty, "{context}: left behind: {:?}", site.cluster.processes());
    assert_eq!(ledger::rows(&site.cluster.home()), [], "{context}: the ledger");
}

/// Says what does not agree; the hive has to serve.
fn disagreement(site: &Site) -> Option<String> {
    let processes = site.cluster.processes();
    let rows = ledger::rows(&site.cluster.home());
    let Some(listed) = site.listed() else { return Some("the hive does not answer".to_owned()) };
    if let Some(zombie) = processes.iter().find(|process| process.state == 'Z') {
        return Some(format!("{zombie:?} is not reaped"));
    }
    let of = |program: &str| processes.iter().filter(|p| p.program == program).collect::<Vec<_>>();
    let (hives, workers) = (of("rbee-hive"), of("llm-worker-rbee"));
    if hives.len() != 1 {
        return Some(format!("hives: {hives:?}"));
    }
    let lives = |pid: u32| workers.iter().any(|worker| worker.pid == pid);
    for worker in &workers {
        let owners = rows.iter().filter(|row| row.pid == Some(worker.pid)).count();
        if owners != 1 {
            return Some(format!("{worker:?} has {owners} rows of {rows:?}"));
        }
    }
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
