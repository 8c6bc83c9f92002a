//! What can go wrong with the catalog and with the model directory. Owns the words and codes; shows no path, because
//! these errors reach HTTP bodies.

use std::io;

use input_validation::{ModelAlias, ModelRef, Sha256Hex};
use rbee_sqlite::DatabaseError;

use crate::GgufError;

/// Says why the catalog did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A newer program wrote the database.
    #[error(
        "the model catalog was written by a newer version of rbee; install that version, or move models.db away to \
         have the catalog rebuilt"
    )]
    NewerSchema,
    /// The database cannot be opened.
    #[error("the model catalog cannot be opened")]
    Open(#[source] DatabaseError),
    /// The alias belongs to another model.
    #[error("the alias {alias} already names {reference}")]
    AliasTaken {
        /// The alias wanted.
        alias: ModelAlias,
        /// The model that has it.
        reference: ModelRef,
    },
    /// The file belongs to another model.
    #[error("the model file is already registered as {reference}")]
    FileTaken {
        /// The model that has it.
        reference: ModelRef,
    },
    /// A model was to be registered under an alias instead of the place it comes from.
    #[error("{reference} is an alias; a model is registered under hf:, https: or file:")]
    NotAPlace {
        /// The reference given.
        reference: ModelRef,
    },
    /// The model directory's path cannot be written down as text.
    #[error("the path of the model file is not UTF-8")]
    PathNotUtf8,
    /// A row does not hold what this program writes.
    #[error("the catalog's entry for {reference:?} has an unreadable {column}")]
    BadRow {
        /// The row's key, as it stands there.
        reference: String,
        /// The column.
        column: &'static str,
        /// What is wrong with its content.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// SQLite failed.
    #[error("the model catalog cannot be used")]
    Sql(#[from] rusqlite::Error),
}

impl From<DatabaseError> for CatalogError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Newer => Self::NewerSchema,
            error => Self::Open(error),
        }
    }
}

impl CatalogError {
    /// Names the error for clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::AliasTaken { .. } => "alias_taken",
            Self::FileTaken { .. } | Self::NotAPlace { .. } => "validation_failed",
            Self::NewerSchema
            | Self::Open(_)
            | Self::PathNotUtf8
            | Self::BadRow { .. }
            | Self::Sql(_) => "internal_error",
        }
    }

    /// Answers whether the same call may succeed later: never, without someone's doing something.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

/// Says why a model was not imported, checked or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no file at the place named, or it may not be read.
    #[error("cannot open the model file")]
    Unreadable {
        /// Why the operating system refused.
        #[source]
        source: io::Error,
    },
    /// The place named is a directory or device.
    #[error("the model is not a regular file")]
    NotAFile,
    /// The file is not a usable model.
    #[error(transparent)]
    Header(#[from] GgufError),
    /// The file is one part of a model that is split over several.
    #[error(
        "the model is split over {count} files; merge it into one with llama-gguf-split --merge"
    )]
    SplitModel {
        /// Parts of the model.
        count: u32,
    },
    /// The disk has no room for the model.
    #[error("the model needs {required_bytes} bytes of disk and {available_bytes} are free")]
    NoSpace {
        /// Bytes needed, with some left over for the daemon's own files.
        required_bytes: u64,
        /// Bytes free to this user.
        available_bytes: u64,
    },
    /// The content is not what the caller expected.
    #[error("the model file has SHA-256 {actual}, expected {expected}")]
    ChecksumMismatch {
        /// The digest expected.
        expected: Sha256Hex,
        /// The digest of the content.
        actual: Sha256Hex,
    },
    /// The file changed while it was being read, or since it was registered.
    #[error("the model file has changed")]
    Changed,
    /// The caller asked to stop.
    #[error("the import was cancelled")]
    Cancelled,
    /// There is no such model in the catalog.
    #[error("the model {reference} is not on this machine")]
    NotFound {
        /// The reference or alias asked for.
        reference: ModelRef,
    },
    /// The operating system refused.
    #[error("cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
    /// No random name for a temporary file.
    #[error("cannot get random bytes for a temporary file's name")]
    NoRandomness {
        /// Why it was refused.
        #[source]
        source: getrandom::Error,
    },
    /// The catalog refused.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl StoreError {
    /// Names the error for clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "file_not_found",
            Self::NotAFile | Self::SplitModel { .. } | Self::Changed => "invalid_model_file",
            Self::Header(error) => error.code(),
            Self::NoSpace { .. } => "insufficient_disk",
            Self::ChecksumMismatch { .. } => "checksum_mismatch",
            Self::Cancelled => "cancelled",
            Self::NotFound { .. } => "model_not_found",
            Self::Io { .. } | Self::NoRandomness { .. } => "internal_error",
            Self::Catalog(error) => error.code(),
        }
    }

    /// Answers whether the same call may succeed later: when room has been made on the disk.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}
