//! `rbee audit`: checks, shows and prints the audit logs of this computer. Reads files alone, and changes none.

mod export;
mod tail;
mod verify;

use std::path::PathBuf;

use audit_logging::services;

use crate::cli::AuditAction;
use crate::error::KeeperError;
use crate::keeper::Keeper;

/// The directory below which the logs of workers lie.
const WORKERS: &str = "llm-worker-rbee";

pub(super) async fn audit(keeper: &Keeper, action: AuditAction) -> Result<(), KeeperError> {
    if let Some(url) = &keeper.config.queen_url {
        return Err(KeeperError::usage(
            format!("the audit logs lie on the machine behind {url}"),
            "run `rbee audit` there, or leave --queen and RBEE_QUEEN_URL out for this computer's",
        ));
    }
    match action {
        AuditAction::Verify(args) => verify::verify(keeper, args).await,
        AuditAction::Tail(args) => tail::tail(keeper, &args).await,
        AuditAction::Export(args) => export::export(keeper, &args).await,
    }
}

/// Returns the directory of all logs.
fn directory(keeper: &Keeper) -> Result<PathBuf, KeeperError> {
    Ok(keeper.home()?.audit_dir())
}

/// Returns the one log that was asked for, by its directory's name, or all there are.
fn chosen(keeper: &Keeper, service: Option<&str>) -> Result<Vec<String>, KeeperError> {
    let there = services(&directory(keeper)?)?;
    let Some(asked) = service else { return Ok(there) };
    let name = match asked {
        "queen" => "queen-rbee".to_owned(),
        "hive" => "rbee-hive".to_owned(),
        worker if worker.starts_with("w-") => format!("{WORKERS}/{worker}"),
        name => name.to_owned(),
    };
    if there.contains(&name) {
        return Ok(vec![name]);
    }
    Err(KeeperError::NoAuditLog { service: asked.to_owned() })
}
