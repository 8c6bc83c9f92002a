//! A process of this machine by its pidfd, which names it for good: its number may be given to another when it is
//! gone, the descriptor never. Needs Linux; elsewhere no process can be told from another, so none is ever taken over.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio_util::sync::CancellationToken;

/// What `statfs` says of the file system that pidfds have been on since Linux 6.9.
const PIDFS_MAGIC: u64 = 0x5049_4446;
/// The place of the start time in `/proc/<pid>/stat`, counted from the field after the program's name.
const START_TIME_FIELD: usize = 19;

/// What tells a process from every other one this machine ever runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProcessIdentity {
    /// Changes with each start of the machine.
    pub(crate) boot_id: String,
    /// Its number, which another gets when it is gone.
    pub(crate) pid: u32,
    /// When it started, in ticks since the machine's start: too coarse to be proof alone.
    pub(crate) start_ticks: u64,
    /// The inode of its pidfd, which no other process of this boot has; `None` before Linux 6.9.
    pub(crate) inode: Option<u64>,
}

impl ProcessIdentity {
    /// Whether two descriptions certainly mean the same process. Without inodes nothing is certain.
    pub(crate) fn proves(&self, other: &Self) -> bool {
        self.inode.is_some() && self == other
    }
}

/// A process that lives or has lived.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    descriptor: Arc<OwnedFd>,
    identity: ProcessIdentity,
}

impl ProcessHandle {
    /// Opens the process that has the number now.
    ///
    /// # Errors
    /// The operating system's; `NotFound` when there is none or it is not told.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        let descriptor = pidfd_open(number, PidfdFlags::empty())?;
        let start_ticks = start_ticks(pid).ok_or_else(gone)?;
        let identity =
            ProcessIdentity { boot_id: boot_id()?, pid, start_ticks, inode: inode(&descriptor)? };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // What was read by number is of this process only if it lives still.
        if has_ended(&descriptor, Some(&at_once))? {
            return Err(gone());
        }
        Ok(Self { descriptor: Arc::new(descriptor), identity })
    }

    pub(crate) fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Returns what is cancelled when the process has ended. Takes a thread until then: a process that is no child
    /// cannot be waited for otherwise without unsafe code, and few are ever adopted.
    ///
    /// # Errors
    /// The operating system's, when there is no thread.
    pub(crate) fn watch(&self) -> io::Result<CancellationToken> {
        let ended = CancellationToken::new();
        let (descriptor, told) = (Arc::clone(&self.descriptor), ended.clone().drop_guard());
        thread::Builder::new().name(format!("watch-{}", self.identity.pid)).spawn(move || {
            let _told = told;
            while matches!(has_ended(&descriptor, None), Ok(false) | Err(Errno::INTR)) {}
        })?;
        Ok(ended)
    }

    /// Sends a signal; to a process that has ended it does nothing.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&*self.descriptor, signal) {
            Err(Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A pidfd can be read once its process has ended, be it waited for or not.
fn has_ended(descriptor: &OwnedFd, limit: Option<&Timespec>) -> Result<bool, Errno> {
    let mut watched = [PollFd::new(descriptor, PollFlags::IN)];
    Ok(poll(&mut watched, limit)? > 0)
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn inode(descriptor: impl AsFd) -> io::Result<Option<u64>> {
    let system = rustix::fs::fstatfs(&descriptor)?;
    let is_pidfs = u64::try_from(system.f_type).is_ok_and(|magic| magic == PIDFS_MAGIC);
    Ok(if is_pidfs { Some(rustix::fs::fstat(&descriptor)?.st_ino) } else { None })
}

fn start_ticks(pid: u32) -> Option<u64> {
    parse_start_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The program's name stands in brackets and may hold anything, brackets and spaces too.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(START_TIME_FIELD)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test of processes needs one")]
    fn sleeping() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[test]
    fn a_name_full_of_brackets_does_not_hide_the_start_time() {
        let rest = "S 1 2 2 0 -1 4194560 1 0 0 0 1 0 0 0 20 0 1 0 98765 1 2 3";
        for name in ["sh", "a) b", ") (", "((x)"] {
            assert_eq!(parse_start_ticks(&format!("42 ({name}) {rest}")), Some(98765));
        }
        assert_eq!(parse_start_ticks("42 (sh) S 1"), None);
        assert_eq!(parse_start_ticks(""), None);
    }

    #[tokio::test]
    async fn a_handle_knows_its_process_from_its_start_to_its_end() {
        let mut child = sleeping();
        let handle = ProcessHandle::open(child.id()).unwrap();
        let again = ProcessHandle::open(child.id()).unwrap();
        assert!(handle.identity().proves(again.identity()));
        let other = ProcessHandle::open(std::process::id()).unwrap();
        assert!(!handle.identity().proves(other.identity()));
        let ended = handle.watch().unwrap();
        assert!(!ended.is_cancelled());
        handle.signal(Signal::KILL).unwrap();
        ended.cancelled().await;
        assert!(ProcessHandle::open(child.id()).is_err(), "a zombie is not a process to take over");
        child.wait().unwrap();
        handle.signal(Signal::KILL).unwrap();
        assert!(ProcessHandle::open(child.id()).is_err());
    }

    #[test]
    fn a_number_used_again_does_not_mean_the_same_process() {
        let handle = ProcessHandle::open(std::process::id()).unwrap();
        let stranger = ProcessIdentity {
            inode: handle.identity().inode.map(|inode| inode + 1),
            ..handle.identity().clone()
        };
        assert!(!stranger.proves(handle.identity()));
        let unknown = ProcessIdentity { inode: None, ..handle.identity().clone() };
        assert!(!unknown.proves(&unknown.clone()));
        let rebooted =
            ProcessIdentity { boot_id: "another".to_owned(), ..handle.identity().clone() };
        assert!(!rebooted.proves(handle.identity()));
    }
}
