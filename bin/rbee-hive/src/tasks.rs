//! The closed list of what runs in the background besides the workers' own tasks. Each ends when `stop` is cancelled,
//! and whoever started them waits for that.

use std::sync::Arc;

use audit_logging::{Auditor, Event, Kind, Outcome, SubjectKind};
use rbee_http::{Credential, keep_fresh};
use rbee_tls::OwnCertificate;
use tokio_util::sync::CancellationToken;

use crate::hive::Hive;
use crate::shutdown::{Asked, EndSignals};
use crate::{idle, queen_contact, watchdog};

/// What is read again on SIGHUP.
#[derive(Debug, Clone)]
pub(crate) struct Renewed {
    pub(crate) token: Credential,
    /// Characters that a new token has to have.
    pub(crate) length_min: usize,
    pub(crate) own: Option<OwnCertificate>,
}

/// Starts all of them, owned by the hive's tracker.
pub(crate) fn start(
    hive: &Arc<Hive>,
    renewed: Renewed,
    signals: EndSignals,
    stop: &CancellationToken,
) {
    let tasks = &hive.tasks;
    tasks.spawn(obey_signals(Arc::clone(hive), renewed.clone(), signals, stop.clone()));
    if let Some(own) = renewed.own {
        let stop = stop.clone();
        tasks.spawn(async move {
            stop.run_until_cancelled(keep_fresh(own)).await;
        });
    }
    tasks.spawn(queen_contact::keep(Arc::clone(hive), renewed.token, stop.clone()));
    if let Some(idle) = hive.config.idle_stop() {
        tasks.spawn(idle::keep(Arc::clone(&hive.registry), idle, stop.clone()));
    }
    tasks.spawn(watchdog::keep(Arc::clone(hive), hive.config.liveness(), stop.clone()));
    tasks.spawn(Arc::clone(&hive.supervisor).keep_restarting(stop.clone()));
    tasks.spawn(Arc::clone(&hive.supervisor).keep_past(stop.clone()));
    tasks.spawn(rebuild_catalog(Arc::clone(hive), stop.clone()));
}

/// Takes a step towards the end at each signal, or reads token and certificate again.
async fn obey_signals(
    hive: Arc<Hive>,
    renewed: Renewed,
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
                let (renewed, audit) = (renewed.clone(), hive.audit.clone());
                // It tells of its errors itself, and panics nowhere.
                tokio::task::spawn_blocking(move || reload(&renewed, &audit)).await.ok();
            }
        }
    }
}

fn reload(renewed: &Renewed, audit: &Auditor) {
    let event = |outcome, what| Event::new(Kind::KeyRotate, outcome).on(SubjectKind::Key, what);
    let former = renewed.token.fingerprint();
    match renewed.token.reload(renewed.length_min) {
        Ok(token) if token == former => tracing::info!(%token, "token read again: the same"),
        Ok(token) => {
            tracing::info!(%token, "token read again");
            audit.note(event(Outcome::Success, "hive").with("key", token));
        }
        Err(error) => {
            audit.note(event(Outcome::Failure, "hive").with("reason", &error));
            tracing::error!(%error, "the new token cannot be used; the old one stays in force");
        }
    }
    match renewed.own.as_ref().map(OwnCertificate::renew) {
        None => {}
        Some(Ok(())) => {
            tracing::info!("certificate read again");
            audit.note(event(Outcome::Success, "certificate"));
        }
        Some(Err(error)) => {
            audit.note(event(Outcome::Failure, "certificate").with("reason", &error));
            tracing::error!(%error, "the new certificate cannot be used; the old one stays in force");
        }
    }
}

async fn rebuild_catalog(hive: Arc<Hive>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = hive.models.rebuild_if_damaged() => hive.registry.touch(),
    }
}
