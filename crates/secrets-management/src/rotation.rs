//! A new secret in the place of an old one. Owns the file beside a secret file that holds the one before, for the time
//! in which both are good; never tells a running program about it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::file::{Draft, directory_of, io_error};
use crate::{Secret, SecretError, load_file};

/// What becomes of a secret that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// It lies beside the new one, and stays good for as long as the programs are configured to take it.
    Keep,
    /// It is gone, and so is the one before it.
    Forget,
}

/// Returns where the former secret of a file lies: beside it, with `.previous` at the end of its name.
#[must_use]
pub fn former_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".previous");
    name.into()
}

/// Puts a generated secret into the place of the one at `path`; where there is none, it is the first. The new file
/// appears whole or not at all.
///
/// # Errors
/// [`SecretError`]; where the old file cannot be used, nothing changes.
pub fn replace_file(path: &Path, former: Former) -> Result<Secret, SecretError> {
    let old = match load_file(path) {
        Ok(old) => Some(old),
        Err(SecretError::NotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let directory = directory_of(path);
    let beside = former_path(path);
    match (former, &old) {
        (Former::Keep, Some(old)) => put(directory, &beside, old)?,
        (Former::Keep, None) => {}
        (Former::Forget, _) => forget(&beside)?,
    }
    let new = Secret::generate()?;
    put(directory, path, &new)?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync directory", directory))?;
    Ok(new)
}

fn put(directory: &Path, path: &Path, secret: &Secret) -> Result<(), SecretError> {
    let draft = Draft::write_secret(directory, path, secret)?;
    fs::rename(draft.path(), path).map_err(io_error("replace secret file", path))
}

fn forget(path: &Path) -> Result<(), SecretError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove secret file", path)(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Loads the secret that `path` held before, with the time for which it is still good out of `overlap`. `None` where
/// there is none or its time is over.
///
/// # Errors
/// [`SecretError`], as for the secret itself.
pub fn load_former(
    path: &Path,
    overlap: Duration,
) -> Result<Option<(Secret, Duration)>, SecretError> {
    let beside = former_path(path);
    let replaced = match fs::symlink_metadata(&beside).and_then(|metadata| metadata.modified()) {
        Ok(replaced) => replaced,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("inspect secret file", &beside)(error)),
    };
    // A file from the future is one of a clock that was set back: it is as new as can be.
    let age = SystemTime::now().duration_since(replaced).unwrap_or_default();
    match overlap.checked_sub(age) {
        Some(left) if !left.is_zero() => Ok(Some((load_file(&beside)?, left))),
        Some(_) | None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::tempdir;

    use super::*;
    use crate::load_or_generate;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_replaced_secret_stays_beside_the_new_one_until_its_time_is_over() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("token");
        let first = load_or_generate(&path).unwrap();
        assert!(load_former(&path, MINUTE).unwrap().is_none());
        let second = replace_file(&path, Former::Keep).unwrap();
        assert!(second != first && second == load_file(&path).unwrap());
        let (former, left) = load_former(&path, MINUTE).unwrap().unwrap();
        assert!(former == first && left > MINUTE / 2 && left <= MINUTE);
        assert!(load_former(&path, Duration::ZERO).unwrap().is_none());
        let long_ago = SystemTime::now() - 2 * MINUTE;
        File::options()
            .write(true)
            .open(former_path(&path))
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        assert!(load_former(&path, MINUTE).unwrap().is_none());
        for file in [&path, &former_path(&path)] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o600);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "a draft was left");
    }

    #[test]
    fn a_revoked_secret_and_the_one_before_it_are_gone() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("token");
        let first = replace_file(&path, Former::Keep).unwrap();
        let second = replace_file(&path, Former::Keep).unwrap();
        let third = replace_file(&path, Former::Forget).unwrap();
        assert!(third != second && third != first);
        assert!(load_former(&path, MINUTE).unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_left_as_it_is() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(replace_file(&path, Former::Keep), Err(SecretError::WrongMode { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_loose_former_secret_is_refused_like_any_other() {
        let dir = tempdir().unwrap();
        let path = dir.path().join("token");
        replace_file(&path, Former::Keep).unwrap();
        replace_file(&path, Former::Keep).unwrap();
        let loose = fs::Permissions::from_mode(0o640);
        fs::set_permissions(former_path(&path), loose).unwrap();
        assert!(matches!(load_former(&path, MINUTE), Err(SecretError::WrongMode { .. })));
    }
}
