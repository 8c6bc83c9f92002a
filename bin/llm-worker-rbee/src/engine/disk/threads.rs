//! The two threads beside the engine that wait for the disk: one reads, one
//! writes. They end when the engine lets go of its side.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::directory::{Directory, DirectoryError, ReadError, Writing};
use super::meters::Meters;
use super::{DiskConfig, Inbox, News, Subject, ThreadSide, Write, WriteOutcome};
use crate::engine::memory::KeptId;
use crate::error::chain;

/// Starts both.
pub(super) fn start(config: DiskConfig, subject: Subject, side: ThreadSide) -> io::Result<()> {
    let ThreadSide { to_read, to_write, inbox, meters } = side;
    let (found, place) = sync_channel(1);
    let reader = Reader { inbox: Arc::clone(&inbox), meters: meters.clone() };
    let writer = Writer { inbox, meters, failing: false };
    spawn("disk-read", move || reader.run(config, &subject, &found, &to_read))?;
    spawn("disk-write", move || {
        if let Ok(directory) = place.recv() {
            writer.run(&directory, &to_write);
        }
    })
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
}

struct Reader {
    inbox: Arc<Inbox>,
    meters: Meters,
}

impl Reader {
    fn run(
        self,
        config: DiskConfig,
        subject: &Subject,
        found: &SyncSender<Directory>,
        to_read: &Receiver<KeptId>,
    ) {
        let DiskConfig { directory, bytes_max, model_sha256, shared } = config;
        let fingerprint = match subject.fingerprint(model_sha256.as_ref(), shared) {
            Ok(fingerprint) => fingerprint,
            Err(error) => {
                tracing::warn!(error = chain(&error), "no conversations are kept on disk");
                self.inbox.push(News::Off);
                return;
            }
        };
        let directory = Directory::new(directory, fingerprint, bytes_max);
        match directory.open() {
            Ok(change) => {
                set_bytes(&self.meters, change.bytes);
                directory.list(|kept| self.inbox.push(News::Found(kept)));
            }
            // It may become usable: the writer tries again.
            Err(error) => {
                self.meters.read_failures.increment(1);
                tracing::warn!(error = chain(&error), "kept conversations cannot be read");
            }
        }
        self.inbox.push(News::Listed);
        if found.send(directory.clone()).is_err() {
            return;
        }
        while let Ok(id) = to_read.recv() {
            self.inbox.push(News::Read { id, state: self.read(&directory, id) });
        }
    }

    fn read(&self, directory: &Directory, id: KeptId) -> Option<Vec<u8>> {
        match directory.read(id) {
            Ok(state) => Some(state),
            Err(ReadError::Gone) => None,
            Err(error @ (ReadError::Spoilt | ReadError::Io(_))) => {
                self.meters.read_failures.increment(1);
                tracing::debug!(error = chain(&error), "a kept conversation is computed again");
                None
            }
        }
    }
}

struct Writer {
    inbox: Arc<Inbox>,
    meters: Meters,
    /// Whether the last write failed, so that a failure is logged once.
    failing: bool,
}

impl Writer {
    fn run(mut self, directory: &Directory, to_write: &Receiver<Write>) {
        while let Ok(write) = to_write.recv() {
            let outcome = directory.write(&write);
            let id = write.id;
            // The state's memory is free before the engine makes the next one.
            drop(write);
            let outcome = self.judge(outcome);
            self.inbox.push(News::Written { id, outcome });
        }
    }

    fn judge(&mut self, outcome: Result<Writing, DirectoryError>) -> WriteOutcome {
        match outcome {
            Ok(Writing::TooBig) => WriteOutcome::TooBig,
            Ok(Writing::Done(change)) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("conversations are kept on disk again");
                }
                self.meters.writes.increment(1);
                set_bytes(&self.meters, change.bytes);
                WriteOutcome::Done { gone: change.gone }
            }
            Err(error) => {
                self.meters.write_failures.increment(1);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(error = chain(&error), "conversations cannot be kept on disk");
                }
                WriteOutcome::Failed
            }
        }
    }
}

fn set_bytes(meters: &Meters, bytes: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    meters.bytes.set(bytes as f64);
}
