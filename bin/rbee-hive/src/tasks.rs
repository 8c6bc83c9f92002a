//! The closed list of what runs in the background besides the workers' own tasks. Each ends when `stop` is cancelled,
//! and whoever started them waits for that.

use std::sync::Arc;

use audit_logging::{Auditor, Event, Kind, Outcome, SubjectKind};
use rbee_http::Credential;
use tokio_util::sync::CancellationToken;

use crate::hive::Hive;
use crate::shutdown::{Asked, EndSignals};
use crate::{idle, queen_contact, watchdog};

/// Starts all of them, owned by the hive's tracker. The token comes with the length that a new one has to have.
pub(crate) fn start(
    hive: &Arc<Hive>,
    (token, length_min): (Credential, usize),
    signals: EndSignals,
    stop: &CancellationToken,
) {
    let tasks = &hive.tasks;
    let reload = (token.clone(), length_min);
    tasks.spawn(obey_signals(Arc::clone(hive), reload, signals, stop.clone()));
    tasks.spawn(queen_contact::keep(Arc::clone(hive), token, stop.clone()));
    if let Some(idle) = hive.config.idle_stop() {
        tasks.spawn(idle::keep(Arc::clone(&hive.registry), idle, stop.clone()));
    }
    tasks.spawn(watchdog::keep(Arc::clone(hive), hive.config.liveness(), stop.clone()));
    tasks.spawn(Arc::clone(&hive.supervisor).keep_restarting(stop.clone()));
    tasks.spawn(Arc::clone(&hive.supervisor).keep_past(stop.clone()));
    tasks.spawn(rebuild_catalog(Arc::clone(hive), stop.clone()));
}

/// Takes a step towards the end at each signal, or reads the token again.
async fn obey_signals(
    hive: Arc<Hive>,
    (token, length_min): (Credential, usize),
    mut signals: EndSignals,
    stop: CancellationToken,
) {
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            asked = signals.next() => asked,
        };
        match asked {
            Asked::End => hive.shutdown.advance(),
            Asked::Reload => {
                let (token, audit) = (token.clone(), hive.audit.clone());
                // It tells of its errors itself, and panics nowhere.
                tokio::task::spawn_blocking(move || reload(&token, length_min, &audit)).await.ok();
            }
        }
    }
}

fn reload(token: &Credential, length_min: usize, audit: &Auditor) {
    let event = |outcome| Event::new(Kind::KeyRotate, outcome).on(SubjectKind::Key, "hive");
    match token.reload(length_min) {
        Ok(token) => {
            tracing::info!(%token, "token read again");
            audit.note(event(Outcome::Success).with("key", token));
        }
        Err(error) => {
            audit.note(event(Outcome::Failure).with("reason", &error));
            tracing::error!(%error, "the new token cannot be used; the old one stays in force");
        }
    }
}

async fn rebuild_catalog(hive: Arc<Hive>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = hive.models.rebuild_if_damaged() => hive.registry.touch(),
    }
}
