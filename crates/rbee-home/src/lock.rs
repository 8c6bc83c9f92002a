//! One daemon a home: a lock that the kernel takes back whenever the process ends, however it ends. Never trusts a
//! process id in a file for this.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use crate::{Daemon, Home, HomeError};

/// Holds a daemon's lock until dropped.
#[derive(Debug)]
pub struct LockGuard {
    _file: File,
}

impl Home {
    /// Takes the lock of `daemon`, to be held for the life of the process. Does not wait. Whoever gets it is the
    /// daemon of this home: the address that one killed before it left behind is forgotten, and every file that this
    /// process creates from now on is its user's alone.
    ///
    /// # Errors
    /// [`HomeError::Locked`] when another process holds it, and [`HomeError::Io`].
    pub fn lock(&self, daemon: Daemon) -> Result<LockGuard, HomeError> {
        let path = self.lock_path(daemon);
        let file = open(&path)?;
        loop {
            if try_lock(&file, &path, FlockOperation::NonBlockingLockExclusive)? {
                rustix::process::umask(Mode::RWXG | Mode::RWXO);
                self.forget_run_file(daemon)?;
                return Ok(LockGuard { _file: file });
            }
            // A look from `is_running` also holds the lock, shared and for an instant. Only a daemon keeps a shared
            // lock from being taken.
            if !try_lock(&file, &path, FlockOperation::NonBlockingLockShared)? {
                let pid = self.read_run_file(daemon)?.map(|run| run.pid);
                return Err(HomeError::Locked { daemon, root: self.root().to_owned(), pid });
            }
            try_lock(&file, &path, FlockOperation::Unlock)?;
            std::thread::yield_now();
        }
    }

    /// Answers whether a process holds the lock of `daemon`, which is so until the last moment of its life.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn is_running(&self, daemon: Daemon) -> Result<bool, HomeError> {
        let path = self.lock_path(daemon);
        let file = open(&path)?;
        Ok(!try_lock(&file, &path, FlockOperation::NonBlockingLockShared)?)
    }
}

/// The file is never removed: a process could hold a lock on one that no other can find any more.
fn open(path: &Path) -> Result<File, HomeError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(HomeError::io("open lock file", path))
}

fn try_lock(file: &File, path: &Path, operation: FlockOperation) -> Result<bool, HomeError> {
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(HomeError::io("lock", path)(io::Error::from(errno))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::ExitStatus;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        (dir, home)
    }

    #[test]
    fn a_second_daemon_is_refused_until_the_first_is_gone() {
        let (_dir, home) = home();
        let first = home.lock(Daemon::Hive).unwrap();
        let refused = home.lock(Daemon::Hive).unwrap_err();
        assert!(matches!(refused, HomeError::Locked { daemon: Daemon::Hive, pid: None, .. }));
        assert_eq!(refused.exit_status(), ExitStatus::TryAgain);
        assert!(home.is_running(Daemon::Hive).unwrap());
        assert!(!home.is_running(Daemon::Queen).unwrap());
        home.lock(Daemon::Queen).unwrap();
        drop(first);
        assert!(!home.is_running(Daemon::Hive).unwrap());
        home.lock(Daemon::Hive).unwrap();
    }

    #[test]
    fn the_address_of_a_daemon_that_was_killed_is_forgotten() {
        let (_dir, home) = home();
        std::fs::write(home.run_path(Daemon::Queen), r#"{"url":"http://127.0.0.1:1","pid":1}"#)
            .unwrap();
        assert!(home.read_run_file(Daemon::Queen).unwrap().is_some());
        let _lock = home.lock(Daemon::Queen).unwrap();
        assert!(home.read_run_file(Daemon::Queen).unwrap().is_none());
    }

    #[test]
    fn looking_never_keeps_a_daemon_from_starting_and_a_race_has_one_winner() {
        let (_dir, home) = home();
        for _ in 0..50 {
            let start = Barrier::new(6);
            let won = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..6)
                    .map(|index| {
                        let (home, start) = (&home, &start);
                        scope.spawn(move || {
                            start.wait();
                            if index % 2 == 0 {
                                home.is_running(Daemon::Hive).unwrap();
                                None
                            } else {
                                home.lock(Daemon::Hive).ok()
                            }
                        })
                    })
                    .collect();
                let guards: Vec<_> =
                    racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect();
                guards.len()
            });
            assert_eq!(won, 1);
        }
    }
}
