//! The handle by which a daemon writes things down. Two ways in: what must not happen unwritten waits for the disk and
//! is refused without it; all else goes on, and is counted where it could not be written.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use input_validation::RequestId;
use jiff::Timestamp;
use metrics::{counter, gauge};
use rbee_api::audit::{AuditCheckpoint, AuditMode, AuditStatus};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::chain::{Chain, Limits};
use crate::checkpoints::Checkpoints;
use crate::error::AuditError;
use crate::event::{Actor, Event, Kind, Outcome, SubjectKind};
use crate::failures::Failures;
use crate::held::{Held, hold};
use crate::settings::AuditSettings;
use crate::signature::Signer;
use crate::writer::{Order, Writer, register_metrics};

/// Events that may wait to be written: about a megabyte.
const QUEUE_MAX: usize = 4096;
/// Of those so many are kept for what must be written down.
const QUEUE_RESERVED: usize = 512;
/// How long a disk may take. A healthy one takes milliseconds.
const DURABLE_LIMIT: Duration = Duration::from_secs(5);
/// How long the end may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Where a log lies and how it is kept.
#[derive(Debug)]
pub struct Options {
    /// Its directory, made where it is missing.
    pub directory: PathBuf,
    /// Whose log it is, as it stands in every entry.
    pub service: String,
    /// How it is kept.
    pub settings: AuditSettings,
    /// Signs its checkpoints.
    pub signer: Signer,
}

/// Writes down who did what. Clones write to the same log; one that is off writes nowhere.
#[derive(Debug, Clone, Default)]
pub struct Auditor(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    orders: SyncSender<Order>,
    writer: Thread,
    shared: Arc<Shared>,
    settings: AuditSettings,
    successes: AtomicU64,
}

/// What the handles and the writer have in common.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) waiting: AtomicUsize,
    pub(crate) entries: AtomicU64,
    pub(crate) failures: Failures,
    lost: AtomicU64,
    failing: AtomicBool,
    checkpoint: Mutex<Option<AuditCheckpoint>>,
}

impl Shared {
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
        gauge!("rbee_audit_failing").set(if failing { 1.0 } else { 0.0 });
    }

    pub(crate) fn count_lost(&self, entries: u64) {
        self.lost.fetch_add(entries, Ordering::Relaxed);
        counter!("rbee_audit_entries_lost_total").increment(entries);
    }

    pub(crate) fn set_checkpoint(&self, checkpoint: AuditCheckpoint) {
        *lock(&self.checkpoint) = Some(checkpoint);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Auditor {
    /// Returns one that writes nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Opens a log, writes down that its daemon begins, and starts its writer. Blocks for the disk. What a crash left
    /// half written is cut off, of which an entry tells.
    ///
    /// # Errors
    /// [`AuditError`] when the log cannot be written: a daemon that should keep one must not run without it.
    pub fn open(options: Options, start: Event) -> Result<Self, AuditError> {
        let Options { directory, service, settings, signer } = options;
        register_metrics();
        let limits = Limits {
            segment_bytes: settings.segment_mib << 20,
            segments_max: usize::try_from(settings.segments_max).unwrap_or(usize::MAX),
            age_max: Duration::from_secs(settings.retention_days * 24 * 60 * 60),
        };
        let (chain, found) = Chain::open(&directory, limits)?;
        let checkpoints = Checkpoints::open(&directory)
            .map_err(AuditError::io("read checkpoints in", &directory))?;
        let shared = Arc::new(Shared::default());
        let mut writer = Writer {
            chain,
            checkpoints,
            signer,
            service,
            shared: Arc::clone(&shared),
            untold: 0,
            checkpoint_due: Instant::now(),
            retry_at: None,
        };
        writer.begin(found, start).map_err(AuditError::io("write audit log in", &directory))?;
        let (orders, received) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(AuditError::Thread)?;
        let (writer, successes) = (thread.thread().clone(), AtomicU64::new(0));
        Ok(Self(Some(Arc::new(Inner { orders, writer, shared, settings, successes }))))
    }

    /// Writes something down without waiting. Where that is not possible it is counted as lost.
    pub fn note(&self, event: Event) {
        let Some(inner) = &self.0 else { return };
        let reserved = if event.kind().is_inference() { QUEUE_RESERVED } else { 0 };
        if inner.shared.waiting.load(Ordering::Relaxed) + reserved >= QUEUE_MAX
            || !inner.send(Order::Write { event, written: None })
        {
            inner.shared.count_lost(1);
        }
    }

    /// Writes something down that must not happen otherwise, and returns once it is on the disk. An entry may be
    /// written even if the caller stops waiting.
    ///
    /// # Errors
    /// [`AuditError`] when it is not: then the caller must not do it.
    pub async fn record(&self, event: Event) -> Result<(), AuditError> {
        let Some(inner) = &self.0 else { return Ok(()) };
        let (written, outcome) = oneshot::channel();
        let outcome = if inner.send(Order::Write { event, written: Some(written) }) {
            match timeout(DURABLE_LIMIT, outcome).await {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false) | Err(_)) => AuditError::NotWritten,
                Err(_) => AuditError::TimedOut,
            }
        } else {
            AuditError::Full
        };
        counter!("rbee_audit_refusals_total").increment(1);
        Err(outcome)
    }

    /// Writes down a failed credential; many of one address within a second become two entries.
    pub fn note_auth_failure(&self, actor: Actor, event: Event) {
        let Some(inner) = &self.0 else { return };
        for event in inner.shared.failures.add(actor, event, Timestamp::now()) {
            self.note(event);
        }
    }

    /// Writes down a good credential, where that is configured and it is this one's turn.
    pub fn note_auth_success(&self, event: impl FnOnce() -> Event) {
        let Some(inner) = &self.0 else { return };
        let one_in = inner.settings.auth_success_sample;
        if one_in > 0 && inner.successes.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in) {
            self.note(event());
        }
    }

    /// Says whether a request for inference is to be written down. Every daemon says the same of one request.
    #[must_use]
    pub fn samples(&self, request: &RequestId) -> bool {
        let Some(inner) = &self.0 else { return false };
        match inner.settings.inference_sample {
            0 => false,
            1 => true,
            one_in => sample_of(request).is_multiple_of(one_in),
        }
    }

    /// Returns the newest checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Option<AuditCheckpoint> {
        lock(&self.0.as_ref()?.shared.checkpoint).clone()
    }

    /// Keeps a checkpoint of the machine `name` in the directory of all logs, and tells where that machine's log is
    /// shorter, or another, than it was. A disk that does not take it is logged.
    ///
    /// # Errors
    /// [`AuditError::BadCheckpoint`] and [`AuditError::TooManyKeys`]: it is not to be kept.
    pub async fn hold(
        &self,
        audit_directory: &Path,
        name: &str,
        checkpoint: AuditCheckpoint,
    ) -> Result<(), AuditError> {
        let (directory, machine) = (audit_directory.to_owned(), name.to_owned());
        let kept =
            tokio::task::spawn_blocking(move || hold(&directory, &machine, &checkpoint)).await;
        match kept {
            Ok(Ok(Held::New | Held::Known | Held::NewKey)) => {}
            Ok(Ok(Held::Regressed { held })) => {
                tracing::error!(
                    machine = name,
                    held,
                    "the audit log of a machine is shorter, or another, than it was"
                );
                counter!("rbee_audit_peer_regressions_total").increment(1);
                let event = Event::new(Kind::PeerRegressed, Outcome::Failure);
                self.note(event.on(SubjectKind::Machine, name).with_number("held", held));
            }
            Ok(Err(error @ (AuditError::BadCheckpoint | AuditError::TooManyKeys))) => {
                return Err(error);
            }
            Ok(Err(error)) => {
                tracing::warn!(machine = name, %error, "a checkpoint cannot be kept");
            }
            Err(error) => tracing::error!(machine = name, %error, "a checkpoint cannot be kept"),
        }
        Ok(())
    }

    /// Returns the state of the log.
    #[must_use]
    pub fn status(&self) -> AuditStatus {
        match &self.0 {
            None => AuditStatus { mode: AuditMode::Off, ..AuditStatus::default() },
            Some(inner) => AuditStatus {
                mode: AuditMode::File,
                entries: inner.shared.entries.load(Ordering::Relaxed),
                entries_lost: inner.shared.lost.load(Ordering::Relaxed),
                failing: inner.shared.is_failing(),
            },
        }
    }

    /// Writes that the daemon ends, signs it and ends the writer. What is noted afterwards is lost.
    pub async fn close(&self, stop: Event) {
        let Some(inner) = &self.0 else { return };
        if let Err(error) = self.record(stop).await {
            tracing::warn!(%error, "the end is not in the audit log");
        }
        let (done, ended) = oneshot::channel();
        if !inner.send(Order::End(done)) || timeout(CLOSE_LIMIT, ended).await.is_err() {
            tracing::warn!("the audit log was not closed in time");
        }
    }
}

impl Inner {
    /// Says whether the order was taken.
    fn send(&self, order: Order) -> bool {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let is_urgent = order.is_urgent();
        let is_taken = self.orders.try_send(order).is_ok();
        if !is_taken {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        } else if is_urgent {
            self.writer.unpark();
        }
        is_taken
    }
}

/// FNV-1a: the same in every process, which a hasher of the standard library is not.
fn sample_of(request: &RequestId) -> u64 {
    let text: &str = request.as_ref();
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Event {
    /// Tells that a daemon begins or ends: its version and process.
    #[must_use]
    pub fn of_daemon(kind: Kind, version: &str) -> Self {
        Self::new(kind, Outcome::Success)
            .with("version", version)
            .with_number("pid", u64::from(std::process::id()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_sampled_alike_everywhere_and_about_as_often_as_asked() {
        let sampled = (0..10_000_u32)
            .filter(|n| sample_of(&format!("req-{n}").parse().unwrap()).is_multiple_of(10))
            .count();
        assert!((700..1300).contains(&sampled), "{sampled}");
        let id: RequestId = "req-12345".parse().unwrap();
        assert_eq!(sample_of(&id), sample_of(&"req-12345".parse().unwrap()));
    }
}
