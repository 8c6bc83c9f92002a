//! Models as the programs name and describe them to each other.

use input_validation::{ModelAlias, ModelRef, Sha256Hex};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, ErrorDetail};

/// What a model is for. Each kind answers its own routes and refuses the others'.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Writes text: chats and completions.
    #[default]
    Generate,
    /// Turns texts into vectors.
    Embed,
    /// Scores how well documents answer a query.
    Rerank,
}

impl ModelKind {
    /// Returns the name on the wire and in listings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Embed => "embed",
            Self::Rerank => "rerank",
        }
    }

    /// Returns what a model of this kind can be asked for, as listings for clients name it.
    #[must_use]
    pub const fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::Generate => &["chat", "completion"],
            Self::Embed => &["embedding"],
            Self::Rerank => &["rerank"],
        }
    }

    /// Returns why a model of this kind, which clients call `model`, cannot do what a request asks a model of kind
    /// `asked` for, and where the model belongs: `unsupported_parameter`, blaming `model`. `None` where it can.
    #[must_use]
    pub fn refusal(self, asked: Self, model: &ModelRef) -> Option<ErrorDetail> {
        if self == asked {
            return None;
        }
        let (does, route) = match self {
            Self::Generate => ("generates text", "/v1/chat/completions"),
            Self::Embed => ("gives embeddings", "/v1/embeddings"),
            Self::Rerank => ("scores documents against a query", "/v1/rerank"),
        };
        let wanted = match asked {
            Self::Generate => "a text model",
            Self::Embed => "an embedding model",
            Self::Rerank => "a reranking model",
        };
        let message = format!(
            "{model} {does} and answers at {route}; this route needs {wanted}, \
             `rbee list` shows the kind of each"
        );
        Some(ErrorDetail::new(ErrorCode::UnsupportedParameter, message).with_param("model"))
    }
}

impl std::fmt::Display for ModelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A model that a hive has on disk, verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelInfo {
    /// The canonical reference, such as `file:/data/m.gguf` or `hf:owner/repo:Q4_K_M`.
    pub reference: ModelRef,
    /// The short name users type, such as `smollm2:135m`.
    pub alias: Option<ModelAlias>,
    /// Size of the file.
    pub size_bytes: u64,
    /// SHA-256 of the file.
    pub sha256: Sha256Hex,
    /// What it is for, as its header tells; of a hive too old to say, to write text.
    #[serde(default)]
    pub kind: ModelKind,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
        error: ErrorDetail,
    },
}

/// `GET /api/v1/models` on hive and queen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelList {
    /// One entry a model, oldest first.
    pub models: Vec<ModelInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [ModelKind; 3] = [ModelKind::Generate, ModelKind::Embed, ModelKind::Rerank];

    #[test]
    fn a_kind_answers_its_own_routes_and_says_where_else_to_go() {
        let model: ModelRef = "bge:small".parse().unwrap();
        for kind in KINDS {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{kind}\""));
            for asked in KINDS {
                match kind.refusal(asked, &model) {
                    None => assert_eq!(kind, asked),
                    Some(refused) => {
                        assert_ne!(kind, asked);
                        assert_eq!(refused.code, ErrorCode::UnsupportedParameter);
                        assert_eq!(refused.param.as_deref(), Some("model"));
                        assert!(refused.message.contains("bge:small"), "{refused}");
                    }
                }
            }
        }
    }
}
