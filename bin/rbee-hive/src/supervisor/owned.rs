//! A worker's process as its owner holds it, with the control group it is in. Only the task that has this waits for it and
//! signals it.

use std::io;
use std::process::ExitStatus;

use input_validation::WorkerId;
use process_wrap::tokio::ChildWrapper;
use rustix::process::Signal;
use tokio_util::sync::CancellationToken;

use crate::cgroup::WorkerGroup;
use crate::platform::ProcessHandle;

/// A process that lives until [`wait`](Self::wait) has returned.
#[derive(Debug)]
pub(super) struct OwnedProcess {
    process: Process,
    group: WorkerGroup,
}

#[derive(Debug)]
enum Process {
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
    /// Takes a process that was just started.
    pub(super) fn started(child: Box<dyn ChildWrapper>, group: WorkerGroup) -> Self {
        Self { process: Process::Child(child), group }
    }

    /// Takes over a process that is proven to be a worker of a former hive.
    pub(super) fn adopt(handle: ProcessHandle, group: WorkerGroup) -> io::Result<Self> {
        let ended = handle.watch()?;
        Ok(Self { process: Process::Adopted { handle, ended }, group })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match &self.process {
            Process::Child(child) => child.id(),
            Process::Adopted { handle, .. } => Some(handle.identity().pid),
        }
    }

    /// Waits for the end. How a process ended is told to its parent alone, so `None` for an adopted one. Cancel safe.
    pub(super) async fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match &mut self.process {
            Process::Child(child) => child.wait().await.map(Some),
            Process::Adopted { ended, .. } => {
                ended.cancelled().await;
                Ok(None)
            }
        }
    }

    /// Sends a signal to it and to all of the session that it leads.
    pub(super) fn signal(&self, signal: Signal) {
        let sent = match &self.process {
            Process::Child(child) => child.signal(signal.as_raw()),
            Process::Adopted { handle, .. } => handle.signal_session(signal),
        };
        if let Err(error) = sent {
            tracing::warn!(pid = self.pid(), error = %error, "cannot signal a worker");
        }
    }

    /// Ends it without asking, with all that is in its control group, and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.group.kill();
        if let Err(error) = self.wait().await {
            tracing::error!(error = %error, "cannot wait for a worker");
        }
    }

    /// Whether the kernel has killed it, or what it has started, because memory was used up; `None` where that is not known.
    /// It is as long as its control group is there.
    pub(super) fn has_run_out_of_memory(&self) -> Option<bool> {
        self.group.has_run_out_of_memory()
    }

    /// Removes what is left of a process that is gone: what it has started and not ended, and its control group.
    pub(super) async fn clear(self, id: &WorkerId) {
        self.group.clear(id).await;
    }
}
