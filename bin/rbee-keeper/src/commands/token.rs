//! `rbee token`: replaces the tokens of this home while the programs run, and shows their fingerprints. Prints no token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use auth_min::{Fingerprint, TokenDigest};
use deadline_propagation::Deadline;
use rbee_api::error::ErrorCode;
use rbee_api::queen::RunFile;
use rbee_home::{Daemon, Home};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use secrets_management::{Former, Secret, SecretError, former_path, load_file, replace_file};
use serde_json::{Value, json};

use crate::cli::{TokenAction, WhichToken};
use crate::error::KeeperError;
use crate::keeper::Keeper;
use crate::queen_client::QueenClient;

/// How long a queen may take to read a file again.
const HEED_MAX: Duration = Duration::from_secs(10);
/// Pause between two looks whether she has.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) async fn token(keeper: &Keeper, action: TokenAction) -> Result<(), KeeperError> {
    if let Some(url) = &keeper.config.queen_url {
        return Err(KeeperError::usage(
            format!("the tokens of the queen at {url} are kept where she runs"),
            "run this command there; leave --queen, RBEE_QUEEN_URL and queen_url out for the queen on this computer",
        ));
    }
    let home = keeper.home()?;
    match action {
        TokenAction::Rotate { which } => replace(keeper, &home, which, Former::Keep).await,
        TokenAction::Revoke { which } => replace(keeper, &home, which, Former::Forget).await,
        TokenAction::ShowFingerprint => show(keeper, &home),
    }
}

/// Returns where a token is kept.
fn path_of(keeper: &Keeper, home: &Home, which: WhichToken) -> PathBuf {
    match (which, &keeper.config.token_file) {
        (WhichToken::Client, Some(file)) => file.clone(),
        (WhichToken::Client, None) => home.client_token(),
        (WhichToken::Hive, _) => home.hive_token(),
    }
}

const fn name_of(which: WhichToken) -> &'static str {
    match which {
        WhichToken::Client => "client",
        WhichToken::Hive => "hive",
    }
}

async fn replace(
    keeper: &Keeper,
    home: &Home,
    which: WhichToken,
    former: Former,
) -> Result<(), KeeperError> {
    let path = path_of(keeper, home, which);
    let old = present(&path)?;
    let new = replace_file(&path, former)?;
    let daemons = match which {
        WhichToken::Client => &[Daemon::Queen][..],
        // The hive first: until the queen hears of the new token, she shows the old one, which the hive still takes.
        WhichToken::Hive => &[Daemon::Hive, Daemon::Queen],
    };
    let mut told = Vec::new();
    for daemon in daemons {
        if let Some(run) = tell(home, *daemon)? {
            if which == WhichToken::Client {
                heeded(&run, &new).await?;
            }
            told.push((*daemon, run.pid));
        }
    }
    let kept = old.as_ref().map(fingerprint).filter(|_| former == Former::Keep);
    report(keeper, which, fingerprint(&new), kept, &told)
}

fn report(
    keeper: &Keeper,
    which: WhichToken,
    new: Fingerprint,
    kept: Option<Fingerprint>,
    told: &[(Daemon, u32)],
) -> Result<(), KeeperError> {
    let output = &keeper.output;
    if output.is_json() {
        let told: Vec<Value> = told
            .iter()
            .map(|(daemon, pid)| json!({"program": daemon.program(), "pid": pid}))
            .collect();
        return output.json(&json!({
            "token": name_of(which),
            "fingerprint": new.to_string(),
            "former": kept.map(|former| former.to_string()),
            "told": told,
        }));
    }
    let former = match kept {
        Some(former) => {
            format!("; {former} stays good for auth.token_overlap_seconds, 300 unless configured")
        }
        None => String::new(),
    };
    output.line(&format!("the {} token is {new} now{former}", name_of(which)))?;
    if told.is_empty() {
        output.note("no program runs that has to be told");
    }
    for (daemon, pid) in told {
        output.note(&format!("told {daemon} (process {pid})"));
    }
    Ok(())
}

/// Has a daemon of this home read its tokens again. `None` where none runs.
fn tell(home: &Home, daemon: Daemon) -> Result<Option<RunFile>, KeeperError> {
    // Without the lock the run file is a dead one's, and its number may be a stranger's.
    if !home.is_running(daemon)? {
        return Ok(None);
    }
    let Some(run) = home.read_run_file(daemon)? else { return Ok(None) };
    let Some(pid) = i32::try_from(run.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match kill_process(pid, Signal::HUP) {
        Ok(()) => Ok(Some(run)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(KeeperError::Setup {
            action: "tell a program that its token has changed",
            source: errno.into(),
        }),
    }
}

/// Waits until the queen takes the new token.
async fn heeded(run: &RunFile, token: &Secret) -> Result<(), KeeperError> {
    let client = QueenClient::here(run, token.clone())?;
    let deadline = Deadline::after(HEED_MAX);
    loop {
        match client.status().await {
            Err(KeeperError::Refused(detail))
                if detail.code == ErrorCode::Unauthorized && !deadline.is_expired() =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            answered => return answered.map(drop),
        }
    }
}

fn show(keeper: &Keeper, home: &Home) -> Result<(), KeeperError> {
    let mut rows = Vec::new();
    for which in [WhichToken::Client, WhichToken::Hive] {
        let path = path_of(keeper, home, which);
        let shown = |path: &Path| Ok::<_, KeeperError>(present(path)?.as_ref().map(fingerprint));
        rows.push((name_of(which), shown(&path)?, shown(&former_path(&path))?));
    }
    let text = |fingerprint: Option<Fingerprint>| fingerprint.map(|known| known.to_string());
    if keeper.output.is_json() {
        let entry = |(name, current, former): (&str, _, _)| {
            (name.to_owned(), json!({"fingerprint": text(current), "former": text(former)}))
        };
        let entries: serde_json::Map<String, Value> = rows.into_iter().map(entry).collect();
        return keeper.output.json(&entries);
    }
    let or_none = |fingerprint| text(fingerprint).unwrap_or_else(|| "-".to_owned());
    let rows = rows
        .into_iter()
        .map(|(name, current, former)| [name.to_owned(), or_none(current), or_none(former)]);
    keeper.output.table(["TOKEN", "FINGERPRINT", "FORMER"], rows)
}

/// Loads the secret of a file, `None` where there is no file.
fn present(path: &Path) -> Result<Option<Secret>, KeeperError> {
    match load_file(path) {
        Ok(secret) => Ok(Some(secret)),
        Err(SecretError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn fingerprint(secret: &Secret) -> Fingerprint {
    TokenDigest::of(secret.expose()).fingerprint()
}
