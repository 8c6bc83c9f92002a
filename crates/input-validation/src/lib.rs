//! Text types that cannot hold bad input. Owns the syntax of every name a user or a peer may send; parsing happens
//! once, at the edge, and a value of one of these types needs no further check. Never knows what a name refers to:
//! whether a model, machine or worker exists is another crate's answer.

mod digest;
mod error;
mod model_alias;
mod model_ref;
mod names;
mod percent;
mod prompt;
mod range;
mod safe_path;
mod sanitize;
mod schema;
mod text;

pub use digest::Sha256Hex;
pub use error::{SettingError, ValidationError};
pub use model_alias::{MODEL_ALIAS_PART_MAX, ModelAlias};
pub use model_ref::{HfModel, MODEL_REF_MAX, ModelRef, ModelTarget, Provider};
pub use names::{
    KEY_NAME_MAX, KeyName, NODE_NAME_MAX, NodeName, REQUEST_ID_MAX, RequestId, WORKER_ID_MAX,
    WORKER_ID_PREFIX, WorkerId,
};
pub use prompt::validate_prompt;
pub use range::in_range;
pub use safe_path::SafePath;
pub use sanitize::{sanitize_for_log, sanitize_for_terminal, sanitize_json_line};
