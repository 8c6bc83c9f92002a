//! `rbee queen`: starts, stops and looks at the queen of this computer.

use std::time::Duration;

use rbee_home::ExitStatus;
use serde_json::json;

use super::status::{not_running, with_address};
use crate::cli::QueenAction;
use crate::error::KeeperError;
use crate::figures;
use crate::keeper::Keeper;
use crate::queen_client::QueenClient;
use crate::queen_process;

pub(super) async fn queen(keeper: &Keeper, action: QueenAction) -> Result<ExitStatus, KeeperError> {
    match action {
        QueenAction::Start => start(keeper).await,
        QueenAction::Stop => stop(keeper).await,
        QueenAction::Status => match keeper.find_queen().await? {
            Some(queen) => show(keeper, &queen).await,
            None => not_running(keeper),
        },
    }
}

async fn start(keeper: &Keeper) -> Result<ExitStatus, KeeperError> {
    if let Some(url) = &keeper.config.queen_url {
        return Err(KeeperError::usage(
            format!("the queen at {url} cannot be started from here"),
            "leave --queen, RBEE_QUEEN_URL and queen_url out to start one on this computer",
        ));
    }
    let running = keeper.ensure_local_queen().await?;
    if !running.started {
        keeper.output.note("a queen runs already");
    }
    show(keeper, &running.client).await
}

async fn show(keeper: &Keeper, queen: &QueenClient) -> Result<ExitStatus, KeeperError> {
    let status = queen.status().await?;
    let output = &keeper.output;
    if output.is_json() {
        let summary = json!({
            "pid": status.pid,
            "version": status.version,
            "uptime_ms": status.uptime_ms,
            "draining": status.draining,
        });
        output.json(&with_address(&summary, queen.url())?)?;
    } else {
        let uptime = figures::lasting(Duration::from_millis(status.uptime_ms));
        let (version, url, pid) = (&status.version, queen.url(), status.pid);
        let state = if status.draining { "shutting down after running" } else { "running" };
        output.line(&format!("queen {version} at {url}, {state} for {uptime} (process {pid})"))?;
    }
    Ok(ExitStatus::Success)
}

async fn stop(keeper: &Keeper) -> Result<ExitStatus, KeeperError> {
    let output = &keeper.output;
    let Some(queen) = keeper.find_queen().await? else {
        if output.is_json() {
            output.json(&json!({ "stopped": false }))?;
        }
        output.note(queen_process::absence(&keeper.home()?)?);
        return Ok(ExitStatus::Success);
    };
    let activity = output.activity("stopping the queen, its hive and their workers".to_owned());
    queen.shutdown().await?;
    if keeper.config.queen_url.is_none() {
        queen_process::gone(&keeper.home()?).await?;
    }
    drop(activity);
    if output.is_json() {
        output.json(&json!({ "stopped": true }))?;
    } else {
        output.line(&format!("stopped the queen at {}", queen.url()))?;
    }
    Ok(ExitStatus::Success)
}
