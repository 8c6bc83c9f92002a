//! `rbee status`: the queen, the machines, the workers.

use std::time::Duration;

use rbee_api::audit::{AuditMode, AuditStatus};
use rbee_api::hive::{HiveInfo, HiveState, MemoryLimit};
use rbee_api::queen::AuthMode;
use rbee_home::ExitStatus;
use serde_json::{Value, json};

use super::ps;
use crate::error::KeeperError;
use crate::figures;
use crate::keeper::Keeper;

pub(super) async fn status(keeper: &Keeper) -> Result<ExitStatus, KeeperError> {
    let Some(queen) = keeper.find_queen().await? else {
        return not_running(keeper);
    };
    let status = queen.status().await?;
    let output = &keeper.output;
    if output.is_json() {
        output.json(&with_address(&status, queen.url())?)?;
        return Ok(ExitStatus::Success);
    }
    let uptime = figures::lasting(Duration::from_millis(status.uptime_ms));
    let state = if status.draining { "shutting down after running" } else { "running" };
    let waiting: u32 = status.queues.iter().map(|queue| queue.requests_waiting).sum();
    let waiting = if waiting == 0 { String::new() } else { format!(", {waiting} of them wait") };
    output.line(&format!(
        "queen {} at {}, {state} for {uptime} (process {}), requests: {}{waiting}",
        status.version,
        queen.url(),
        status.pid,
        status.requests_running
    ))?;
    if status.auth_mode == AuthMode::None {
        output.line(
            "warning: auth.mode is \"none\": every program and user of her machine may do all of this",
        )?;
    }
    if status.plain_http_on_network {
        output.line(
            "warning: the queen speaks plain HTTP on the network: others can read tokens and prompts on their way",
        )?;
    }
    for hive in status.hives.iter().filter(|hive| hive.plain_http_on_network) {
        output.line(&format!(
            "warning: the hive of {} speaks plain HTTP on the network: others can read its token and prompts on their way",
            hive.name
        ))?;
    }
    if let Some(trouble) = audit_trouble(&status.audit) {
        output.line(trouble)?;
    }
    output.line("")?;
    output.table(
        [
            "MACHINE",
            "STATE",
            "WORKERS",
            "MODELS",
            "MEMORY FREE",
            "DISK FREE",
            "MEMORY LIMIT",
            "CORES",
        ],
        status.hives.iter().map(hive_row),
    )?;
    if !status.workers.is_empty() {
        output.line("")?;
        ps::table(keeper, &status.workers)?;
    }
    Ok(ExitStatus::Success)
}

/// Says what is not as it should be with the queen's audit log.
fn audit_trouble(audit: &AuditStatus) -> Option<&'static str> {
    match (audit.mode, audit.failing) {
        (AuditMode::Off, _) => Some("audit log: off"),
        (AuditMode::File, true) => {
            Some("audit log: cannot be written; commands that change something are refused")
        }
        (AuditMode::File, false) => None,
    }
}

/// Says that no queen runs, which is an answer and not a failure, but has an exit code of its own.
pub(super) fn not_running(keeper: &Keeper) -> Result<ExitStatus, KeeperError> {
    let output = &keeper.output;
    if output.is_json() {
        output.json(&json!({ "running": false }))?;
    } else {
        output.line("no queen runs on this computer")?;
        output.note("`rbee queen start` starts one, and so does `rbee run`");
    }
    Ok(ExitStatus::Unavailable)
}

/// Adds to what the queen says where she was asked.
pub(super) fn with_address<T: serde::Serialize>(
    status: &T,
    url: &str,
) -> Result<Value, KeeperError> {
    let mut value = serde_json::to_value(status).map_err(KeeperError::Garbled)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("running".to_owned(), json!(true));
        fields.insert("url".to_owned(), json!(url));
    }
    Ok(value)
}

fn hive_row(hive: &HiveInfo) -> [String; 8] {
    let state = match hive.state {
        HiveState::Draining => "shutting down",
        HiveState::Online | HiveState::Suspect | HiveState::Stale | HiveState::Unreachable => {
            hive.state.as_str()
        }
    };
    let [memory, disk, limit, cores] = match &hive.resources {
        None => ["-"; 4].map(str::to_owned),
        Some(resources) => {
            let free = figures::bytes(resources.memory_available_bytes);
            let total = figures::bytes(resources.memory_total_bytes);
            let disk = resources.disk_available_bytes.map_or("-".to_owned(), figures::bytes);
            let limit = match resources.memory_limit {
                MemoryLimit::CgroupV2 | MemoryLimit::CgroupV1 => "enforced",
                MemoryLimit::Unenforced => "unenforced",
            };
            [format!("{free} of {total}"), disk, limit.to_owned(), resources.cores.to_string()]
        }
    };
    [
        hive.name.to_string(),
        state.to_owned(),
        hive.workers.to_string(),
        hive.models.to_string(),
        memory,
        disk,
        limit,
        cores,
    ]
}
