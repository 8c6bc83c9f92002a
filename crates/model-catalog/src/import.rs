//! Taking a local file into the model directory. Owns the order of the steps, which leaves either a registered model
//! or nothing; never fetches anything from elsewhere.

use std::fs::File;
use std::io::{self, Seek as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use input_validation::{ModelAlias, ModelRef, Provider, Sha256Hex};
use sha2::{Digest as _, Sha256};

use crate::durable::{self, Partial};
use crate::store::open_model_file;
use crate::transfer::{OnProgress, copy_and_hash, hash};
use crate::{CatalogError, GgufHeader, Model, ModelStore, Progress, StoreError, sidecar};

/// Bytes that stay free beside a model: the catalog and the logs live on the same disk.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Longest part of a source's name that the imported file keeps.
const STEM_MAX: usize = 80;

/// Says what to import, and as what.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// The file to import.
    pub source: PathBuf,
    /// The reference to register it under; not an alias.
    pub reference: ModelRef,
    /// The short name to give it.
    pub alias: Option<ModelAlias>,
    /// The digest it must have.
    pub expected_sha256: Option<Sha256Hex>,
}

/// A source file, open and with a valid header.
struct Source {
    file: File,
    path: PathBuf,
    size_bytes: u64,
    header: GgufHeader,
}

/// Whether the model directory got its file from this import.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Placement {
    Copied,
    InPlace,
}

impl ModelStore {
    /// Imports a local model file, and returns its entry.
    ///
    /// The header is checked first. A file that lies in the model directory is registered where it is; any other is
    /// copied, never linked, so that a later change of the original cannot reach the model. Importing the same content
    /// under the same reference again copies nothing. `on_progress` is called every few milliseconds and ends the import
    /// by answering `Break`. Blocks for as long as reading and writing take.
    ///
    /// # Errors
    /// [`StoreError`]. Then no new file is left and nothing is registered; a model that was there stays as it was.
    pub fn import(
        &self,
        request: &ImportRequest,
        mut on_progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Model, StoreError> {
        self.check_names(request)?;
        let mut source = Source::open(&request.source)?;
        if self.holds(&source.path) {
            if let Some(owner) = self.catalog.file_owner(&source.path, &request.reference)? {
                return Err(CatalogError::FileTaken { reference: owner }.into());
            }
            let sha256 = hash(&mut source.file, source.size_bytes, &mut on_progress)?;
            expect_digest(request, &sha256)?;
            return self.register(
                request,
                source.path,
                source.size_bytes,
                sha256,
                source.header,
                Placement::InPlace,
            );
        }
        if let Some(model) = self.find_same(request, &mut source, &mut on_progress)? {
            return Ok(model);
        }
        self.copy_in(request, source, &mut on_progress)
    }

    /// Refuses, before any work, what the catalog would refuse after it.
    fn check_names(&self, request: &ImportRequest) -> Result<(), StoreError> {
        let reference = &request.reference;
        if reference.provider() == Provider::Alias {
            return Err(CatalogError::NotAPlace { reference: reference.clone() }.into());
        }
        if let Some(alias) = &request.alias
            && let Some(owner) = self.catalog.alias_owner(alias, reference)?
        {
            return Err(CatalogError::AliasTaken { alias: alias.clone(), reference: owner }.into());
        }
        Ok(())
    }

    /// Finds the model when it is there already, whole and with the same content.
    fn find_same(
        &self,
        request: &ImportRequest,
        source: &mut Source,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Option<Model>, StoreError> {
        let Some(model) = self.catalog.get(&request.reference)? else { return Ok(None) };
        if model.size_bytes != source.size_bytes || self.check(&model).is_err() {
            return Ok(None);
        }
        let sha256 = hash(&mut source.file, source.size_bytes, on_progress)?;
        rewind(&mut source.file)?;
        if sha256 != model.sha256 {
            return Ok(None);
        }
        expect_digest(request, &sha256)?;
        if request.alias.is_none() || request.alias == model.alias {
            return Ok(Some(model));
        }
        self.register(
            request,
            model.path,
            model.size_bytes,
            sha256,
            model.header,
            Placement::InPlace,
        )
        .map(Some)
    }

    fn copy_in(
        &self,
        request: &ImportRequest,
        mut source: Source,
        on_progress: &mut OnProgress<'_>,
    ) -> Result<Model, StoreError> {
        self.require_space(source.size_bytes)?;
        let mut partial = Partial::create(&self.directory)?;
        let sha256 =
            copy_and_hash(&mut source.file, partial.file(), source.size_bytes, on_progress)
                .map_err(|error| self.explain_full_disk(error, source.size_bytes))?;
        expect_digest(request, &sha256)?;
        // What counts is the copy; the original may have been rewritten since its header was read.
        let header = GgufHeader::read(partial.file(), source.size_bytes)?;
        let path = self.directory.join(file_name(&source.path, &sha256, &request.reference));
        self.catalog.moving(&path)?;
        partial.place(&path).map_err(|error| self.explain_full_disk(error, source.size_bytes))?;
        self.register(request, path, source.size_bytes, sha256, header, Placement::Copied)
    }

    /// Enters a file of the directory into the catalog, and clears away the file it replaces.
    fn register(
        &self,
        request: &ImportRequest,
        path: PathBuf,
        size_bytes: u64,
        sha256: Sha256Hex,
        header: GgufHeader,
        placement: Placement,
    ) -> Result<Model, StoreError> {
        let previous = self.catalog.get(&request.reference)?;
        let kept_alias = previous.as_ref().and_then(|previous| previous.alias.clone());
        let model = Model {
            reference: request.reference.clone(),
            alias: request.alias.clone().or(kept_alias),
            path,
            size_bytes,
            sha256,
            header,
            added_at_ms: now_ms(),
        };
        let registered = sidecar::write(&model).and_then(|()| Ok(self.catalog.register(&model)?));
        if let Err(error) = registered {
            self.take_back(&model, placement);
            return Err(error);
        }
        if let Some(previous) = previous
            && previous.path != model.path
        {
            self.clear_away(&previous.path);
        }
        Ok(model)
    }

    /// Removes what a failed registration left, unless the catalog names it.
    fn take_back(&self, model: &Model, placement: Placement) {
        let is_named = match self.catalog.list() {
            Ok(models) => models.iter().any(|other| other.path == model.path),
            Err(_) => true,
        };
        if !is_named {
            // The error that led here is the one to tell.
            match placement {
                Placement::Copied => self.clear_away(&model.path),
                Placement::InPlace => {
                    durable::remove_file(&sidecar::path_of(&model.path)).ok();
                }
            }
        }
    }

    fn require_space(&self, size_bytes: u64) -> Result<(), StoreError> {
        let available_bytes = self.available_bytes()?;
        let required_bytes = size_bytes.saturating_add(FREE_BYTES_MIN);
        if available_bytes < required_bytes {
            return Err(StoreError::NoSpace { required_bytes, available_bytes });
        }
        Ok(())
    }

    fn available_bytes(&self) -> Result<u64, StoreError> {
        (self.free_bytes)(&self.directory).map_err(|source| StoreError::Io {
            action: "ask for the free space of the model directory",
            source,
        })
    }

    /// Turns the disk's running full under way into the same error as having no room from the start.
    fn explain_full_disk(&self, error: StoreError, size_bytes: u64) -> StoreError {
        match &error {
            StoreError::Io { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                let required_bytes = size_bytes.saturating_add(FREE_BYTES_MIN);
                let available_bytes = self.available_bytes().unwrap_or(0);
                StoreError::NoSpace { required_bytes, available_bytes }
            }
            _ => error,
        }
    }
}

impl Source {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let (mut file, size_bytes) = open_model_file(path)?;
        let path = path.canonicalize().map_err(|source| StoreError::Unreadable { source })?;
        let header = GgufHeader::read(&mut file, size_bytes)?;
        if header.split_count > 1 {
            return Err(StoreError::SplitModel { count: header.split_count });
        }
        rewind(&mut file)?;
        Ok(Self { file, path, size_bytes, header })
    }
}

fn rewind(file: &mut File) -> Result<(), StoreError> {
    file.rewind().map_err(|source| StoreError::Unreadable { source })
}

fn expect_digest(request: &ImportRequest, actual: &Sha256Hex) -> Result<(), StoreError> {
    match &request.expected_sha256 {
        Some(expected) if expected != actual => {
            Err(StoreError::ChecksumMismatch { expected: expected.clone(), actual: actual.clone() })
        }
        _ => Ok(()),
    }
}

/// Names a file after its source, for people, and after its content and reference, so that no two models share one.
fn file_name(source: &Path, sha256: &Sha256Hex, reference: &ModelRef) -> String {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let plain =
        |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    let stem: String =
        stem.trim_start_matches(['.', '-']).chars().map(plain).take(STEM_MAX).collect();
    let stem = if stem.is_empty() { "model" } else { &stem };
    let identity = Sha256::digest(format!("{sha256} {reference}"));
    let [a, b, c, d, e, f, g, h, ..]: [u8; 32] = identity.into();
    format!("{stem}-{:016x}.gguf", u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}

/// A clock set before 1970 or beyond the year 292 million gives the nearest time there is.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
