//! The closed list of what runs in the background besides the workers' own tasks. Each ends when `stop` is cancelled,
//! and whoever started them waits for that.

use std::sync::Arc;

use secrets_management::Secret;
use tokio_util::sync::CancellationToken;

use crate::hive::Hive;
use crate::shutdown::EndSignals;
use crate::{idle, queen_contact, watchdog};

/// Starts all of them, owned by the hive's tracker.
pub(crate) fn start(
    hive: &Arc<Hive>,
    token: Arc<Secret>,
    signals: EndSignals,
    stop: &CancellationToken,
) {
    let tasks = &hive.tasks;
    tasks.spawn(obey_signals(Arc::clone(hive), signals, stop.clone()));
    tasks.spawn(queen_contact::keep(Arc::clone(hive), token, stop.clone()));
    if let Some(idle) = hive.config.idle_stop() {
        tasks.spawn(idle::keep(Arc::clone(&hive.registry), idle, stop.clone()));
    }
    tasks.spawn(watchdog::keep(Arc::clone(hive), hive.config.liveness(), stop.clone()));
    tasks.spawn(Arc::clone(&hive.supervisor).keep_restarting(stop.clone()));
    tasks.spawn(Arc::clone(&hive.supervisor).keep_past(stop.clone()));
    tasks.spawn(rebuild_catalog(Arc::clone(hive), stop.clone()));
}

/// Takes a step towards the end at each signal.
async fn obey_signals(hive: Arc<Hive>, mut signals: EndSignals, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = signals.next() => hive.shutdown.advance(),
        }
    }
}

async fn rebuild_catalog(hive: Arc<Hive>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = hive.models.rebuild_if_damaged() => hive.registry.touch(),
    }
}
