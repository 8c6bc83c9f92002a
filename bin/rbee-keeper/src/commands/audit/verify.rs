//! `rbee audit verify`: is every entry the one that was written, and is none missing.

use std::time::Duration;

use audit_logging::{Verification, held_in, key_of, read_checkpoints, verify as verify_log};
use rbee_api::audit::AuditCheckpoint;
use secrets_management::{Secret, SecretError, load_file};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{chosen, directory};
use crate::cli::VerifyArgs;
use crate::error::KeeperError;
use crate::figures;
use crate::keeper::Keeper;

/// The daemons whose logs are missed when they are gone.
const DAEMONS: [&str; 2] = ["queen-rbee", "rbee-hive"];

pub(super) async fn verify(keeper: &Keeper, args: VerifyArgs) -> Result<(), KeeperError> {
    let directory = directory(keeper)?;
    let root = match load_file(&keeper.home()?.audit_key()) {
        Ok(root) => Some(root),
        Err(SecretError::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let mut elsewhere = held_in(&directory)?;
    for file in &args.checkpoints {
        if !file.exists() {
            return Err(KeeperError::NoFile { path: file.clone() });
        }
        elsewhere.extend(read_checkpoints(file)?);
    }
    let mut logs = chosen(keeper, args.service.as_deref())?;
    if args.service.is_none() {
        logs.extend(gone(&logs, root.as_ref(), &elsewhere)?);
    }
    if logs.is_empty() {
        return Err(KeeperError::NoAuditLog { service: "a daemon".to_owned() });
    }
    let (mut reports, mut broken) = (Vec::new(), 0);
    for service in logs {
        let key = root.as_ref().map(|root| root.derive("audit", &service)).transpose()?;
        let (log, known) = (directory.join(&service), elsewhere.clone());
        let begun = Instant::now();
        let found = tokio::task::spawn_blocking(move || {
            verify_log(&log, key.as_ref().map(key_of).as_deref(), &known)
        });
        let found = found.await.map_err(|error| KeeperError::Setup {
            action: "read the audit log",
            source: std::io::Error::other(error),
        })??;
        broken += usize::from(found.problem.is_some());
        if keeper.output.is_json() {
            reports.push(report(&service, &found, begun.elapsed()));
        } else {
            tell(keeper, &service, &found, begun.elapsed())?;
        }
    }
    if keeper.output.is_json() {
        keeper.output.json(&json!({ "good": broken == 0, "logs": reports }))?;
    }
    if broken == 0 { Ok(()) } else { Err(KeeperError::AuditBroken { logs: broken }) }
}

/// Names the daemons of this home that have signed something, and of which there is no log at all.
fn gone(
    there: &[String],
    root: Option<&Secret>,
    elsewhere: &[AuditCheckpoint],
) -> Result<Vec<String>, KeeperError> {
    let mut missing = Vec::new();
    let Some(root) = root else { return Ok(missing) };
    for daemon in DAEMONS {
        let key = key_of(&root.derive("audit", daemon)?);
        let has_signed = elsewhere.iter().any(|checkpoint| checkpoint.key == key);
        if has_signed && !there.iter().any(|log| log == daemon) {
            missing.push(daemon.to_owned());
        }
    }
    Ok(missing)
}

fn tell(
    keeper: &Keeper,
    service: &str,
    found: &Verification,
    took: Duration,
) -> Result<(), KeeperError> {
    let Verification { entries, first, last, segments, signed_through, .. } = found;
    let output = &keeper.output;
    match &found.problem {
        Some(problem) => output.line(&format!(
            "{service}: BAD: {problem}; {entries} entries before it are good, {} lines from it on cannot be relied on",
            found.suspect_lines
        ))?,
        None => output.line(&format!(
            "{service}: good: {entries} entries ({first} to {last}), files: {segments}, signed through {signed_through}"
        ))?,
    }
    if found.is_torn {
        output.note(&format!(
            "{service}: ends in the middle of an entry, which is being written or was by a program that was killed"
        ));
    }
    output.detail(&format!(
        "{service}: {} checkpoints, {}",
        found.checkpoints,
        figures::lasting(took)
    ));
    Ok(())
}

fn report(service: &str, found: &Verification, took: Duration) -> Value {
    let problem = found
        .problem
        .as_ref()
        .map(|problem| json!({ "entry": problem.entry, "what": problem.flaw.to_string() }));
    json!({
        "service": service,
        "good": found.problem.is_none(),
        "problem": problem,
        "entries": found.entries,
        "first": found.first,
        "last": found.last,
        "files": found.segments,
        "signed_through": found.signed_through,
        "checkpoints": found.checkpoints,
        "torn": found.is_torn,
        "suspect_lines": found.suspect_lines,
        "duration_ms": u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    })
}
