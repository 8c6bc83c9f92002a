//! A worker's process as its owner holds it. Only the task that has this waits for it and signals it.

use std::io;
use std::process::ExitStatus;

use process_wrap::tokio::ChildWrapper;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::platform::ProcessHandle;

/// A process that lives until [`wait`](Self::wait) has returned.
#[derive(Debug)]
pub(super) enum OwnedProcess {
    /// This hive has started it.
    Child(Box<dyn ChildWrapper>),
    /// A former hive has started it.
    Adopted {
        handle: ProcessHandle,
        /// Cancelled when it has ended.
        ended: CancellationToken,
    },
}

impl OwnedProcess {
    /// Takes over a process that is proven to be a worker of a former hive.
    pub(super) fn adopt(handle: ProcessHandle) -> io::Result<Self> {
        let ended = handle.watch()?;
        Ok(Self::Adopted { handle, ended })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Child(child) => child.id(),
            Self::Adopted { handle, .. } => Some(handle.identity().pid),
        }
    }

    /// Waits for the end. How a process ended is told to its parent alone, so `None` for an adopted one. Cancel safe.
    pub(super) async fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match self {
            Self::Child(child) => child.wait().await.map(Some),
            Self::Adopted { ended, .. } => {
                ended.cancelled().await;
                Ok(None)
            }
        }
    }

    /// Sends a signal: to a child and all it has started, or to an adopted process.
    pub(super) fn signal(&self, signal: Signal) {
        let sent = match self {
            Self::Child(child) => child.signal(signal.as_raw()),
            Self::Adopted { handle, .. } => handle.signal(signal),
        };
        if let Err(error) = sent {
            tracing::warn!(pid = self.pid(), error = %error, "cannot signal a worker");
        }
    }

    /// Ends it without asking, and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Err(error) = self.wait().await {
            tracing::error!(error = %error, "cannot wait for a worker");
        }
    }
}
