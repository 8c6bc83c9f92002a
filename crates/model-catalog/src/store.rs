//! The model directory together with its catalog. Owns where model files lie, whether one is still what was
//! registered, and how one goes; importing and rebuilding stand in their own files.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use input_validation::ModelRef;
use rustix::fs::{Mode, OFlags};

use crate::{Catalog, GgufHeader, Model, StoreError, durable, sidecar};

/// Holds the model directory and the catalog of what is in it.
#[derive(Debug)]
pub struct ModelStore {
    pub(crate) directory: PathBuf,
    pub(crate) catalog: Catalog,
    /// Tells the bytes free to this user; a test puts in its own.
    pub(crate) free_bytes: fn(&Path) -> io::Result<u64>,
}

impl ModelStore {
    /// Opens the directory, creating it (mode 0700) if need be, and clears away what a killed import or removal left.
    ///
    /// # Errors
    /// [`StoreError::Io`] and [`StoreError::Catalog`].
    pub fn open(directory: &Path, catalog: Catalog) -> Result<Self, StoreError> {
        let open = || -> io::Result<PathBuf> {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let directory = directory.canonicalize()?;
            durable::remove_abandoned(&directory)?;
            Ok(directory)
        };
        let directory = open()
            .map_err(|source| StoreError::Io { action: "open the model directory", source })?;
        let store = Self { directory, catalog, free_bytes };
        for path in store.catalog.stranded()? {
            store.clear_away(&path);
        }
        Ok(store)
    }

    /// Returns the catalog.
    #[must_use]
    pub const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Returns the canonical path of the directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Answers whether a model's file is still there, of the registered size, and with the registered header.
    ///
    /// Takes milliseconds: the content is not hashed again.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`], [`StoreError::NotAFile`], [`StoreError::Header`] or [`StoreError::Changed`].
    pub fn check(&self, model: &Model) -> Result<(), StoreError> {
        let (file, size_bytes) = open_model_file(&model.path)?;
        // The header goes first: it tells a truncated file from another one.
        let header = GgufHeader::read(file, size_bytes)?;
        if header == model.header && size_bytes == model.size_bytes {
            Ok(())
        } else {
            Err(StoreError::Changed)
        }
    }

    /// Removes a model and its file, and returns what was removed.
    ///
    /// The catalog goes first, so that it never names a file that is not there.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Catalog`], and [`StoreError::Io`] when the row is gone and the file stays.
    pub fn remove(&self, reference: &ModelRef) -> Result<Model, StoreError> {
        let model = self
            .catalog
            .remove(reference)?
            .ok_or_else(|| StoreError::NotFound { reference: reference.clone() })?;
        self.remove_files(&model.path)?;
        // The next start finds nothing to remove.
        self.catalog.moved(&model.path).ok();
        Ok(model)
    }

    /// Removes the file that no model has any more. One that stays costs room and harms nothing; the next start
    /// tries again.
    pub(crate) fn clear_away(&self, path: &Path) {
        if self.remove_files(path).is_ok() {
            self.catalog.moved(path).ok();
        }
    }

    /// Removes a model file and its note, if they lie in the directory.
    pub(crate) fn remove_files(&self, path: &Path) -> Result<(), StoreError> {
        if !self.holds(path) {
            return Ok(());
        }
        durable::remove_file(path)?;
        durable::remove_file(&sidecar::path_of(path))
    }

    /// Answers whether a path lies directly in the directory.
    pub(crate) fn holds(&self, path: &Path) -> bool {
        path.parent() == Some(self.directory.as_path())
    }
}

/// Opens a regular file for reading and returns its size; never waits for a pipe.
pub(crate) fn open_model_file(path: &Path) -> Result<(File, u64), StoreError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| StoreError::Unreadable { source: errno.into() })?;
    let metadata = file.metadata().map_err(|source| StoreError::Unreadable { source })?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err(StoreError::NotAFile) }
}

fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_on_its_way_is_cleared_away_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("models.db");
        let models = dir.path().join("models");
        let open = || ModelStore::open(&models, Catalog::open(&database).unwrap().catalog).unwrap();
        let store = open();
        let paths = ["left.gguf", "foreign.gguf"].map(|name| store.directory().join(name));
        for path in &paths {
            std::fs::write(path, b"model").unwrap();
        }
        store.catalog.moving(&paths[0]).unwrap();
        let outside = dir.path().join("outside.gguf");
        std::fs::write(&outside, b"model").unwrap();
        store.catalog.moving(&outside).unwrap();
        drop(store);
        let store = open();
        assert_eq!(paths.map(|path| path.exists()), [false, true]);
        assert!(outside.exists(), "what does not lie in the directory is never removed");
        assert_eq!(store.catalog.stranded().unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn free_space_is_that_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_bytes(dir.path()).unwrap() > 0);
        assert!(free_bytes(&dir.path().join("none")).is_err());
    }
}
