//! One model of the catalog. Owns nothing but the record.

use std::path::PathBuf;

use input_validation::{ModelAlias, ModelRef, Provider, Sha256Hex};

use crate::GgufHeader;

/// Holds what the catalog knows about a model. Its file was whole and hashed when it was registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Where the model came from; identifies it. Never an alias.
    pub reference: ModelRef,
    /// Short name for people, unique in the catalog.
    pub alias: Option<ModelAlias>,
    /// The file on this machine, absolute.
    pub path: PathBuf,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Digest of the file.
    pub sha256: Sha256Hex,
    /// What the file says about the model.
    pub header: GgufHeader,
    /// When it was registered, in milliseconds since 1970.
    pub added_at_ms: i64,
}

impl Model {
    /// Says what kind of place the model came from.
    #[must_use]
    pub const fn provider(&self) -> Provider {
        self.reference.provider()
    }

    /// Returns the name that people use: the alias, or else the reference.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.alias.as_ref().map_or(self.reference.as_str(), ModelAlias::as_str)
    }
}
