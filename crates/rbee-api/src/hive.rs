//! The conversation between the queen and a hive.

use input_validation::NodeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::audit::AuditStatus;
use crate::model::ModelInfo;
use crate::worker::WorkerInfo;

/// `POST /api/v1/hives/{name}/heartbeat`, hive → queen, every interval and at
/// once on change: everything the hive knows. A snapshot with an older
/// `(epoch, sequence)` than the last one is ignored; the answer tells that one's
/// epoch, and the hive takes a greater one for all that follow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HiveSnapshot {
    /// Orders the processes of a hive: microseconds from 1970 to its start, as far as its clock is right, or more than
    /// what the queen answers with.
    pub epoch: u64,
    /// Grows by one with each snapshot of this process.
    pub sequence: u64,
    /// True from the first shutdown request on.
    pub draining: bool,
    /// Whether it speaks plain HTTP on an address that others can reach.
    #[serde(default)]
    pub plain_http_on_network: bool,
    /// What the machine has.
    pub resources: Resources,
    /// Models on disk.
    pub models: Vec<ModelInfo>,
    /// Workers, the failed ones too.
    pub workers: Vec<WorkerInfo>,
}

/// What a machine has, as far as placement needs to know.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Memory in all.
    pub memory_total_bytes: u64,
    /// Memory that a new worker could take.
    pub memory_available_bytes: u64,
    /// Memory that workers were granted and have not taken yet.
    #[serde(default)]
    pub memory_reserved_bytes: u64,
    /// What holds a worker to the memory it was granted.
    #[serde(default)]
    pub memory_limit: MemoryLimit,
    /// Size of the file system that holds the models; null where it cannot be read.
    #[serde(default)]
    pub disk_total_bytes: Option<u64>,
    /// What can still be written there.
    #[serde(default)]
    pub disk_available_bytes: Option<u64>,
    /// Memory of all GPUs together; null where there is none, or where it is not known.
    #[serde(default)]
    pub vram_total_bytes: Option<u64>,
    /// What of that is free.
    #[serde(default)]
    pub vram_available_bytes: Option<u64>,
    /// Processor cores.
    pub cores: u32,
    /// Workers it may run at once.
    pub workers_max: u32,
}

/// What holds a worker to the memory it was granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemoryLimit {
    /// A control group of version 2.
    CgroupV2,
    /// A control group of version 1.
    CgroupV1,
    /// Nothing: a worker that takes more than it was granted takes it from others.
    #[default]
    Unenforced,
}

/// The queen's answer to a hive's snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotReply {
    /// How long until the next snapshot is due; 0 leaves that to the hive.
    pub interval_ms: u64,
    /// The epoch of the newest snapshot that the queen has from this machine. One that is greater than that of the
    /// snapshot says that the snapshot was ignored.
    #[serde(default)]
    pub epoch: u64,
}

/// A hive's answer to what a worker tells.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HeartbeatReply {
    /// How long until the next snapshot is due; 0 leaves that to the sender.
    pub interval_ms: u64,
}

/// Whether the queen can give a machine work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HiveState {
    /// Heard of within two intervals.
    #[default]
    Online,
    /// Silent for more than two intervals, or being looked for after it was there: gets no new work.
    Suspect,
    /// Silent for more than four intervals: its workers and models are not listed any more.
    Stale,
    /// Never heard of, or not to be had for a reason that is known.
    Unreachable,
    /// Shutting down.
    Draining,
}

impl HiveState {
    /// All states.
    pub const ALL: &'static [Self] =
        &[Self::Online, Self::Suspect, Self::Stale, Self::Unreachable, Self::Draining];

    /// Returns the state as it stands on the wire and in metrics, lower_snake.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Suspect => "suspect",
            Self::Stale => "stale",
            Self::Unreachable => "unreachable",
            Self::Draining => "draining",
        }
    }

    /// Says whether requests come through to a machine, those at least that it has.
    #[must_use]
    pub const fn is_reachable(self) -> bool {
        match self {
            Self::Online | Self::Draining => true,
            Self::Suspect | Self::Stale | Self::Unreachable => false,
        }
    }
}

/// One machine, as the queen lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HiveInfo {
    /// Its name.
    pub name: NodeName,
    /// Its address as the queen calls it.
    pub url: String,
    /// Whether it can be given work.
    pub state: HiveState,
    /// Whether it speaks plain HTTP on an address that others can reach.
    #[serde(default)]
    pub plain_http_on_network: bool,
    /// Milliseconds since it was last heard of.
    pub last_heartbeat_age_ms: Option<u64>,
    /// What it has.
    pub resources: Option<Resources>,
    /// Workers that run on it.
    pub workers: u32,
    /// Models on its disk.
    pub models: u32,
}

/// `GET /api/v1/status` on a hive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HiveStatus {
    /// The hive's name.
    pub name: NodeName,
    /// Program version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// True when a queen started it and stops it with itself.
    pub managed: bool,
    /// True from the first shutdown request on.
    pub draining: bool,
    /// Whether it speaks plain HTTP on an address that others can reach.
    #[serde(default)]
    pub plain_http_on_network: bool,
    /// How long it has run.
    pub uptime_ms: u64,
    /// The hive's audit log.
    #[serde(default)]
    pub audit: AuditStatus,
    /// What the machine has.
    pub resources: Resources,
    /// Models on disk.
    pub models: u32,
    /// Workers, the failed ones too.
    pub workers: Vec<WorkerInfo>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_has_the_same_name_in_json_and_in_text() {
        for state in HiveState::ALL {
            assert_eq!(serde_json::to_string(state).unwrap(), format!("\"{}\"", state.as_str()));
        }
    }
}
