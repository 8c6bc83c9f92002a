//! Secrets in files. Owns the checks on a secret file and the way a new one comes to be; never follows a link.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use zeroize::Zeroizing;

use crate::{Secret, SecretError};

/// Permission bits of a file in which a program keeps a secret.
const FILE_MODE: u32 = 0o600;

/// Permission bits that a file which systemd hands over may have.
const HANDED_OVER_MODE: u32 = 0o640;

/// Permission bits of a directory for secrets.
const DIRECTORY_MODE: u32 = 0o700;

/// Loads the secret that a file holds as its only line.
///
/// The file must be a regular file, not a link, owned by the user this program runs as, with mode 0600 or 0400. All of
/// that is checked on the opened file, so that nobody can swap it between check and reading.
///
/// # Errors
/// [`SecretError`], naming the file and what to do.
pub fn load_file(path: &Path) -> Result<Secret, SecretError> {
    load_checked(path, check_attributes)
}

/// Loads a secret that systemd hands over: it belongs to this user or to root, and where its file system has access
/// lists, their mask shows as the group's right to read.
///
/// # Errors
/// As [`load_file`].
pub(crate) fn load_handed_over(path: &Path) -> Result<Secret, SecretError> {
    load_checked(path, |path, kind, owner, mode| {
        let owner = if owner == 0 { rustix::process::geteuid().as_raw() } else { owner };
        let mode = if mode & !HANDED_OVER_MODE == 0 { FILE_MODE } else { mode };
        check_attributes(path, kind, owner, mode)
    })
}

fn load_checked(
    path: &Path,
    check: impl FnOnce(&Path, FileType, u32, u32) -> Result<(), SecretError>,
) -> Result<Secret, SecretError> {
    Secret::from_reader(open_checked(path, check)?, &path.display().to_string())
}

/// Opens a file and checks what was opened.
pub(crate) fn open_checked(
    path: &Path,
    check: impl FnOnce(&Path, FileType, u32, u32) -> Result<(), SecretError>,
) -> Result<File, SecretError> {
    // NONBLOCK, so that opening a pipe returns instead of waiting for a writer.
    let flags =
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        rustix::io::Errno::NOENT => SecretError::NotFound { path: path.to_owned() },
        rustix::io::Errno::LOOP => SecretError::SymbolicLink { path: path.to_owned() },
        other => SecretError::Io {
            action: "open secret file",
            path: path.to_owned(),
            source: other.into(),
        },
    })?;
    let stat = rustix::fs::fstat(&opened).map_err(|errno| SecretError::Io {
        action: "inspect secret file",
        path: path.to_owned(),
        source: errno.into(),
    })?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    check(path, kind, stat.st_uid, stat.st_mode & 0o7777)?;
    Ok(File::from(opened))
}

/// Wants a regular file of this user alone.
pub(crate) fn check_attributes(
    path: &Path,
    kind: FileType,
    owner: u32,
    mode: u32,
) -> Result<(), SecretError> {
    let path = path.to_owned();
    if !kind.is_file() {
        return Err(SecretError::NotAFile { path });
    }
    let user = rustix::process::geteuid().as_raw();
    if owner != user {
        return Err(SecretError::WrongOwner { path, owner, user });
    }
    if mode != FILE_MODE && mode != 0o400 {
        return Err(SecretError::WrongMode { path, mode });
    }
    Ok(())
}

/// Loads the secret at `path`, or puts a generated one there first, with its directory if need be (mode 0700).
///
/// A new file appears whole or not at all. When several processes get here at once, one file wins and all of them
/// return its secret.
///
/// # Errors
/// [`SecretError`]; an existing file that cannot be used is an error and is left as it is.
pub fn load_or_generate(path: &Path) -> Result<Secret, SecretError> {
    match load_file(path) {
        Err(SecretError::NotFound { .. }) => {}
        loaded => return loaded,
    }
    let directory = directory_of(path);
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .map_err(io_error("create directory", directory))?;
    let draft = Draft::write_secret(directory, path, &Secret::generate()?)?;
    match fs::hard_link(&draft.path, path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(SecretError::Io {
                action: "create secret file",
                path: path.to_owned(),
                source,
            });
        }
    }
    drop(draft);
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync directory", directory))?;
    load_file(path)
}

/// Returns the directory that a file lies in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

/// A complete secret file under a name of its own, removed when dropped. Linking it to the final name is atomic and
/// fails when the name is taken, which renaming would not.
pub(crate) struct Draft {
    path: PathBuf,
}

impl Draft {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a secret as the only line of its file.
    pub(crate) fn write_secret(
        directory: &Path,
        path: &Path,
        secret: &Secret,
    ) -> Result<Self, SecretError> {
        let line = Zeroizing::new(format!("{}\n", secret.expose()));
        Self::write(directory, path, line.as_bytes())
    }

    pub(crate) fn write(
        directory: &Path,
        path: &Path,
        content: &[u8],
    ) -> Result<Self, SecretError> {
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|source| SecretError::NoRandomness { source })?;
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{:016x}", u64::from_ne_bytes(random)));
        let draft = Self { path: directory.join(name) };
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&draft.path)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(io_error("write secret file", path))?;
        Ok(draft)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // A draft that cannot be removed is a secret nobody uses, readable by its owner alone.
        fs::remove_file(&self.path).ok();
    }
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretError {
    move |source| SecretError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Barrier;

    use tempfile::{TempDir, tempdir};

    use super::*;

    fn file_with_mode(content: &[u8], mode: u32) -> (TempDir, PathBuf) {
        let dir = tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn only_the_owner_may_be_able_to_read_the_file() {
        for good in [0o600, 0o400] {
            let (_dir, path) = file_with_mode(b"token\n", good);
            assert_eq!(load_file(&path).unwrap().expose(), "token");
        }
        for bad in [0o644, 0o640, 0o604, 0o660, 0o700, 0o4600, 0o620] {
            let (_dir, path) = file_with_mode(b"token\n", bad);
            let error = load_file(&path).unwrap_err();
            assert!(matches!(error, SecretError::WrongMode { mode, .. } if mode == bad), "{error}");
            let told = error.to_string();
            assert!(told.contains(&format!("chmod 600 {}", path.display())), "{told}");
        }
    }

    #[test]
    fn another_users_file_is_refused() {
        let user = rustix::process::geteuid().as_raw();
        let checked = check_attributes(Path::new("token"), FileType::RegularFile, user + 1, 0o600);
        let error = checked.unwrap_err();
        assert!(
            matches!(error, SecretError::WrongOwner { owner, .. } if owner == user + 1),
            "{error}"
        );
    }

    #[test]
    fn only_a_regular_file_under_its_own_name_is_read() {
        let (dir, path) = file_with_mode(b"token", 0o600);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(load_file(&link), Err(SecretError::SymbolicLink { .. })));
        assert!(matches!(load_file(dir.path()), Err(SecretError::NotAFile { .. })));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        assert!(matches!(load_file(&pipe), Err(SecretError::NotAFile { .. })));
        assert!(matches!(load_file(&dir.path().join("none")), Err(SecretError::NotFound { .. })));
    }

    #[test]
    fn content_errors_name_the_file() {
        let (_dir, path) = file_with_mode(b"one\ntwo\n", 0o600);
        let told = load_file(&path).unwrap_err().to_string();
        assert!(
            told.contains(path.to_str().unwrap()) && told.contains("more than one line"),
            "{told}"
        );
    }

    #[test]
    fn a_missing_secret_is_generated_once_and_kept() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("a/secrets/token");
        let first = load_or_generate(&path).unwrap();
        assert!(first == load_or_generate(&path).unwrap());
        assert!(first == load_file(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "a draft was left");
    }

    #[test]
    fn an_unusable_file_is_neither_used_nor_replaced() {
        let (_dir, path) = file_with_mode(b"", 0o600);
        assert!(matches!(load_or_generate(&path), Err(SecretError::Content { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn racing_processes_end_with_the_same_secret() {
        let dir = tempdir().unwrap();
        for round in 0..20 {
            let path = dir.path().join(format!("{round}/token"));
            let start = Barrier::new(8);
            let secrets: Vec<Secret> = std::thread::scope(|scope| {
                let racer = || {
                    start.wait();
                    load_or_generate(&path).unwrap()
                };
                let racers: Vec<_> = (0..8).map(|_| scope.spawn(racer)).collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            assert!(secrets.windows(2).all(|pair| pair[0] == pair[1]));
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        }
    }
}
