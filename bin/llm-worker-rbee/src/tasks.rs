//! The closed list of background loops: signals, contact to the hive, and
//! the watch over the engine. Each ends when its future is
//! dropped; `lib.rs` owns them all.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::contact::{Contact, Orphaned};
use crate::engine::Snapshot;
use crate::http::App;

/// How often the state of loading and of the engine is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
/// How often the engine's progress is looked at.
const STALL_CHECKS_PER_LIMIT: u32 = 4;

/// Cancels `shutdown` at SIGTERM and SIGINT. A script of the echo engine can
/// have SIGTERM ignored.
pub(crate) fn watch_signals(
    shutdown: CancellationToken,
    ignore_sigterm: Arc<AtomicBool>,
) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if name == "SIGTERM" && ignore_sigterm.load(Ordering::Relaxed) {
                tracing::warn!(name, "signal ignored, as a script asked");
                continue;
            }
            tracing::info!(name, "stopping");
            shutdown.cancel();
        }
    })
}

/// Tells the hive of the load, then keeps contact, and cancels `shutdown` when the
/// worker has no hive any more; `reason` then holds why.
pub(crate) async fn keep_contact(
    app: App,
    mut contact: Contact,
    shutdown: CancellationToken,
    reason: Arc<OnceLock<Orphaned>>,
) {
    let mut watch = ticks(WATCH_INTERVAL);
    let orphaned = loop {
        watch.tick().await;
        if let Some(ready) = app.ready_report() {
            break contact.keep(&ready, |sequence| app.heartbeat(sequence)).await;
        }
        let progress = app.engine().snapshot().load_progress;
        if let Err(orphaned) = contact.tell_loading(progress).await {
            break orphaned;
        }
    };
    tracing::warn!(reason = ?orphaned, "no hive owns this worker; stopping");
    // It is orphaned once.
    reason.set(orphaned).ok();
    shutdown.cancel();
}

/// Returns when one engine step has taken longer than `limit`.
pub(crate) async fn watch_engine(app: App, limit: Duration) {
    let mut watch = ticks(limit / STALL_CHECKS_PER_LIMIT);
    let mut last_change = Instant::now();
    let mut last_steps = 0;
    loop {
        watch.tick().await;
        let Snapshot { stepping, engine_steps, .. } = app.engine().snapshot();
        if !stepping || engine_steps != last_steps {
            last_steps = engine_steps;
            last_change = Instant::now();
        } else if last_change.elapsed() >= limit {
            return;
        }
    }
}

/// Returns when no request is inside the engine.
pub(crate) async fn wait_until_idle(app: &App) {
    let mut watch = ticks(WATCH_INTERVAL);
    while app.engine().snapshot().requests_inside > 0 {
        watch.tick().await;
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
