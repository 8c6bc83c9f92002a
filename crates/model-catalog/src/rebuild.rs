//! Filling the catalog from the model directory. Owns what becomes of each file found there; never changes a model
//! file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use input_validation::{MODEL_ALIAS_PART_MAX, ModelAlias, ModelRef, Sha256Hex};

use crate::import::now_ms;
use crate::sidecar::{self, Sidecar};
use crate::store::open_model_file;
use crate::transfer::hash;
use crate::{GgufHeader, Model, ModelStore, StoreError};

/// Says what became of each file in the model directory.
#[derive(Debug)]
pub struct Rebuilt {
    /// The models registered.
    pub registered: Vec<Model>,
    /// The files that are no whole models.
    pub rejected: Vec<RejectedFile>,
}

/// Names a file that was not registered, and why.
#[derive(Debug)]
pub struct RejectedFile {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub error: StoreError,
}

impl ModelStore {
    /// Registers every whole model in the directory, after a catalog was lost. Hashes all of them, which takes a second
    /// for every gigabyte or two.
    ///
    /// The note beside a file tells its reference, alias and digest. A file without one is registered by its own path,
    /// with an alias made of its name if that is free. Registering what is registered already changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the directory cannot be read. What is wrong with a single file is told in the result.
    pub fn rebuild(&self) -> Result<Rebuilt, StoreError> {
        let list = || -> std::io::Result<Vec<PathBuf>> {
            std::fs::read_dir(&self.directory)?.map(|entry| Ok(entry?.path())).collect()
        };
        let mut paths = list()
            .map_err(|source| StoreError::Io { action: "read the model directory", source })?;
        paths.sort();
        let mut rebuilt = Rebuilt { registered: Vec::new(), rejected: Vec::new() };
        for path in paths.into_iter().filter(|path| is_model_name(path)) {
            match self.recover(&path) {
                Ok(model) => rebuilt.registered.push(model),
                Err(error) => rebuilt.rejected.push(RejectedFile { path, error }),
            }
        }
        Ok(rebuilt)
    }

    fn recover(&self, path: &Path) -> Result<Model, StoreError> {
        // A link's target could be changed by whoever owns it; a model is what lies here.
        let is_link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        if is_link {
            return Err(StoreError::NotAFile);
        }
        let (mut file, size_bytes) = open_model_file(path)?;
        let header = GgufHeader::read(&mut file, size_bytes)?;
        if header.split_count > 1 {
            return Err(StoreError::SplitModel { count: header.split_count });
        }
        let (mut file, size_bytes) = open_model_file(path)?;
        let sha256 = hash(&mut file, size_bytes, &mut |_| ControlFlow::Continue(()))?;
        let note = match sidecar::read(path) {
            Some(note) if note.sha256 != sha256 => {
                return Err(StoreError::ChecksumMismatch { expected: note.sha256, actual: sha256 });
            }
            Some(note) => note,
            None => derive_note(path, sha256)?,
        };
        let Sidecar { reference, alias, sha256, added_at_ms } = note;
        let alias = match alias {
            Some(alias) if self.catalog.alias_owner(&alias, &reference)?.is_none() => Some(alias),
            _ => None,
        };
        let path = path.to_owned();
        let model = Model { reference, alias, path, size_bytes, sha256, header, added_at_ms };
        self.catalog.register(&model)?;
        sidecar::write(&model)?;
        Ok(model)
    }
}

fn is_model_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.to_ascii_lowercase().ends_with(b".gguf") && !name.starts_with(b".")
}

fn derive_note(path: &Path, sha256: Sha256Hex) -> Result<Sidecar, StoreError> {
    let reference = ModelRef::from_file_path(path).map_err(|error| StoreError::Io {
        action: "name the model by its path",
        source: std::io::Error::new(std::io::ErrorKind::InvalidFilename, error),
    })?;
    Ok(Sidecar { reference, alias: derive_alias(path), sha256, added_at_ms: now_ms() })
}

/// Makes an alias of a file's name, when one can be made.
fn derive_alias(path: &Path) -> Option<ModelAlias> {
    let stem = path.file_stem()?.to_str()?.to_ascii_lowercase();
    let plain =
        |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let name: String = stem.chars().map(plain).take(MODEL_ALIAS_PART_MAX).collect();
    name.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::Catalog;
    use crate::gguf::test_file::TestFile;

    fn store(root: &Path) -> ModelStore {
        let opened = Catalog::open(&root.join("models.db")).unwrap();
        ModelStore::open(&root.join("models"), opened.catalog).unwrap()
    }

    #[test]
    fn a_lost_catalog_comes_back_with_references_and_aliases() {
        let root = tempfile::tempdir().unwrap();
        let source = root.path().join("Source.gguf");
        fs::write(&source, TestFile::default().bytes()).unwrap();
        let request = crate::ImportRequest {
            reference: "hf:o/r:Q4_1".parse().unwrap(),
            alias: Some("smol:1".parse().unwrap()),
            expected_sha256: None,
            source,
        };
        let before = store(root.path());
        let imported = before.import(&request, |_| ControlFlow::Continue(())).unwrap();
        drop(before);
        fs::write(root.path().join("models.db"), [0xff_u8; 8192]).unwrap();
        let opened = Catalog::open(&root.path().join("models.db")).unwrap();
        assert!(opened.damaged.is_some());
        let after = ModelStore::open(&root.path().join("models"), opened.catalog).unwrap();
        let rebuilt = after.rebuild().unwrap();
        assert_eq!((rebuilt.registered, rebuilt.rejected.len()), (vec![imported.clone()], 0));
        assert_eq!(after.catalog().list().unwrap(), std::slice::from_ref(&imported));
        assert_eq!(after.rebuild().unwrap().registered, [imported]);
    }

    #[test]
    fn files_of_unknown_origin_are_registered_by_path_and_broken_ones_told() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let models = store.directory().to_owned();
        let whole = TestFile::default().bytes();
        fs::write(models.join("My Model.Q4_1.GGUF"), &whole).unwrap();
        fs::write(models.join("my-model.q4_1.gguf"), &whole).unwrap();
        fs::write(models.join("cut.gguf"), &whole[..whole.len() - 1]).unwrap();
        fs::write(models.join("foreign.gguf"), b"not a model").unwrap();
        fs::write(models.join("readme.txt"), b"no model").unwrap();
        fs::create_dir(models.join("dir.gguf")).unwrap();
        std::os::unix::fs::symlink(models.join("my-model.q4_1.gguf"), models.join("link.gguf"))
            .unwrap();
        let rebuilt = store.rebuild().unwrap();
        let aliases: Vec<_> = rebuilt
            .registered
            .iter()
            .map(|model| model.alias.as_ref().map(ModelAlias::as_str))
            .collect();
        assert_eq!(aliases, [Some("my-model.q4_1"), None]);
        assert!(
            rebuilt.registered.iter().all(|model| model.reference.as_str().starts_with("file:/"))
        );
        let rejected: Vec<_> = rebuilt
            .rejected
            .iter()
            .map(|file| (file.path.file_name().unwrap().to_str().unwrap(), file.error.code()))
            .collect();
        let code = "invalid_model_file";
        assert_eq!(
            rejected,
            [("cut.gguf", code), ("dir.gguf", code), ("foreign.gguf", code), ("link.gguf", code)]
        );
    }

    #[test]
    fn a_file_that_is_not_what_its_note_says_is_rejected() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let path = store.directory().join("model.gguf");
        let mut bytes = TestFile::default().bytes();
        fs::write(&path, &bytes).unwrap();
        let model = store.rebuild().unwrap().registered.remove(0);
        store.catalog().remove(&model.reference).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        let rebuilt = store.rebuild().unwrap();
        assert_eq!(rebuilt.registered, []);
        assert!(matches!(rebuilt.rejected[0].error, StoreError::ChecksumMismatch { .. }));
    }
}
