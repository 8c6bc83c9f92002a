//! `rbee audit tail`: the last entries of one log, and with `-f` the ones to come.

use std::io;
use std::path::Path;
use std::time::Duration;

use audit_logging::{EntryView, Follower};
use serde_json::Value;

use super::{chosen, directory};
use crate::cli::TailArgs;
use crate::error::KeeperError;
use crate::keeper::Keeper;

/// How often a followed log is looked at: at once, as a reader sees it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(super) async fn tail(keeper: &Keeper, args: &TailArgs) -> Result<(), KeeperError> {
    let all = directory(keeper)?;
    for service in chosen(keeper, Some(&args.service))? {
        let log = all.join(service);
        let failed = |source: io::Error| failed(&log, source);
        let (mut follower, mut lines) = Follower::at_end(&log, args.lines).map_err(failed)?;
        loop {
            lines.iter().try_for_each(|line| show(keeper, line))?;
            if !args.follow {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            lines = follower.new_lines().map_err(failed)?;
        }
    }
    Ok(())
}

fn failed(path: &Path, source: io::Error) -> KeeperError {
    KeeperError::Log { path: path.to_owned(), source }
}

/// A line that is no entry is shown as it is: `rbee audit verify` says what is wrong with it.
fn show(keeper: &Keeper, line: &str) -> Result<(), KeeperError> {
    let entry = serde_json::from_str::<EntryView>(line).ok();
    match entry.filter(|_| !keeper.output.is_json()) {
        Some(entry) => keeper.output.line(&words(&entry)),
        None => keeper.output.line(line),
    }
}

fn words(entry: &EntryView) -> String {
    let mut words = vec![
        entry.timestamp.clone(),
        entry.event_type.clone(),
        entry.outcome.clone(),
        format!("by {}", entry.actor.kind),
    ];
    words.extend(entry.actor.key.as_ref().map(|key| format!("key {key}")));
    words.extend(entry.actor.address.as_ref().map(|address| format!("from {address}")));
    words.extend(entry.subject.as_ref().map(|subject| format!("{} {}", subject.kind, subject.id)));
    words.extend(entry.request_id.as_ref().map(|id| format!("request {id}")));
    words.extend(entry.details.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text:?}"),
        other => format!("{name}={other}"),
    }));
    words.join(" ")
}
