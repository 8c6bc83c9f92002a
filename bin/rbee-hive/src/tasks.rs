//! The closed list of what runs in the background besides the workers' own tasks. Each ends when `stop` is cancelled,
//! and whoever started them waits for that. A panic in one ends the hive (`vital.rs`).

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
    let (supervisor, registry) = (&hive.supervisor, &hive.registry);
    let ends = obey_signals(Arc::clone(hive), renewed.clone(), signals, stop.clone());
    spawn(hive, "signals", ends);
    if let Some(own) = renewed.own {
        let stop = stop.clone();
        spawn(hive, "certificate", async move {
            stop.run_until_cancelled(keep_fresh(own)).await;
        });
    }
    let told = queen_contact::keep(Arc::clone(hive), renewed.token, stop.clone());
    spawn(hive, "queen contact", told);
    if let Some(idle) = hive.config.idle_stop() {
        spawn(hive, "idle workers", idle::keep(Arc::clone(registry), idle, stop.clone()));
    }
    let watched = watchdog::keep(Arc::clone(hive), hive.config.liveness(), stop.clone());
    spawn(hive, "watchdog", watched);
    spawn(hive, "restarts", Arc::clone(supervisor).keep_restarting(stop.clone()));
    spawn(hive, "past", Arc::clone(supervisor).keep_past(stop.clone()));
    spawn(hive, "catalog", rebuild_catalog(Arc::clone(hive), stop.clone()));
}

/// Starts one that ends the hive with it if it panics.
fn spawn(hive: &Hive, task: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    hive.tasks.spawn(hive.supervisor.vital().keep(task, work));
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
