//! The note beside each model file (`<file>.json`) from which a lost catalog is rebuilt. Owns its form; the catalog is
//! what counts as long as it is there.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use input_validation::{ModelAlias, ModelRef, Sha256Hex};
use serde::{Deserialize, Serialize};

use crate::{Model, StoreError, durable};

/// Longest note that is read: many times a real one.
const NOTE_BYTES_MAX: u64 = 16 << 10;

/// What the catalog knows of a model and its file does not.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sidecar {
    pub(crate) reference: ModelRef,
    pub(crate) alias: Option<ModelAlias>,
    pub(crate) sha256: Sha256Hex,
    pub(crate) added_at_ms: i64,
}

/// Returns where the note of a model file lies.
pub(crate) fn path_of(model_file: &Path) -> PathBuf {
    let mut name = OsString::from(model_file);
    name.push(".json");
    PathBuf::from(name)
}

/// Writes the note of a model.
pub(crate) fn write(model: &Model) -> Result<(), StoreError> {
    let sidecar = Sidecar {
        reference: model.reference.clone(),
        alias: model.alias.clone(),
        sha256: model.sha256.clone(),
        added_at_ms: model.added_at_ms,
    };
    let content = serde_json::to_vec(&sidecar)
        .map_err(|error| StoreError::Io { action: "write a model's note", source: error.into() })?;
    durable::write_file(&path_of(&model.path), &content)
}

/// Reads the note of a model file. One that is absent or damaged is nothing: the file can be registered without.
pub(crate) fn read(model_file: &Path) -> Option<Sidecar> {
    let mut content = Vec::new();
    File::open(path_of(model_file)).ok()?.take(NOTE_BYTES_MAX).read_to_end(&mut content).ok()?;
    serde_json::from_slice(&content).ok()
}
