//! Models as the programs name and describe them to each other.

use input_validation::{ModelAlias, ModelRef, Sha256Hex};
use serde::{Deserialize, Serialize};

/// A model that a hive has on disk, verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The canonical reference, such as `file:/data/m.gguf` or `hf:owner/repo:Q4_K_M`.
    pub reference: ModelRef,
    /// The short name users type, such as `smollm2:135m`.
    pub alias: Option<ModelAlias>,
    /// Size of the file.
    pub size_bytes: u64,
    /// SHA-256 of the file.
    pub sha256: Sha256Hex,
    /// `general.architecture` of the GGUF header.
    pub architecture: String,
    /// Quantisation label such as `Q4_K_M`, where the header tells it.
    pub quantisation: Option<String>,
    /// Tokens of context the model was trained for.
    pub context_length: u32,
    /// Number of weights, where the header tells it.
    pub parameters: Option<u64>,
    /// When the model was registered, milliseconds since the epoch.
    pub added_at_ms: u64,
}

impl ModelInfo {
    /// Returns the name to show: the alias where there is one.
    #[must_use]
    pub fn display_name(&self) -> String {
        self.alias.as_ref().map_or_else(|| self.reference.to_string(), ToString::to_string)
    }

    /// Says whether `name`, as a client typed it, means this model.
    #[must_use]
    pub fn answers_to(&self, name: &ModelRef) -> bool {
        let text = name.to_string();
        self.reference == *name || self.alias.as_ref().is_some_and(|alias| alias.as_ref() == text)
    }
}

/// `POST /api/v1/models/pull`, keeper → queen → hive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// What to fetch. `file:` names a file on the hive's machine.
    pub reference: ModelRef,
    /// The short name to give it.
    #[serde(default)]
    pub alias: Option<ModelAlias>,
    /// The SHA-256 the file must have.
    #[serde(default)]
    pub sha256: Option<Sha256Hex>,
}

/// One event of a pull, as `data:` of the server-sent events that answer it.
/// The stream ends after `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PullEvent {
    /// Bytes so far.
    Progress {
        /// Bytes copied and hashed.
        done_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// The model is verified and registered.
    Done {
        /// What was registered.
        model: ModelInfo,
    },
    /// Nothing was registered and nothing is left on disk.
    Failed {
        /// Why.
        error: crate::error::ErrorDetail,
    },
}

/// `GET /api/v1/models` on hive and queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelList {
    /// One entry a model, oldest first.
    pub models: Vec<ModelInfo>,
}
