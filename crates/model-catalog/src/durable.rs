//! Writing that survives a crash. Owns temporary files, renaming and syncing, the only such calls of the crate; never
//! decides what is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::StoreError;

const PREFIX: &str = ".rbee-";
const SUFFIX: &str = ".partial";

/// A file that is being written under a temporary name. Locked as long as it is open, and removed when dropped
/// before it has got its final name.
#[derive(Debug)]
pub(crate) struct Partial {
    file: File,
    path: PathBuf,
    is_placed: bool,
}

impl Partial {
    /// Creates the file in `directory`, readable by this user alone.
    pub(crate) fn create(directory: &Path) -> Result<Self, StoreError> {
        let action = "create a temporary file in the model directory";
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|source| StoreError::NoRandomness { source })?;
        let path = directory.join(format!("{PREFIX}{:016x}{SUFFIX}", u64::from_ne_bytes(random)));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StoreError::Io { action, source })?;
        let partial = Self { file, path, is_placed: false };
        partial.file.lock().map_err(|source| StoreError::Io { action, source })?;
        Ok(partial)
    }

    pub(crate) const fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its final name, in the same directory, once its content is safe on disk.
    pub(crate) fn place(mut self, target: &Path) -> Result<(), StoreError> {
        let action = "put a file into the model directory";
        let place = || -> io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&self.path, target)
        };
        place().map_err(|source| StoreError::Io { action, source })?;
        self.is_placed = true;
        sync_directory_of(target).inspect_err(|_| {
            // The caller is told that there is no file, so there shall be none.
            fs::remove_file(target).ok();
        })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_placed {
            // What cannot be removed now is removed when the directory is opened next.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Writes a small file, so that it is there whole or not at all.
pub(crate) fn write_file(target: &Path, content: &[u8]) -> Result<(), StoreError> {
    let directory = target.parent().unwrap_or(Path::new("."));
    let mut partial = Partial::create(directory)?;
    partial.file().write_all(content).map_err(|source| StoreError::Io {
        action: "write a file into the model directory",
        source,
    })?;
    partial.place(target)
}

/// Removes a file, if it is there, for good.
pub(crate) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => {
            Err(StoreError::Io { action: "remove a file from the model directory", source })
        }
        Ok(()) => sync_directory_of(path),
    }
}

/// Removes the temporary files that a killed process left; those of a living one are locked.
pub(crate) fn remove_abandoned(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_partial =
            name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX));
        if !is_partial || !entry.file_type()?.is_file() {
            continue;
        }
        let file = match File::open(entry.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if file.try_lock().is_ok() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sync_directory_of(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| StoreError::Io { action: "sync the model directory", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let name =
            |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        fs::read_dir(directory).unwrap().map(name).collect()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut dropped = Partial::create(dir.path()).unwrap();
        dropped.file().write_all(b"half").unwrap();
        assert_eq!(names(dir.path()).len(), 1);
        drop(dropped);
        assert_eq!(names(dir.path()), [""; 0]);
        write_file(&dir.path().join("target"), b"one").unwrap();
        write_file(&dir.path().join("target"), b"two").unwrap();
        assert_eq!(names(dir.path()), ["target"]);
        assert_eq!(fs::read(dir.path().join("target")).unwrap(), b"two");
        remove_file(&dir.path().join("target")).unwrap();
        remove_file(&dir.path().join("target")).unwrap();
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn only_abandoned_partial_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let living = Partial::create(dir.path()).unwrap();
        fs::write(dir.path().join(".rbee-0123456789abcdef.partial"), b"left").unwrap();
        fs::write(dir.path().join("other.partial"), b"foreign").unwrap();
        remove_abandoned(dir.path()).unwrap();
        let mut left = names(dir.path());
        left.sort();
        let own = living.path.file_name().unwrap().to_str().unwrap();
        assert_eq!(left, [own, "other.partial"]);
    }
}
