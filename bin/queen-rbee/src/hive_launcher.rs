//! The hive of this machine: finds it, starts it where none runs, stops it with
//! the queen. The only file of the queen that starts or signals a process, and
//! the only owner of that process: it alone waits for it and signals it, so a
//! signal cannot reach a stranger. Never starts a worker.

mod error;
mod launches;
mod log_tail;
mod steps;
mod stop;

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use input_validation::NodeName;
use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessSession};
use rbee_api::error::ErrorDetail;
use rbee_api::hive::{HiveSnapshot, HiveStatus};
use rbee_api::queen::RunFile;
use rbee_home::{Daemon, Home};
use rbee_http::{CallError, Credential, HopClient};
use rbee_tls::Trust;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::first_contact;
use crate::registry::Registry;
use crate::telemetry;

use error::LaunchError;
use launches::Launches;
use log_tail::log_tail;

/// How long a hive may take from its start to its first answer.
const LAUNCH_LIMIT: Duration = Duration::from_secs(20);
/// How often is looked whether a hive that is starting or stopping is there yet.
const POLL: Duration = Duration::from_millis(10);
/// How often a hive that works is asked whether it still does.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a hive may take to answer that.
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// Shortest time between two starts, however many requests ask for one.
const LAUNCH_GAP: Duration = Duration::from_secs(1);
/// A pause up to this is short enough for requests to wait through it.
const PAUSE_WORTH_WAITING: Duration = Duration::from_secs(5);
const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;
const SIGCONT: i32 = if cfg!(target_os = "linux") { 18 } else { 19 };

/// What the launcher has to know.
#[derive(Debug)]
pub(crate) struct LauncherOptions {
    pub(crate) home: Home,
    /// The name under which the hive of this machine is known.
    pub(crate) name: NodeName,
    pub(crate) program: PathBuf,
    /// The address of a hive that someone else starts and stops.
    pub(crate) url: Option<String>,
    pub(crate) may_start: bool,
    pub(crate) token: Credential,
    /// By whom a hive is known that someone else starts and stops.
    pub(crate) trust: Trust,
    pub(crate) registry: Arc<Registry>,
}

/// Finds, starts and stops the hive of this machine. One task owns it, so two
/// starts at once cannot be.
#[derive(Debug)]
pub(crate) struct HiveLauncher {
    options: LauncherOptions,
    /// The process, if this queen started it and it has not been seen to end.
    child: Option<Box<dyn ChildWrapper>>,
    /// Whether the hive last found or started belongs to a queen and ends with it, its workers too. A hive that was
    /// killed has left them; one that ended in order has not.
    is_managed: bool,
    launches: Launches,
    last_failure: Option<Failure>,
}

/// Why there was no hive when it was last looked for.
#[derive(Debug)]
struct Failure {
    /// As it was logged.
    told: String,
    /// As clients are told.
    detail: ErrorDetail,
}

impl HiveLauncher {
    pub(crate) fn new(options: LauncherOptions) -> Self {
        Self {
            options,
            child: None,
            is_managed: false,
            launches: Launches::default(),
            last_failure: None,
        }
    }

    /// Makes sure that a hive of this machine answers, and tells the registry
    /// its address. Starts one if none runs and that is allowed; a start that
    /// follows another too soon is put off. Safe to cancel.
    ///
    /// # Errors
    /// [`LaunchError`]; the next call may well succeed.
    pub(crate) async fn ensure_local_hive(&mut self) -> Result<(), LaunchError> {
        let (client, status) = match self.find().await? {
            Some(found) => found,
            None if !self.options.may_start => return Err(LaunchError::NotRunning),
            None => {
                self.pause().await;
                self.launch().await?
            }
        };
        let told = self.ask_what_it_has(&client, status).await;
        self.options.registry.answered(&self.options.name, client, told);
        if self.last_failure.take().is_some() {
            tracing::info!(hive = %self.options.name, "the local hive answers again");
        }
        Ok(())
    }

    /// Returns when the hive's process has ended, when a request found it gone,
    /// and from time to time. Cancel safe.
    pub(crate) async fn until_a_look_is_due(&mut self) {
        let registry = Arc::clone(&self.options.registry);
        tokio::select! {
            () = self.child_ends() => {}
            () = registry.check_is_asked_for() => {}
            () = sleep(LOOK_EVERY) => {}
        }
    }

    /// Tells log and registry why there is no hive; the log only once in a row.
    pub(crate) fn report(&mut self, error: &LaunchError) {
        let (told, detail) = (error.to_string(), error.detail());
        self.options.registry.lost(&self.options.name, detail.clone());
        if self.last_failure.as_ref().is_none_or(|last| last.told != told) {
            let source = std::error::Error::source(error).map(ToString::to_string);
            tracing::error!(
                hive = %self.options.name, error = %error, source,
                "the local hive cannot be used; trying again"
            );
        }
        self.last_failure = Some(Failure { told, detail });
    }

    /// Finds a hive that runs on this machine already and answers.
    async fn find(&mut self) -> Result<Option<(HopClient, HiveStatus)>, LaunchError> {
        if let Some(url) = self.options.url.clone() {
            let trust = self.options.trust.clone();
            return self.probe(&url, &trust).await.map(Some);
        }
        let limit = Instant::now() + LAUNCH_LIMIT;
        loop {
            self.reap();
            let (is_running, run) = look(&self.options.home).await?;
            // Without the lock the run file is a dead one's, and a stranger may listen there.
            if !is_running {
                return Ok(None);
            }
            let problem = match run {
                None => LaunchError::NoAddress,
                Some(run) => match self.probe(&run.url, &trust_of(&run)?).await {
                    Ok(found) => return Ok(Some(found)),
                    Err(error) => error,
                },
            };
            if Instant::now() >= limit {
                return Err(problem);
            }
            sleep(POLL).await;
        }
    }

    /// Asks for the status at `url` with our credential. A known client is used on while it works: one that fails may
    /// know the hive by a certificate that was replaced.
    async fn probe(
        &mut self,
        url: &str,
        trust: &Trust,
    ) -> Result<(HopClient, HiveStatus), LaunchError> {
        let known = self.options.registry.client(&self.options.name);
        let known = known.filter(|client| client.base_url() == url);
        let (client, status) = match known {
            Some(client) => match ask(client).await {
                Err(_) if url.starts_with("https:") => self.ask_anew(url, trust).await?,
                asked => asked?,
            },
            None => self.ask_anew(url, trust).await?,
        };
        self.is_managed = status.managed;
        if status.draining { Err(LaunchError::Draining) } else { Ok((client, status)) }
    }

    async fn ask_anew(
        &self,
        url: &str,
        trust: &Trust,
    ) -> Result<(HopClient, HiveStatus), CallError> {
        ask(HopClient::trusting(url, self.options.token.clone(), trust)?).await
    }

    /// Asks a hive that has reported nothing yet what it has: one that ran
    /// before this queen may report only when its interval is over.
    async fn ask_what_it_has(
        &self,
        client: &HopClient,
        status: HiveStatus,
    ) -> Option<HiveSnapshot> {
        if !self.options.registry.is_unheard(&self.options.name) {
            return None;
        }
        match first_contact::what_it_has(client, status, PROBE_LIMIT).await {
            Ok(told) => Some(told),
            Err(error) => {
                tracing::debug!(hive = %self.options.name, error = %error, "it will report by itself");
                None
            }
        }
    }

    /// Puts off a start that follows others too soon; a request that asks for
    /// the hive shortens it.
    async fn pause(&mut self) {
        let now = Instant::now();
        let due = self.launches.next_due(now);
        let (registry, name) = (&self.options.registry, &self.options.name);
        if due <= now + PAUSE_WORTH_WAITING {
            registry.restarting(name, due + LAUNCH_LIMIT);
        } else {
            // What kept the last one from starting says more than that it is tried again.
            let known = self.last_failure.as_ref().map(|failure| failure.detail.clone());
            registry.lost(name, known.unwrap_or_else(error::ends_again_and_again));
        }
        let asked = async {
            registry.check_is_asked_for().await;
            sleep_until(now + LAUNCH_GAP).await;
        };
        tokio::select! {
            () = sleep_until(due) => {}
            () = asked => {}
        }
    }

    async fn launch(&mut self) -> Result<(HopClient, HiveStatus), LaunchError> {
        let limit = Instant::now() + LAUNCH_LIMIT;
        self.options.registry.restarting(&self.options.name, limit);
        self.launches.begin(Instant::now());
        telemetry::hive_started();
        let log_start = self.spawn_hive()?;
        self.started(log_start, limit).await
    }

    /// Waits until the process that was started answers, and kills it where it does not by `limit`.
    async fn started(
        &mut self,
        log_start: u64,
        limit: Instant,
    ) -> Result<(HopClient, HiveStatus), LaunchError> {
        loop {
            let ended = match self.child.as_mut() {
                Some(child) => timeout(POLL, child.wait()).await.ok(),
                None => return Err(LaunchError::Silent),
            };
            if let Some(status) = ended {
                self.child = None;
                let tail = log_tail(&self.options.home, log_start).await;
                let status = status.map_err(|source| self.spawn_error(source))?;
                return Err(LaunchError::Ended { status, tail });
            }
            let pid = self.child.as_ref().and_then(|child| child.id());
            let (_, run) = look(&self.options.home).await?;
            if let Some(run) = run.filter(|run| Some(run.pid) == pid)
                && let Ok(found) = self.probe(&run.url, &trust_of(&run)?).await
            {
                tracing::info!(hive = %self.options.name, pid, "local hive started");
                return Ok(found);
            }
            if Instant::now() >= limit {
                self.kill().await;
                return Err(LaunchError::Silent);
            }
        }
    }

    /// Starts the process in a session of its own, so that neither a terminal's
    /// Ctrl-C nor its end reaches it. Returns where its part of the log begins.
    fn spawn_hive(&mut self) -> Result<u64, LaunchError> {
        let home = &self.options.home;
        let log = home.open_daemon_log(Daemon::Hive)?;
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        let errors = log.try_clone().map_err(|source| self.spawn_error(source))?;
        let mut command = CommandWrap::with_new(&self.options.program, |command| {
            command
                .arg("--managed")
                .arg("--home")
                .arg(home.root())
                // It names this program's config file, not the hive's.
                .env_remove("RBEE_CONFIG")
                // They tell of a listener that this program was given.
                .env_remove("LISTEN_FDS")
                .env_remove("LISTEN_PID")
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(errors);
        });
        command.wrap(ProcessSession);
        self.child = Some(command.spawn().map_err(|source| self.spawn_error(source))?);
        self.is_managed = true;
        Ok(log_start)
    }

    fn spawn_error(&self, source: io::Error) -> LaunchError {
        LaunchError::Spawn { program: self.options.program.clone(), source }
    }

    /// Returns when our own process has ended; never, without one.
    async fn child_ends(&mut self) {
        match self.child.as_mut() {
            None => std::future::pending().await,
            Some(child) => {
                let status = child.wait().await;
                self.child_ended(status);
            }
        }
    }

    /// Takes note of an end that nobody waited for, so that no zombie remains.
    fn reap(&mut self) {
        match self.child.as_mut().map(|child| child.try_wait()) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(status))) => self.child_ended(Ok(status)),
            Some(Err(error)) => self.child_ended(Err(error)),
        }
    }

    fn child_ended(&mut self, status: io::Result<ExitStatus>) {
        self.child = None;
        self.launches.ended(Instant::now());
        match status {
            Ok(status) => {
                tracing::info!(hive = %self.options.name, %status, "local hive ended");
                self.is_managed = !status.success();
            }
            Err(error) => {
                tracing::error!(hive = %self.options.name, error = %error, "lost the local hive");
            }
        }
    }

    fn signal(&self, signal: i32) {
        if let Some(child) = &self.child
            && let Err(error) = child.signal(signal)
        {
            tracing::warn!(hive = %self.options.name, signal, error = %error, "cannot signal the hive");
        }
    }

    async fn kill(&mut self) {
        self.signal(SIGKILL);
        if self.child.is_some() {
            self.child_ends().await;
        }
    }
}

/// Asks for a hive's status.
async fn ask(client: HopClient) -> Result<(HopClient, HiveStatus), CallError> {
    let status = first_contact::status_of(&client, PROBE_LIMIT).await?;
    Ok((client, status))
}

/// Returns by what the hive of this machine is known. A few lines of a file, read where its run file was.
fn trust_of(run: &RunFile) -> Result<Trust, CallError> {
    Trust::in_files(run.certificate_file.iter()).map_err(CallError::Tls)
}

/// Looks whether a hive holds the home directory, and where it says it listens.
async fn look(home: &Home) -> Result<(bool, Option<RunFile>), LaunchError> {
    let home = home.clone();
    let looked = tokio::task::spawn_blocking(move || {
        Ok((home.is_running(Daemon::Hive)?, home.read_run_file(Daemon::Hive)?))
    });
    // The closure does not panic; a runtime that shuts down finds no hive.
    looked.await.unwrap_or(Ok((false, None)))
}
