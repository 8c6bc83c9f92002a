//! How a hive is told to end: once to end in peace, twice to end at once. Never ends anything itself.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two steps of an end. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shutdown {
    /// Cancelled when the hive is to take no new work, finish what runs, and end.
    pub(crate) stop: CancellationToken,
    /// Cancelled when it is to end without waiting any longer.
    pub(crate) hasten: CancellationToken,
}

impl Shutdown {
    /// Takes the first further step.
    pub(crate) fn advance(&self) {
        if self.stop.is_cancelled() {
            self.hasten.cancel();
        } else {
            self.stop.cancel();
        }
    }
}

/// The signals that ask a process to end.
#[derive(Debug)]
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// Takes the signals over from the operating system, whose own way would be to end the process at once.
    ///
    /// # Errors
    /// Returns the operating system's reason.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
