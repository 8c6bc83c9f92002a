//! The thread that writes one log: takes events from a bounded queue, many at a time, links them, syncs them where
//! somebody waits for that, and signs checkpoints. Owns the files; never drops an entry without counting it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use metrics::{counter, gauge};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::auditor::Shared;
use crate::chain::{Chain, Found};
use crate::checkpoints::Checkpoints;
use crate::event::{Event, Kind, Outcome};
use crate::signature::Signer;

/// Entries after which a checkpoint is signed.
pub(crate) const CHECKPOINT_ENTRIES: u64 = 1000;
/// Time after which one is signed, if there are new entries.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(60);
/// Entries written together; whoever waits for the disk waits for that many at most.
pub(crate) const BATCH_MAX: usize = 256;
/// How long the writer lets entries gather for which nobody waits: requests then do not pay for waking it, each time
/// several microseconds.
const GATHER: Duration = Duration::from_millis(10);
/// Time after which repeated failures are told, and a disk that failed is tried again.
const SOON: Duration = Duration::from_secs(1);

/// What the writer is asked for.
#[derive(Debug)]
pub(crate) enum Order {
    /// To write an event.
    Write {
        event: Event,
        /// Told whether it is on the disk; `None` where nobody waits for that.
        written: Option<oneshot::Sender<bool>>,
    },
    /// To write what waits, sign it, and end.
    End(oneshot::Sender<()>),
}

impl Order {
    /// Says whether somebody waits for it.
    pub(crate) const fn is_urgent(&self) -> bool {
        matches!(self, Self::Write { written: Some(_), .. } | Self::End(_))
    }
}

/// What writes the log.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) chain: Chain,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) signer: Signer,
    pub(crate) service: String,
    pub(crate) shared: Arc<Shared>,
    /// Entries that could not be written and of which the log does not tell yet.
    pub(crate) untold: u64,
    pub(crate) checkpoint_due: Instant,
    /// When what failed beside the entries is tried again.
    pub(crate) retry_at: Option<Instant>,
}

impl Writer {
    /// Writes how the log was found and that its daemon begins, and signs that. To be called once, before all else.
    pub(crate) fn begin(&mut self, found: Found, start: Event) -> io::Result<()> {
        let mut events = Vec::new();
        let signed = self.checkpoints.newest().map_or(0, |newest| newest.sequence);
        let is_cut = signed > self.chain.last().sequence;
        match found {
            Found::Good | Found::Torn { .. } if is_cut => {
                tracing::error!("the audit log has lost its end; `rbee audit verify` says what");
                let event = Event::new(Kind::Damaged, Outcome::Failure);
                events.push(event.with_number("signed_through", signed));
            }
            Found::Good => {}
            Found::Torn { bytes } => {
                tracing::warn!(
                    bytes,
                    "the audit log ended in the middle of an entry, which was cut off"
                );
                let event = Event::new(Kind::Recovered, Outcome::Success);
                events.push(event.with_number("cut_bytes", bytes));
            }
            Found::Damaged { lines } => {
                tracing::error!(
                    "the audit log was changed or damaged; `rbee audit verify` says where"
                );
                let event = Event::new(Kind::Damaged, Outcome::Failure);
                events.push(event.with_number("bad_lines_at_least", lines));
                // The file that follows the damage begins with an entry whose predecessor is signed.
                self.checkpoint_if_new()?;
            }
        }
        let key = self.signer.key();
        events.push(start.with("checkpoint_key", key));
        self.append(&events, true)?;
        self.checkpoint()?;
        self.remove_outdated()
    }

    /// Writes until the last handle is gone, or until told to end.
    pub(crate) fn run(mut self, orders: &Receiver<Order>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            match orders.recv_timeout(self.patience()) {
                Ok(order) => {
                    self.gather(&order);
                    batch.push(order);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.sign_last();
                    return;
                }
            }
            batch.extend(orders.try_iter().take(BATCH_MAX - batch.len()));
            self.shared.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
            let due = self.shared.failures.take_due(Timestamp::now());
            batch.extend(due.into_iter().map(|event| Order::Write { event, written: None }));
            if let Some(done) = self.write(&mut batch) {
                self.sign_last();
                // Whoever asked may have stopped waiting.
                done.send(()).ok();
                return;
            }
            self.look_after();
        }
    }

    /// Gives what follows `first` time to come, unless somebody waits for it or for what comes meanwhile.
    fn gather(&self, first: &Order) {
        if !first.is_urgent() && self.shared.waiting.load(Ordering::Relaxed) < BATCH_MAX {
            // Whoever sends an urgent order ends this early.
            std::thread::park_timeout(GATHER);
        }
    }

    fn patience(&self) -> Duration {
        let until_checkpoint = self.checkpoint_due.saturating_duration_since(Instant::now());
        let is_soon =
            self.untold > 0 || self.retry_at.is_some() || self.shared.failures.is_pending();
        let longest = if is_soon { SOON } else { CHECKPOINT_EVERY };
        until_checkpoint.clamp(Duration::from_millis(1), longest)
    }

    /// Writes a batch, and tells whoever waits for it. Returns whom to tell that all is written, where the end is asked
    /// for.
    fn write(&mut self, batch: &mut Vec<Order>) -> Option<oneshot::Sender<()>> {
        let (mut events, mut waiting) = (Vec::with_capacity(batch.len() + 1), Vec::new());
        let mut end = None;
        if self.untold > 0 {
            let event = Event::new(Kind::Lost, Outcome::Failure);
            events.push(event.with_number("entries", self.untold));
        }
        let mut unwaited = 0;
        for order in batch.drain(..) {
            match order {
                Order::Write { event, written } => {
                    events.push(event);
                    unwaited += u64::from(written.is_none());
                    waiting.extend(written);
                }
                Order::End(done) => end = Some(done),
            }
        }
        if events.is_empty() {
            return end;
        }
        let outcome = self.append(&events, !waiting.is_empty());
        let is_written = outcome.is_ok();
        match outcome {
            Ok(()) => self.untold = 0,
            Err(error) => self.lose(unwaited, &error),
        }
        self.shared.set_failing(!is_written);
        for waiter in waiting {
            // Whoever asked may have stopped waiting.
            waiter.send(is_written).ok();
        }
        end
    }

    /// Counts what could not be written.
    fn lose(&mut self, entries: u64, error: &io::Error) {
        if !self.shared.is_failing() {
            tracing::error!(%error, "the audit log cannot be written; what it has to tell of is refused");
        }
        self.untold = self.untold.saturating_add(entries);
        self.shared.count_lost(entries);
    }

    fn append(&mut self, events: &[Event], durably: bool) -> io::Result<()> {
        let mut lines = Vec::with_capacity(512 * events.len());
        let last = events.iter().fold(self.chain.last(), |last, event| {
            last.append(&event.body(&self.service), &mut lines)
        });
        if durably {
            self.chain.append_durably(&lines, last)?;
        } else {
            self.chain.append(&lines, last)?;
        }
        counter!("rbee_audit_entries_total").increment(u64::try_from(events.len()).unwrap_or(0));
        self.shared.entries.store(last.sequence, Ordering::Relaxed);
        Ok(())
    }

    /// Signs a checkpoint when one is due, and begins a new file when this one is full.
    fn look_after(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let outcome = self.try_to_look_after();
        self.tell_trouble(outcome);
    }

    fn try_to_look_after(&mut self) -> io::Result<()> {
        let covered = self.checkpoints.newest().map_or(0, |newest| newest.sequence);
        let entries = self.chain.last().sequence.saturating_sub(covered);
        if entries >= CHECKPOINT_ENTRIES || Instant::now() >= self.checkpoint_due {
            self.checkpoint_if_new()?;
            self.checkpoint_due = Instant::now() + CHECKPOINT_EVERY;
        }
        if self.chain.is_full() { self.rotate() } else { Ok(()) }
    }

    /// Logs trouble when it begins, not at each attempt.
    fn tell_trouble(&mut self, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.retry_at = None,
            Err(error) => {
                if self.retry_at.is_none() {
                    tracing::error!(%error, "the audit log cannot be signed or continued; trying again");
                }
                self.retry_at = Some(Instant::now() + SOON);
            }
        }
    }

    /// Signs what the log ends with.
    fn sign_last(&mut self) {
        let outcome = self.checkpoint_if_new();
        self.tell_trouble(outcome);
    }

    /// Signs that a file ends here before the next one begins, so that the next one can stand without it.
    fn rotate(&mut self) -> io::Result<()> {
        self.checkpoint_if_new()?;
        self.chain.rotate()?;
        self.remove_outdated()
    }

    /// Removes files as configured. That they are going stands in the log before they are gone.
    fn remove_outdated(&mut self) -> io::Result<()> {
        let outdated = self.chain.outdated(SystemTime::now())?;
        if outdated.is_empty() {
            return Ok(());
        }
        let gone = |first: &u64| outdated.iter().any(|segment| segment.first == *first);
        let firsts: Vec<u64> =
            self.chain.firsts()?.into_iter().filter(|first| !gone(first)).collect();
        let Some(first) = firsts.first() else { return Ok(()) };
        let event = Event::new(Kind::Retention, Outcome::Success)
            .with_number("removed_through", first.saturating_sub(1));
        self.append(&[event], true)?;
        self.checkpoint()?;
        for segment in &outdated {
            std::fs::remove_file(&segment.path)?;
        }
        let directory = self.chain.directory().to_owned();
        self.checkpoints.prune(&directory, &firsts)
    }

    fn checkpoint_if_new(&mut self) -> io::Result<()> {
        let covered = self.checkpoints.newest().map_or(0, |newest| newest.sequence);
        if covered == self.chain.last().sequence {
            return Ok(());
        }
        self.checkpoint()
    }

    /// Signs the last entry, once it is on the disk: a checkpoint never tells of more than there is.
    fn checkpoint(&mut self) -> io::Result<()> {
        self.chain.sync()?;
        let checkpoint = self.signer.sign(self.chain.last());
        self.checkpoints.add(checkpoint.clone())?;
        self.shared.set_checkpoint(checkpoint);
        self.checkpoint_due = Instant::now() + CHECKPOINT_EVERY;
        Ok(())
    }
}

/// Registers the metrics, so that they are there before anything happens.
pub(crate) fn register_metrics() {
    counter!("rbee_audit_entries_total").increment(0);
    counter!("rbee_audit_entries_lost_total").increment(0);
    counter!("rbee_audit_refusals_total").increment(0);
    counter!("rbee_audit_peer_regressions_total").increment(0);
    gauge!("rbee_audit_failing").set(0.0);
}
