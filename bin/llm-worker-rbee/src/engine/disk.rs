//! States of conversations on disk, so that they outlive the worker. Two
//! threads read and write; the engine thread hands over and picks up, and waits
//! for neither. Decides nothing about what is kept or used.

mod directory;
mod fingerprint;
mod format;
mod meters;
mod threads;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use input_validation::Sha256Hex;
use tokio::time::Instant;

use super::memory::{KeptId, Scope};
pub(crate) use fingerprint::{FileMark, Subject};
use meters::Meters;

/// Writes that may wait for the one before: each holds a whole state.
const WRITES_AHEAD_MAX: usize = 2;
/// Longest that a read may take; a request that waits for it is computed then.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a worker that starts waits to know what is there: what takes longer
/// is found while it serves.
const LIST_PATIENCE: Duration = Duration::from_secs(1);
/// How long nothing is written after a write that failed.
const REST: Duration = Duration::from_secs(60);

/// Where states are kept, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskConfig {
    /// Other workers may use it too.
    pub(crate) directory: PathBuf,
    /// Most bytes of all files in it, of all workers.
    pub(crate) bytes_max: u64,
    /// The digest of the model's file, if somebody knows it.
    pub(crate) model_sha256: Option<Sha256Hex>,
    /// Whether requests of different users share computed prompts.
    pub(crate) shared: bool,
}

/// A state that is to be written.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) id: KeptId,
    pub(crate) scope: Scope,
    pub(crate) tokens: Vec<u32>,
    pub(crate) state: Arc<Vec<u8>>,
    /// States that nobody needs once this one is there.
    pub(crate) replaces: Vec<KeptId>,
}

/// A state that lies on disk, and what it holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) id: KeptId,
    pub(crate) scope: Scope,
    pub(crate) tokens: Vec<u32>,
}

/// What the threads tell the engine.
#[derive(Debug)]
pub(crate) enum News {
    /// A state was there when the worker started.
    Found(Kept),
    /// All that were there have been told.
    Listed,
    /// A state was read; `None` for one that is not to be had.
    Read {
        id: KeptId,
        state: Option<Vec<u8>>,
    },
    Written {
        id: KeptId,
        outcome: WriteOutcome,
    },
    /// Nothing will ever be read or written.
    Off,
}

/// What came of a write.
#[derive(Debug)]
pub(crate) enum WriteOutcome {
    /// It is there, and these are not any more.
    Done {
        gone: Vec<KeptId>,
    },
    /// It will never fit.
    TooBig,
    Failed,
}

/// Where threads leave news. Bounded by what the engine asked for and by the
/// number of files there can be.
#[derive(Debug, Default)]
struct Inbox {
    news: Mutex<Vec<News>>,
    arrived: Condvar,
}

impl Inbox {
    fn push(&self, news: News) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push(news);
        self.arrived.notify_one();
    }

    fn take(&self) -> Vec<News> {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wait(&self, limit: Duration, goes_on: impl Fn(&[News]) -> bool) {
        let news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.arrived.wait_timeout_while(news, limit, |news| goes_on(news)));
    }
}

/// The threads' side.
#[derive(Debug)]
struct ThreadSide {
    to_read: Receiver<KeptId>,
    to_write: Receiver<Write>,
    inbox: Arc<Inbox>,
    meters: Meters,
}

/// The engine thread's side.
#[derive(Debug)]
pub(crate) struct Disk {
    reads: SyncSender<KeptId>,
    writes: SyncSender<Write>,
    inbox: Arc<Inbox>,
    /// What is being read, and since when.
    reading: Option<(KeptId, Instant)>,
    /// The state that was read last, until the end of the engine's round.
    read: Option<(KeptId, Vec<u8>)>,
    writing: usize,
    /// Until when nothing is written.
    rests_until: Option<Instant>,
    listed: bool,
    meters: Meters,
}

impl Disk {
    /// Starts the threads, and gives them a moment to find out what is there. A
    /// worker goes on without them where the operating system gives no thread.
    pub(crate) fn start(config: DiskConfig, subject: Subject) -> Option<Box<Self>> {
        match Self::try_start(config, subject) {
            Ok(disk) => {
                let is_unknown =
                    |news: &[News]| !matches!(news.last(), Some(News::Listed | News::Off));
                disk.inbox.wait(LIST_PATIENCE, is_unknown);
                Some(Box::new(disk))
            }
            Err(error) => {
                tracing::warn!(%error, "no conversations are kept on disk");
                None
            }
        }
    }

    fn try_start(config: DiskConfig, subject: Subject) -> io::Result<Self> {
        let (disk, side) = Self::with_side();
        threads::start(config, subject, side)?;
        Ok(disk)
    }

    fn with_side() -> (Self, ThreadSide) {
        let inbox = Arc::new(Inbox::default());
        let (reads, to_read) = sync_channel(1);
        let (writes, to_write) = sync_channel(WRITES_AHEAD_MAX);
        let meters = Meters::register();
        let side =
            ThreadSide { to_read, to_write, inbox: Arc::clone(&inbox), meters: meters.clone() };
        let disk = Self {
            reads,
            writes,
            inbox,
            reading: None,
            read: None,
            writing: 0,
            rests_until: None,
            listed: false,
            meters,
        };
        (disk, side)
    }

    /// Returns what has happened since the last call.
    pub(crate) fn take_news(&mut self) -> Vec<News> {
        let mut news = self.inbox.take();
        for item in &mut news {
            match item {
                News::Found(_) | News::Off => {}
                News::Listed => self.listed = true,
                News::Read { id, state } => {
                    self.reading = None;
                    self.read = state.take().map(|state| (*id, state));
                }
                News::Written { outcome, .. } => {
                    self.writing = self.writing.saturating_sub(1);
                    self.rests_until = match outcome {
                        WriteOutcome::Failed => Some(Instant::now() + REST),
                        WriteOutcome::Done { .. } | WriteOutcome::TooBig => None,
                    };
                }
            }
        }
        news
    }

    /// Waits until there is news.
    pub(crate) fn wait(&self, limit: Duration) {
        self.inbox.wait(limit, <[News]>::is_empty);
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.writing > 0
    }

    /// Whether there will be news before long.
    pub(crate) fn is_busy(&self) -> bool {
        self.is_writing() || self.reading.is_some() || !self.listed
    }

    /// Until when nothing is to be written, because it would fail.
    pub(crate) fn rests_until(&self) -> Option<Instant> {
        self.rests_until.filter(|until| *until > Instant::now())
    }

    /// Whether a read has taken so long that nobody should wait for another.
    pub(crate) fn hangs(&self) -> bool {
        self.reading.is_some_and(|(_, since)| since.elapsed() > READ_TIME_MAX)
    }

    /// Has a state read, unless another is being read; ask again then.
    ///
    /// # Errors
    /// Nothing will ever be read.
    pub(crate) fn ensure_reading(&mut self, id: KeptId) -> Result<(), Ended> {
        if self.reading.is_some() {
            return Ok(());
        }
        match self.reads.try_send(id) {
            Ok(()) => self.reading = Some((id, Instant::now())),
            Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return Err(Ended),
        }
        Ok(())
    }

    /// Whether this state has been read and waits to be taken.
    pub(crate) fn has(&self, id: KeptId) -> bool {
        self.read.as_ref().is_some_and(|(read, _)| *read == id)
    }

    /// Returns a state that has been read.
    pub(crate) fn take(&mut self, id: KeptId) -> Option<Vec<u8>> {
        if self.has(id) { self.read.take().map(|(_, state)| state) } else { None }
    }

    /// Lets go of a state that nobody took.
    pub(crate) fn end_round(&mut self) {
        self.read = None;
    }

    /// Counts a prompt that was taken from here.
    pub(crate) fn hit(&self) {
        self.meters.hits.increment(1);
    }

    /// Says how many states can be used.
    pub(crate) fn set_states(&self, states: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        self.meters.states.set(states as f64);
    }

    /// Has a state written, if it can be soon; whether it will be tried.
    pub(crate) fn try_write(&mut self, write: Write) -> bool {
        if self.rests_until().is_none() {
            match self.writes.try_send(write) {
                Ok(()) => {
                    self.writing += 1;
                    return true;
                }
                Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => {
                    self.rests_until = Some(Instant::now() + REST);
                }
            }
        }
        self.meters.dropped.increment(1);
        false
    }
}

/// The threads have ended.
#[derive(Debug, thiserror::Error)]
#[error("nothing is read from disk any more")]
pub(crate) struct Ended;

#[cfg(test)]
mod tests;
