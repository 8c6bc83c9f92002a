//! The machine as admission sees it: memory, the disk of the models, GPUs. A boundary, so that a test can be any machine;
//! what is not known is `None` or missing, never a guess. Disk and GPUs are read on threads of their own.

mod probe;

use std::cell::OnceCell;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join};
use rustix::fs::statvfs;

use crate::admission::Unanswered;
use crate::gpus::GpuProbe;
use crate::platform;
use probe::Probe;

pub(crate) use crate::gpus::Gpu;
pub(crate) use crate::platform::Memory;

/// The file system that holds the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disk {
    /// All of it.
    pub(crate) total_bytes: u64,
    /// What is written.
    pub(crate) used_bytes: u64,
    /// What this user can still write; less than what is not written, where some of that is kept for root.
    pub(crate) available_bytes: u64,
    /// Files that can still be made; `None` where the file system has no such limit.
    pub(crate) inodes_available: Option<u64>,
    /// Files that it can have at most; `None` likewise.
    pub(crate) inodes_total: Option<u64>,
}

/// What a machine can tell about itself.
pub(crate) trait Machine: Debug + Send + Sync {
    /// Reads disk and GPUs anew, and waits for that a limited time; what they tell is what was read last.
    fn refresh(&self) -> BoxFuture<'_, ()>;
    /// Returns which of them do not answer, so that what they tell is out of date.
    fn unanswered(&self) -> Unanswered;
    /// Returns the memory.
    fn memory(&self) -> Option<Memory>;
    /// Returns how much memory of its own a process holds.
    fn taken_bytes(&self, pid: u32) -> Option<u64>;
    /// Returns the room where the models lie.
    fn disk(&self) -> Option<Disk>;
    /// Returns the GPUs whose memory is known.
    fn gpus(&self) -> Vec<Gpu>;
}

/// The machine that this program runs on.
#[derive(Debug)]
pub(crate) struct ThisMachine {
    disk: Probe<Option<Disk>>,
    gpus: Probe<Vec<Gpu>>,
}

impl ThisMachine {
    /// # Errors
    /// The operating system's, when there are no threads.
    pub(crate) fn new(models_dir: PathBuf) -> io::Result<Self> {
        // To look for a driver may take as long as to ask it.
        let gpus = OnceCell::new();
        Ok(Self {
            disk: Probe::start("disk", move || disk_of(&models_dir))?,
            gpus: Probe::start("gpus", move || gpus.get_or_init(GpuProbe::open).read())?,
        })
    }
}

impl Machine for ThisMachine {
    fn refresh(&self) -> BoxFuture<'_, ()> {
        join(self.disk.refresh(), self.gpus.refresh()).map(|_| ()).boxed()
    }

    fn unanswered(&self) -> Unanswered {
        Unanswered { disk: self.disk.unanswered_for(), gpus: self.gpus.unanswered_for() }
    }

    fn memory(&self) -> Option<Memory> {
        platform::memory()
    }

    fn taken_bytes(&self, pid: u32) -> Option<u64> {
        platform::anonymous_bytes(pid)
    }

    fn disk(&self) -> Option<Disk> {
        self.disk.last()
    }

    fn gpus(&self) -> Vec<Gpu> {
        self.gpus.last()
    }
}

fn disk_of(directory: &Path) -> Option<Disk> {
    let found = statvfs(directory).ok()?;
    let has_inodes = found.f_files > 0;
    let used = found.f_blocks.saturating_sub(found.f_bfree);
    Some(Disk {
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        used_bytes: used.saturating_mul(found.f_frsize),
        available_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        inodes_available: has_inodes.then_some(found.f_favail),
        inodes_total: has_inodes.then_some(found.f_files),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_disk_is_the_one_that_the_directory_lies_on() {
        let directory = tempfile::tempdir().unwrap();
        let machine = ThisMachine::new(directory.path().to_owned()).unwrap();
        machine.refresh().await;
        assert_eq!(machine.unanswered(), Unanswered::default());
        let disk = machine.disk().unwrap();
        assert!(disk.total_bytes >= disk.available_bytes && disk.total_bytes > 0);
        assert!(disk.inodes_total >= disk.inodes_available);
        assert_eq!(disk_of(&directory.path().join("missing")), None);
    }
}
