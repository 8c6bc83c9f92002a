//! `$RBEE_HOME`: the one description of what lies where. Owns the creation of its directories and of log files; never
//! reads what others keep in them.

use std::fmt;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use input_validation::WorkerId;

use crate::HomeError;

/// Permission bits of every directory: nobody else's business.
const DIRECTORY_MODE: u32 = 0o700;
/// Permission bits of every file created here.
const FILE_MODE: u32 = 0o600;
/// Bits that let the group or others put files into a directory.
const FOREIGN_WRITE: u32 = 0o022;

/// The programs of which one may run on a home directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Daemon {
    /// `queen-rbee`.
    Queen,
    /// `rbee-hive`.
    Hive,
}

impl Daemon {
    /// Returns the program's name, which is also that of its executable, its config file and its log.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Queen => "queen-rbee",
            Self::Hive => "rbee-hive",
        }
    }

    const fn stem(self) -> &'static str {
        match self {
            Self::Queen => "queen",
            Self::Hive => "hive",
        }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// A home directory that exists and is this user's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// Returns the home directory that holds where none is configured: `~/.rbee`. `user_home` is the user's own home.
    ///
    /// # Errors
    /// [`HomeError::NoHome`] without one.
    pub fn default_path(user_home: Option<&Path>) -> Result<PathBuf, HomeError> {
        match user_home {
            Some(path) if path.is_absolute() => Ok(path.join(".rbee")),
            Some(_) | None => Err(HomeError::NoHome),
        }
    }

    /// Opens the home directory at `root`, creating what is missing of it with mode 0700. A relative path is taken
    /// from the current directory. Idempotent; several programs may do it at once.
    ///
    /// # Errors
    /// [`HomeError::Unsafe`] where a directory belongs to another user or others may write to it, and
    /// [`HomeError::Io`].
    pub fn open(root: &Path) -> Result<Self, HomeError> {
        let root = std::path::absolute(root).map_err(HomeError::io("find", root))?;
        let home = Self { root };
        ensure_directory(home.root(), true)?;
        for directory in [home.models_dir(), home.secrets_dir(), home.logs_dir(), home.run_dir()] {
            ensure_directory(&directory, false)?;
        }
        Ok(home)
    }

    /// Returns the directory itself, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the queen's database of machines.
    #[must_use]
    pub fn beehives_db(&self) -> PathBuf {
        self.root.join("beehives.db")
    }

    /// Returns the queen's database of keys and of what was used under them.
    #[must_use]
    pub fn keys_db(&self) -> PathBuf {
        self.root.join("keys.db")
    }

    /// Returns the hive's model catalog.
    #[must_use]
    pub fn models_db(&self) -> PathBuf {
        self.root.join("models.db")
    }

    /// Returns the hive's ledger of worker processes.
    #[must_use]
    pub fn workers_db(&self) -> PathBuf {
        self.root.join("workers.db")
    }

    /// Returns the directory of model files.
    #[must_use]
    pub fn models_dir(&self) -> PathBuf {
        self.root.join("models")
    }

    /// Returns the directory of secret files.
    #[must_use]
    pub fn secrets_dir(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// Returns the directory of the local CA; the first daemon that needs one makes it.
    #[must_use]
    pub fn tls_dir(&self) -> PathBuf {
        self.root.join("tls")
    }

    /// Returns the file of the token that clients show to the queen.
    #[must_use]
    pub fn client_token(&self) -> PathBuf {
        self.secrets_dir().join("client.token")
    }

    /// Returns the file of the token that queen and hive show to each other.
    #[must_use]
    pub fn hive_token(&self) -> PathBuf {
        self.secrets_dir().join("hive.token")
    }

    /// Returns the file of the secret that the tokens of paired hives are made of.
    #[must_use]
    pub fn pairing_key(&self) -> PathBuf {
        self.secrets_dir().join("pairing.key")
    }

    /// Returns the file in which a paired hive keeps what it was given.
    #[must_use]
    pub fn pairing(&self) -> PathBuf {
        self.secrets_dir().join("pairing.json")
    }

    /// Returns the directory of conversations that workers keep; it is made by the first worker that keeps one.
    #[must_use]
    pub fn cache_dir(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// Returns the file of the key that the secrets of a hive's workers are made of.
    #[must_use]
    pub fn worker_key(&self) -> PathBuf {
        self.secrets_dir().join("worker.key")
    }

    /// Returns the directory of audit logs; the first daemon that keeps one makes it.
    #[must_use]
    pub fn audit_dir(&self) -> PathBuf {
        self.root.join("audit")
    }

    /// Returns the file of the secret that the keys of this home's audit logs are made of.
    #[must_use]
    pub fn audit_key(&self) -> PathBuf {
        self.secrets_dir().join("audit.key")
    }

    /// Returns the directory of log files.
    #[must_use]
    pub fn logs_dir(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Returns the log file of a daemon that another program started.
    #[must_use]
    pub fn daemon_log(&self, daemon: Daemon) -> PathBuf {
        self.logs_dir().join(format!("{daemon}.log"))
    }

    /// Returns the log file of a worker.
    #[must_use]
    pub fn worker_log(&self, worker: &WorkerId) -> PathBuf {
        self.logs_dir().join(format!("{worker}.log"))
    }

    /// Returns the directory of locks and run files.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.root.join("run")
    }

    pub(crate) fn lock_path(&self, daemon: Daemon) -> PathBuf {
        self.run_dir().join(format!("{}.lock", daemon.stem()))
    }

    /// Returns the file in which `daemon` writes down its address.
    #[must_use]
    pub fn run_path(&self, daemon: Daemon) -> PathBuf {
        self.run_dir().join(format!("{}.json", daemon.stem()))
    }

    /// Opens a daemon's log file for its standard output and standard error: append, mode 0600.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn open_daemon_log(&self, daemon: Daemon) -> Result<File, HomeError> {
        open_log(&self.daemon_log(daemon))
    }

    /// Opens a worker's log file for its standard output and standard error: append, mode 0600.
    ///
    /// # Errors
    /// [`HomeError::Io`].
    pub fn open_worker_log(&self, worker: &WorkerId) -> Result<File, HomeError> {
        open_log(&self.worker_log(worker))
    }
}

fn open_log(path: &Path) -> Result<File, HomeError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .open(path)
        .map_err(HomeError::io("open log file", path))
}

/// Creates a directory for this user alone, mode 0700, with those above it. Idempotent.
///
/// # Errors
/// [`HomeError::Unsafe`] where it belongs to another user or others may write to it, and [`HomeError::Io`].
pub fn ensure_private_directory(path: &Path) -> Result<(), HomeError> {
    ensure_directory(path, true)
}

fn ensure_directory(path: &Path, is_root: bool) -> Result<(), HomeError> {
    match DirBuilder::new().recursive(is_root).mode(DIRECTORY_MODE).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(HomeError::Io {
                action: "create directory",
                path: path.to_owned(),
                source,
            });
        }
    }
    let metadata = path.metadata().map_err(HomeError::io("look at", path))?;
    match unsafe_because(&metadata, rustix::process::geteuid().as_raw()) {
        None => Ok(()),
        Some(reason) => Err(HomeError::Unsafe { path: path.to_owned(), reason }),
    }
}

/// Whoever can write to one of these directories can swap the files in it, tokens and models included.
fn unsafe_because(metadata: &Metadata, user: u32) -> Option<String> {
    if !metadata.is_dir() {
        return Some("is not a directory".to_owned());
    }
    if metadata.uid() != user {
        return Some(format!(
            "belongs to user {} and this program runs as user {user}",
            metadata.uid()
        ));
    }
    let mode = metadata.mode() & 0o7777;
    (mode & FOREIGN_WRITE != 0)
        .then(|| format!("has mode {mode:04o}, with which others could change what lies in it"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::ExitStatus;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn opening_creates_directories_for_this_user_alone_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        for _ in 0..2 {
            let home = Home::open(&root).unwrap();
            for path in
                [home.root().to_owned(), home.models_dir(), home.secrets_dir(), home.logs_dir()]
            {
                assert_eq!(mode(&path), 0o700, "{}", path.display());
            }
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_with_the_cure() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o770)).unwrap();
        let error = Home::open(dir.path()).unwrap_err();
        assert!(matches!(error, HomeError::Unsafe { .. }), "{error}");
        assert_eq!(error.exit_status(), ExitStatus::NoPermission);
        assert!(error.hint().contains("chmod 700"), "{}", error.hint());
        assert!(!dir.path().join("secrets").exists());
    }

    #[test]
    fn another_users_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = dir.path().metadata().unwrap();
        assert_eq!(unsafe_because(&metadata, metadata.uid()), None);
        assert!(unsafe_because(&metadata, metadata.uid() + 1).is_some());
    }

    #[test]
    fn a_file_in_the_way_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("models"), b"").unwrap();
        let told = Home::open(dir.path()).unwrap_err().to_string();
        assert!(told.ends_with("models is not a directory"), "{told}");
    }

    #[test]
    fn logs_are_appended_to_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        for _ in 0..2 {
            home.open_daemon_log(Daemon::Hive).unwrap().write_all(b"line\n").unwrap();
        }
        let path = home.daemon_log(Daemon::Hive);
        assert_eq!(fs::read(&path).unwrap(), b"line\nline\n");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn without_a_user_home_there_is_no_default() {
        assert_eq!(
            Home::default_path(Some(Path::new("/home/u"))).unwrap(),
            Path::new("/home/u/.rbee")
        );
        for bad in [None, Some(Path::new("")), Some(Path::new("relative"))] {
            assert!(matches!(Home::default_path(bad), Err(HomeError::NoHome)));
        }
    }
}
