//! `run/*.json`: where a daemon of this machine listens. A hint for other programs, never a proof that it runs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use rbee_api::queen::RunFile;

use crate::{Daemon, Home, HomeError, LockGuard};

/// Keeps a run file in place and removes it when dropped.
#[derive(Debug)]
pub struct RunFileGuard {
    path: PathBuf,
}

impl Drop for RunFileGuard {
    fn drop(&mut self) {
        // What is left behind misleads nobody: readers ask the daemon itself.
        fs::remove_file(&self.path).ok();
    }
}

impl Home {
    /// Tells other programs where `daemon` listens; the file appears whole or not at all. To be called with the
    /// daemon's lock held and its listener bound.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn write_run_file(
        &self,
        daemon: Daemon,
        _lock: &LockGuard,
        run: &RunFile,
    ) -> Result<RunFileGuard, HomeError> {
        let path = self.run_path(daemon);
        let draft = path.with_extension("json.new");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(&serde_json::to_vec(run)?)?;
            fs::rename(&draft, &path)
        };
        write().map_err(HomeError::io("write", &path))?;
        Ok(RunFileGuard { path })
    }

    /// Removes what a daemon that was killed left behind. To be called with the daemon's lock held.
    pub(crate) fn forget_run_file(&self, daemon: Daemon) -> Result<(), HomeError> {
        let path = self.run_path(daemon);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(HomeError::Io { action: "remove", path, source: error })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Returns where `daemon` said it listens, `None` when it said nothing that can be read. The daemon may be long
    /// gone, and another program may listen there: only an answer to our token proves anything.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn read_run_file(&self, daemon: Daemon) -> Result<Option<RunFile>, HomeError> {
        let path = self.run_path(daemon);
        match fs::read(&path) {
            Ok(content) => Ok(serde_json::from_slice(&content).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HomeError::Io { action: "read", path, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_file_lives_as_long_as_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        assert_eq!(home.read_run_file(Daemon::Queen).unwrap(), None);
        let lock = home.lock(Daemon::Queen).unwrap();
        let run = RunFile::plain("http://127.0.0.1:8080".to_owned(), 7);
        let guard = home.write_run_file(Daemon::Queen, &lock, &run).unwrap();
        assert_eq!(home.read_run_file(Daemon::Queen).unwrap(), Some(run));
        let refused = home.lock(Daemon::Queen).unwrap_err();
        assert!(matches!(refused, HomeError::Locked { pid: Some(7), .. }), "{refused}");
        drop(guard);
        assert_eq!(home.read_run_file(Daemon::Queen).unwrap(), None);
        assert_eq!(fs::read_dir(home.run_dir()).unwrap().count(), 1, "only the lock file stays");
    }

    #[test]
    fn a_damaged_run_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        fs::write(home.run_path(Daemon::Hive), b"{\"url\":").unwrap();
        assert_eq!(home.read_run_file(Daemon::Hive).unwrap(), None);
    }
}
