//! Ctrl-C and SIGTERM. Owns the signal handlers and their exit codes; what is cancelled is whatever is dropped when
//! one arrives.

use std::fmt;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::KeeperError;

/// Which signal asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// SIGINT, which a terminal sends on Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Stop {
    /// Returns 128 and the number of the signal, as shells do.
    pub(crate) const fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "interrupted",
            Self::Terminate => "terminated",
        })
    }
}

/// The signals, from the moment of creation on.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// Fails when the operating system refuses.
    pub(crate) fn listen() -> Result<Self, KeeperError> {
        let install = |kind| {
            signal(kind)
                .map_err(|source| KeeperError::Setup { action: "listen for signals", source })
        };
        Ok(Self {
            interrupt: install(SignalKind::interrupt())?,
            terminate: install(SignalKind::terminate())?,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Stop {
        tokio::select! {
            biased;
            Some(()) = self.terminate.recv() => Stop::Terminate,
            Some(()) = self.interrupt.recv() => Stop::Interrupt,
            // Both ends only close with the runtime.
            else => Stop::Terminate,
        }
    }

    /// Waits for `work`, or drops it when a signal comes first.
    ///
    /// # Errors
    /// [`KeeperError::Stopped`], or what `work` says.
    pub(crate) async fn unless_stopped<T>(
        &mut self,
        work: impl Future<Output = Result<T, KeeperError>>,
    ) -> Result<T, KeeperError> {
        tokio::select! {
            biased;
            stop = self.next() => Err(KeeperError::Stopped(stop)),
            done = work => done,
        }
    }
}
