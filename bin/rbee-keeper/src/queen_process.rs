//! The queen of this computer as a process: found, started, waited for, stopped. The only file here that starts a
//! process. Waits for conditions, never for a time; a queen that was started is left running.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use deadline_propagation::Deadline;
use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessSession};
use rbee_api::error::ErrorCode;
use rbee_api::queen::RunFile;
use rbee_home::{Daemon, ExitStatus, Home};
use rbee_http::CallError;
use rustix::process::{Pid, test_kill_process};
use secrets_management::{Secret, SecretError, load_file};

use crate::error::KeeperError;
use crate::figures;
use crate::output::Output;
use crate::queen_client::QueenClient;

/// How long a queen may take to get ready: opening a database and starting a hive takes well under a second.
const START_MAX: Duration = Duration::from_secs(30);
/// How long a queen may take to end: its own drain and its hive's, and some room.
const STOP_MAX: Duration = Duration::from_secs(60);
/// First and longest pause between two looks: short, so that a cold start costs little.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// A queen on this computer answers within a millisecond; one that is stuck is asked again.
const PROBE: Duration = Duration::from_secs(1);
/// How much of the log is searched for the reason of a failed start.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// What a look at this computer finds.
enum Found {
    /// A queen that takes work.
    Ready(QueenClient),
    /// A queen that finishes its last requests.
    Draining(QueenClient),
    /// A queen that does not answer yet.
    Starting,
    /// None.
    Absent,
}

/// A queen that takes work, and whether it had to be started.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) client: QueenClient,
    pub(crate) started: bool,
}

/// Returns the queen that runs on this computer, waiting for one that is starting; `None` where none runs.
/// `token` replaces the token in the home.
///
/// # Errors
/// What is wrong with the home or the token, and [`KeeperError::QueenSlow`].
pub(crate) async fn find(
    home: &Home,
    token: Option<&Secret>,
) -> Result<Option<QueenClient>, KeeperError> {
    let mut wait = Wait::at_most(START_MAX);
    loop {
        match look(home, token).await? {
            Found::Ready(client) | Found::Draining(client) => return Ok(Some(client)),
            Found::Absent => return Ok(None),
            Found::Starting => wait.pause("starts").await?,
        }
    }
}

/// Returns the queen that runs on this computer, or starts one and waits until it takes work.
///
/// # Errors
/// As [`find`], and why the queen could not be started.
pub(crate) async fn ensure(
    home: &Home,
    token: Option<&Secret>,
    output: &Output,
) -> Result<Running, KeeperError> {
    let mut wait = Wait::at_most(STOP_MAX);
    let mut has_started = false;
    let mut launched: Option<Launched> = None;
    let mut activity = None;
    loop {
        let found = look(home, token).await?;
        match found {
            Found::Ready(client) => {
                drop(activity);
                if let Some(launched) = &launched {
                    let time = figures::seconds(launched.since.elapsed());
                    output.note(&format!("started queen-rbee in {time}"));
                }
                return Ok(Running { client, started: launched.is_some() });
            }
            Found::Absent if launched.is_none() => {
                let program = beside_this_program(Daemon::Queen.program())?;
                // The old message must be gone before the new one is drawn.
                drop(activity.take());
                activity = Some(output.activity("starting queen-rbee".to_owned()));
                launched = Some(Launched::spawn(&program, home)?);
                // Only once, or queens that all yield would be started for ever.
                if !has_started {
                    has_started = true;
                    wait = Wait::at_most(START_MAX);
                }
            }
            Found::Draining(_) if activity.is_none() => {
                activity = Some(output.activity("waiting for the last queen to stop".to_owned()));
            }
            Found::Starting if activity.is_none() => {
                activity = Some(output.activity("waiting for queen-rbee".to_owned()));
            }
            Found::Absent | Found::Draining(_) | Found::Starting => {}
        }
        if let Some(running) = &mut launched
            && running.has_yielded()?
        {
            launched = None;
        }
        wait.pause("starts").await?;
    }
}

/// Waits until no queen runs on this computer any more.
///
/// # Errors
/// [`KeeperError::QueenSlow`], and what is wrong with the home.
pub(crate) async fn gone(home: &Home) -> Result<(), KeeperError> {
    let mut wait = Wait::at_most(STOP_MAX);
    while home.is_running(Daemon::Queen)? {
        wait.pause("stops").await?;
    }
    Ok(())
}

/// Says what there is without a queen: nothing, or the hive that one which was killed has left.
///
/// # Errors
/// What is wrong with the home.
pub(crate) fn absence(home: &Home) -> Result<&'static str, KeeperError> {
    if home.is_running(Daemon::Hive)? {
        return Ok(
            "no queen runs on this computer, but a hive does, with its workers; `rbee queen start` takes them \
                   over, and `rbee queen stop` then stops them",
        );
    }
    // One that ends in order takes its run file with it.
    let was_killed = home.read_run_file(Daemon::Hive)?.is_some();
    Ok(if was_killed {
        "no queen runs on this computer, and its hive was killed; workers that it left behind end by themselves, or at \
         once by `rbee queen start` or `rbee queen stop`"
    } else {
        "no queen runs on this computer; `rbee run` starts one"
    })
}

/// Looks once. Only a process that holds the queen's lock and lives is shown the token: whoever listens at an address
/// that a dead queen left behind must not get it.
async fn look(home: &Home, token: Option<&Secret>) -> Result<Found, KeeperError> {
    if !home.is_running(Daemon::Queen)? {
        return Ok(Found::Absent);
    }
    let Some(run) = home.read_run_file(Daemon::Queen)?.filter(is_alive) else {
        return Ok(Found::Starting);
    };
    let token = match token {
        Some(token) => token.clone(),
        None => match load_file(&home.client_token()) {
            Ok(token) => token,
            Err(SecretError::NotFound { .. }) => return Ok(Found::Starting),
            Err(error) => return Err(error.into()),
        },
    };
    let client = QueenClient::here(&run, token)?;
    match client.ready(PROBE).await {
        Ok(()) => Ok(Found::Ready(client)),
        Err(CallError::Refused(detail)) if detail.code == ErrorCode::Draining => {
            Ok(Found::Draining(client))
        }
        Err(
            CallError::Refused(_)
            | CallError::Unreachable(_)
            | CallError::TimedOut
            | CallError::Foreign { .. },
        ) => Ok(Found::Starting),
        Err(error @ (CallError::Setup(_) | CallError::Tls(_))) => Err(KeeperError::Client(error)),
    }
}

fn is_alive(run: &RunFile) -> bool {
    i32::try_from(run.pid)
        .ok()
        .and_then(Pid::from_raw)
        .is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Pauses that grow, up to a limit on them all.
struct Wait {
    limit: Duration,
    deadline: Deadline,
    pause: Duration,
}

impl Wait {
    fn at_most(limit: Duration) -> Self {
        Self { limit, deadline: Deadline::after(limit), pause: PAUSE_MIN }
    }

    async fn pause(&mut self, verb: &'static str) -> Result<(), KeeperError> {
        if self.deadline.is_expired() {
            return Err(KeeperError::QueenSlow { verb, seconds: self.limit.as_secs() });
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

/// A queen that this process has started.
struct Launched {
    child: Box<dyn ChildWrapper>,
    log: PathBuf,
    /// Where in the log its own lines begin.
    log_start: u64,
    since: tokio::time::Instant,
}

impl Launched {
    /// Starts `program` in a session of its own, so that neither Ctrl-C nor the end of
    /// the terminal reaches it.
    fn spawn(program: &Path, home: &Home) -> Result<Self, KeeperError> {
        let log = home.open_daemon_log(Daemon::Queen)?;
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        let stderr = log.try_clone().map_err(KeeperError::QueenSpawn)?;
        let mut command = CommandWrap::with_new(program, |command| {
            command
                .arg("--home")
                .arg(home.root())
                .current_dir(home.root())
                // It names the settings of the program that the user typed, which is this one.
                .env_remove("RBEE_CONFIG")
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(stderr);
        });
        command.wrap(ProcessSession);
        let child = command.spawn().map_err(KeeperError::QueenSpawn)?;
        let log = home.daemon_log(Daemon::Queen);
        Ok(Self { child, log, log_start, since: tokio::time::Instant::now() })
    }

    /// Answers whether the child has ended because another queen was faster.
    ///
    /// # Errors
    /// [`KeeperError::QueenDied`] when it ended for another reason.
    fn has_yielded(&mut self) -> Result<bool, KeeperError> {
        let Some(status) = self.child.try_wait().map_err(KeeperError::QueenSpawn)? else {
            return Ok(false);
        };
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        if code == Some(ExitStatus::TryAgain.code()) {
            return Ok(true);
        }
        let told = read_from(&self.log, self.log_start).unwrap_or_default();
        let (reason, hint) = last_words(&told);
        Err(KeeperError::QueenDied {
            reason: reason.unwrap_or_else(|| format!("it ended with {status}")),
            hint: hint.unwrap_or_else(|| format!("see {}", self.log.display())),
            status: daemon_status(code),
        })
    }
}

fn beside_this_program(name: &str) -> Result<PathBuf, KeeperError> {
    let own = std::env::current_exe()
        .map_err(|source| KeeperError::Setup { action: "find this program's own file", source })?;
    let path = own.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(KeeperError::QueenMissing { path }) }
}

fn daemon_status(code: Option<u8>) -> ExitStatus {
    [ExitStatus::Unavailable, ExitStatus::OsError, ExitStatus::NoPermission, ExitStatus::Config]
        .into_iter()
        .find(|status| Some(status.code()) == code)
        .unwrap_or(ExitStatus::Failure)
}

/// Reads the end of a log, no further back than `start`.
fn read_from(path: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(LOG_TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns the last `error:` of a log and the `hint:` after it, or else the last line.
fn last_words(log: &str) -> (Option<String>, Option<String>) {
    let mut reason = None;
    let mut hint = None;
    let mut last = None;
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        if let Some(text) = line.strip_prefix("error: ") {
            (reason, hint) = (Some(text.to_owned()), None);
        } else if let Some(text) = line.strip_prefix("hint: ") {
            hint = Some(text.to_owned());
        }
        last = Some(line.to_owned());
    }
    (reason.or(last), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_failed_start_is_taken_from_the_log() {
        let words = |log: &str| last_words(log);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            words("INFO starting\nerror: port 8080 is taken\nhint: set --bind\n"),
            (some("port 8080 is taken"), some("set --bind"))
        );
        assert_eq!(
            words("error: old\nhint: old\nerror: new\n"),
            (some("new"), None),
            "a hint belongs to the error before it"
        );
        assert_eq!(words("Segmentation fault\n\n"), (some("Segmentation fault"), None));
        assert_eq!(words(""), (None, None));
    }

    #[tokio::test]
    async fn a_run_file_that_a_dead_queen_left_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("home")).unwrap();
        let lock = home.lock(Daemon::Queen).unwrap();
        // No process has the largest id that the kernel could hand out.
        let stale = RunFile::plain("http://127.0.0.1:1".to_owned(), u32::MAX / 2);
        let _run = home.write_run_file(Daemon::Queen, &lock, &stale).unwrap();
        assert!(matches!(look(&home, None).await.unwrap(), Found::Starting));
        drop(lock);
        assert!(matches!(look(&home, None).await.unwrap(), Found::Absent));
        assert!(find(&home, None).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_has_an_end() {
        let mut wait = Wait::at_most(Duration::from_secs(2));
        let mut pauses = 0;
        let slow = loop {
            match wait.pause("starts").await {
                Ok(()) => pauses += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(slow, KeeperError::QueenSlow { seconds: 2, .. }));
        assert!((40..60).contains(&pauses), "{pauses}");
    }
}
