//! A process of this machine by its pidfd, which names it for good: its number may be given to another when it is
//! gone, the descriptor never. Needs Linux; elsewhere no process can be told from another, so none is ever taken over.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
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

/// The place of the session's number, counted likewise.
const SESSION_FIELD: usize = 3;

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
        let start_ticks = start_ticks(pid)?.ok_or_else(gone)?;
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
        send(&self.descriptor, signal)
    }

    /// Sends a signal to the process and to all of its session, which it leads. As long as it lives nobody else's session
    /// has its number, so that each process is proven by what is read of it through a descriptor of its own.
    ///
    /// # Errors
    /// The operating system's, of the process itself.
    pub(crate) fn signal_session(&self, signal: Signal) -> io::Result<()> {
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        for number in numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            if number != self.identity.pid
                && let Err(error) = self.signal_member(number, signal)
            {
                tracing::debug!(pid = number, %error, "a process of a worker's session cannot be signalled");
            }
        }
        self.signal(signal)
    }

    /// Signals one process if it is of the session that this one leads.
    fn signal_member(&self, number: u32, signal: Signal) -> io::Result<()> {
        let is_of_it = || session(number) == Some(self.identity.pid);
        if !is_of_it() {
            return Ok(());
        }
        let Some(number) = i32::try_from(number).ok().and_then(Pid::from_raw) else {
            return Ok(());
        };
        let member = pidfd_open(number, PidfdFlags::empty())?;
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Read again now that the number is held, and then looked whether both were there all the time.
        let is_proven = is_of_it()
            && !has_ended(&member, Some(&at_once))?
            && !has_ended(&self.descriptor, Some(&at_once))?;
        if is_proven { send(&member, signal) } else { Ok(()) }
    }
}

fn send(descriptor: &OwnedFd, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(descriptor, signal) {
        Err(Errno::SRCH) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
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

/// Returns when a process started; `None` when there is none.
fn start_ticks(pid: u32) -> io::Result<Option<u64>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(field(&stat, START_TIME_FIELD)),
        // It ended while it was read.
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn session(pid: u32) -> Option<u32> {
    field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, SESSION_FIELD)
}

/// The program's name stands in brackets and may hold anything, brackets and spaces too.
fn field<T: FromStr>(stat: &str, place: usize) -> Option<T> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Duration;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test of processes needs one")]
    fn sleeping() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[test]
    fn a_name_full_of_brackets_does_not_hide_the_start_time() {
        let rest = "S 1 2 2 0 -1 4194560 1 0 0 0 1 0 0 0 20 0 1 0 98765 1 2 3";
        for name in ["sh", "a) b", ") (", "((x)"] {
            let stat = format!("42 ({name}) {rest}");
            assert_eq!(field(&stat, START_TIME_FIELD), Some(98765_u64));
            assert_eq!(field(&stat, SESSION_FIELD), Some(2_u32));
        }
        assert_eq!(field::<u64>("42 (sh) S 1", START_TIME_FIELD), None);
        assert_eq!(field::<u64>("", START_TIME_FIELD), None);
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

    #[expect(clippy::disallowed_methods, reason = "a test of processes needs some")]
    fn leading_a_session(script: &str) -> Child {
        Command::new("setsid").args(["sh", "-c", script]).spawn().unwrap()
    }

    /// Waits for a condition.
    async fn soon(condition: impl Fn() -> bool) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it becomes true");
    }

    #[tokio::test]
    async fn a_session_is_signalled_whole_and_no_other_is() {
        let mut leader = leading_a_session("sleep 60 & sleep 60 & wait");
        let mut other = leading_a_session("sleep 60 & wait");
        let members = |leader: &Child| {
            let numbers = fs::read_dir("/proc").unwrap().flatten();
            let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            numbers.filter(|number| session(*number) == Some(leader.id())).count()
        };
        soon(|| members(&leader) == 3 && members(&other) == 2).await;
        let handle = ProcessHandle::open(leader.id()).unwrap();
        handle.signal_session(Signal::KILL).unwrap();
        leader.wait().unwrap();
        soon(|| members(&leader) == 0).await;
        assert_eq!(members(&other), 2);
        ProcessHandle::open(other.id()).unwrap().signal_session(Signal::KILL).unwrap();
        other.wait().unwrap();
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
