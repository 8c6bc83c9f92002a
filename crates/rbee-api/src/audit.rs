//! What the daemons tell each other and their callers about their audit logs. The entries themselves never travel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `POST /api/v1/hives/{name}/audit`, hive → queen, and her answer: one
/// program's word, signed, of how far its audit log goes. Whoever holds it
/// finds out when the log has become shorter or another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditCheckpoint {
    /// Whose log it is, as its entries say.
    pub service: String,
    /// The last entry that it covers.
    pub sequence: u64,
    /// That entry's hash, 64 hex digits.
    pub entry_hash: String,
    /// When it was signed, RFC 3339.
    pub timestamp: String,
    /// The Ed25519 key that verifies it, 64 hex digits.
    pub key: String,
    /// The signature over all of the above, 128 hex digits.
    pub signature: String,
}

/// What a hive sends and the queen answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuditExchange {
    /// The sender's newest; null while it has none.
    pub checkpoint: Option<AuditCheckpoint>,
}

/// Whether a daemon writes down who did what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditMode {
    /// Into files of its home directory.
    #[default]
    File,
    /// Nowhere.
    Off,
}

/// A daemon's audit log, as its status shows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditStatus {
    /// Whether there is one.
    pub mode: AuditMode,
    /// Entries since the log began, those of former processes too.
    pub entries: u64,
    /// Entries that this process could not write.
    pub entries_lost: u64,
    /// True while the last attempt to write failed, and what must be written down is refused.
    pub failing: bool,
}
