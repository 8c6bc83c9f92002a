//! Starts one worker process: its arguments, its environment, its socket, its secrets. Owns what a worker is given;
//! never what becomes of it.

use std::ffi::OsString;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use audit_logging::AuditError;
use command_fds::{CommandFdExt as _, FdMapping, FdMappingCollision};
use process_wrap::tokio::{CommandWrap, ProcessSession};
use rbee_api::error::ErrorDetail;
use rbee_api::worker::{Backend, WorkerSecrets};
use rbee_api::worker_exit::ExitCause;
use rbee_home::{Daemon, Home, HomeError};
use rbee_http::{CallError, HopClient};
use rbee_sqlite::DatabaseError;
use rustix::io::Errno;
use secrets_management::SecretError;
use tokio::io::AsyncWriteExt as _;
use zeroize::Zeroizing;

use super::Order;
use super::audit::AuditOfWorkers;
use super::owned::OwnedProcess;
use super::port::bind_free;
use crate::audit::WORKER_PROGRAM;
use crate::cgroup::{Cgroups, WorkerGroup};
use crate::config::WorkerMemoryLimit;
use crate::ledger::{Ledger, Started};
use crate::models::kind_of;
use crate::platform::{self, ProcessHandle};

/// The descriptor at which a worker finds its listener: the first one after the standard three.
const LISTENER_FD: i32 = 3;
/// Seconds that a worker goes on without a hive, so that one that restarts does not cut off answers.
const LEASE_SECONDS: u64 = 900;

/// What all workers of this hive are started with.
#[derive(Debug)]
pub(crate) struct Launcher {
    pub(crate) program: PathBuf,
    pub(crate) engine: Backend,
    pub(crate) threads: u32,
    pub(crate) port_first: u16,
    pub(crate) heartbeat_seconds: u64,
    /// Seconds that one step of a worker's engine may take before the worker gives itself up.
    pub(crate) stall_seconds: u64,
    pub(crate) stop_grace_seconds: u64,
    /// MiB after which a worker begins its log anew.
    pub(crate) log_max_mib: u64,
    /// How workers treat devices and memory, as arguments.
    pub(crate) worker_arguments: Vec<OsString>,
    /// Where workers reach this hive.
    pub(crate) hive_url: String,
    /// The whole environment of a worker, besides the descriptor count.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) home: Home,
    pub(crate) memory_limit: WorkerMemoryLimit,
    pub(crate) cgroups: Cgroups,
    pub(crate) audit: AuditOfWorkers,
}

/// Says why a worker process could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    #[error("the machine has no room for the worker any more")]
    NoRoom(#[source] Box<ErrorDetail>),
    #[error("cannot write down that a worker is to be started")]
    Audit(#[from] AuditError),
    #[error("cannot write the ledger of workers")]
    Ledger(#[from] DatabaseError),
    #[error("no free port for the worker")]
    Port(#[source] io::Error),
    #[error("cannot prepare the worker's log")]
    Log(#[from] HomeError),
    #[error("cannot hand the worker its log")]
    LogHandle(#[source] io::Error),
    #[error("cannot hand the worker its listener")]
    Listener(#[from] FdMappingCollision),
    #[error("cannot run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("cannot tell the worker's process from others")]
    Identity(#[source] io::Error),
    #[error("cannot write down the worker's secrets")]
    Secrets(#[from] serde_json::Error),
    #[error("cannot make the key of the worker's audit log")]
    AuditKey(#[from] SecretError),
    #[error("cannot set up the client that calls the worker")]
    Client(#[from] CallError),
}

impl SpawnError {
    /// Returns the class of the failure. What is `not_started` lies with the machine or with this hive, such as a disk that
    /// is full or descriptors that have run out: nothing is known of the worker then, and nothing counts against it.
    pub(super) fn cause(&self) -> ExitCause {
        match self {
            Self::Run { source, .. } if is_of_the_program(source) => ExitCause::ProgramMissing,
            Self::Port(source) if is_of_the_port(source) => ExitCause::PortTaken,
            Self::NoRoom(_)
            | Self::Audit(_)
            | Self::Ledger(_)
            | Self::Port(_)
            | Self::Log(_)
            | Self::LogHandle(_)
            | Self::Listener(_)
            | Self::Run { .. }
            | Self::Identity(_)
            | Self::Secrets(_)
            | Self::AuditKey(_)
            | Self::Client(_) => ExitCause::NotStarted,
        }
    }
}

/// Whether a program could not be run because of what it is, or is not.
fn is_of_the_program(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
    ) || error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error())
}

/// Whether a port could not be had because of which one it is.
fn is_of_the_port(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::PermissionDenied
    )
}

impl Launcher {
    /// Starts a worker, and returns its process and how to call it. Its arguments and its environment can be seen by
    /// others and hold no secret: those go through its standard input, once the process stands in the ledger.
    pub(super) async fn spawn(
        &self,
        order: &Order,
        ledger: &Ledger,
    ) -> Result<(OwnedProcess, HopClient), SpawnError> {
        let listener = bind_free(self.port_first).await.map_err(SpawnError::Port)?;
        let address = listener.local_addr().map_err(SpawnError::Port)?;
        let client = HopClient::new(&format!("http://{address}"), Arc::new(order.token.clone()))?;
        let audit_key = match &self.audit.key {
            Some(key) => Some(key.derive("audit", &format!("{WORKER_PROGRAM}/{}", order.id))?),
            None => None,
        };
        let secrets = Zeroizing::new(serde_json::to_vec(&WorkerSecrets {
            token: order.token.expose().to_owned(),
            callback_token: order.callback.expose().to_owned(),
            audit_key: audit_key.as_ref().map(|key| key.expose().to_owned()),
        })?);
        let mut child = self
            .command(order, listener)?
            .spawn()
            .map_err(|source| SpawnError::Run { program: self.program.clone(), source })?;
        let input = child.stdin().take();
        let group = child.id().map(|pid| self.fence_in(order, pid)).unwrap_or_default();
        let mut process = OwnedProcess::started(child, group);
        if let Err(error) = write_down(&process, order, client.base_url(), ledger).await {
            process.kill().await;
            process.clear(&order.id).await;
            return Err(error);
        }
        if let Some(mut input) = input
            && let Err(error) = input.write_all(&secrets).await
        {
            // It ended already; its exit code tells more.
            tracing::debug!(worker_id = %order.id, error = %error, "worker did not take its secrets");
        }
        Ok((process, client))
    }

    /// Limits a process that waits for its secrets, and so has done nothing yet. Its number is its own as long as nobody
    /// has waited for it, and that does its owner alone.
    fn fence_in(&self, order: &Order, pid: u32) -> WorkerGroup {
        if let Err(error) = platform::end_sooner_than_this(pid) {
            tracing::warn!(worker_id = %order.id, pid, %error, "cannot have a worker ended first when memory runs out");
        }
        let limit_bytes = self.memory_limit.of(order.size.memory_bytes);
        let group = self.cgroups.enclose(&order.id, pid, limit_bytes);
        let limit_bytes = group.limit_bytes();
        tracing::debug!(worker_id = %order.id, pid, limit_bytes, "worker is limited");
        group
    }

    fn command(&self, order: &Order, listener: TcpListener) -> Result<CommandWrap, SpawnError> {
        let log = self.home.open_worker_log(&order.id)?;
        let log_too = log.try_clone().map_err(SpawnError::LogHandle)?;
        let mut command = CommandWrap::with_new(&self.program, |command| {
            command
                .args(self.arguments(order))
                .env_clear()
                .envs(self.environment.iter().map(|(name, value)| (name, value)))
                .env("LISTEN_FDS", "1")
                .current_dir(self.home.root())
                .stdin(Stdio::piped())
                .stdout(log)
                .stderr(log_too);
        });
        let mapping = FdMapping { parent_fd: listener.into(), child_fd: LISTENER_FD };
        command.command_mut().as_std_mut().fd_mappings(vec![mapping])?;
        // A session of its own: a terminal's Ctrl-C does not reach it, and the whole group can be killed.
        command.wrap(ProcessSession);
        Ok(command)
    }

    /// Returns the engine by the name that a worker knows it by.
    pub(super) const fn engine_name(&self) -> &'static str {
        match self.engine {
            Backend::Llama => "llama",
            Backend::Echo => "echo",
        }
    }

    fn arguments(&self, order: &Order) -> Vec<OsString> {
        let names = [
            order.model.alias.as_ref().map(ToString::to_string),
            Some(order.model.reference.to_string()),
        ];
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        add("--worker-id", order.id.to_string().into());
        add("--engine", self.engine_name().into());
        if self.engine == Backend::Echo {
            // It reads no model, so it has to be told what it stands for.
            add("--kind", kind_of(order.model.header.purpose).as_str().into());
        }
        add("--model", order.model.path.clone().into());
        add("--model-sha256", order.model.sha256.to_string().into());
        for name in names.into_iter().flatten() {
            add("--model-name", name.into());
        }
        add("--hive-url", self.hive_url.clone().into());
        add("--hive-run-file", self.home.run_path(Daemon::Hive).into());
        add("--slots", order.size.slots.to_string().into());
        add("--context", order.size.context_tokens.to_string().into());
        add("--cache-ram", order.size.store_mib.to_string().into());
        add("--threads", self.threads.to_string().into());
        add("--lease-seconds", LEASE_SECONDS.to_string().into());
        add("--heartbeat-seconds", self.heartbeat_seconds.to_string().into());
        add("--stall-seconds", self.stall_seconds.to_string().into());
        add("--drain-seconds", self.stop_grace_seconds.to_string().into());
        add("--log-file", self.home.worker_log(&order.id).into());
        add("--log-max-mib", self.log_max_mib.to_string().into());
        if self.audit.key.is_some() {
            let settings = self.audit.settings;
            add("--audit-dir", self.audit.directory.join(order.id.as_str()).into());
            for (name, value) in [
                ("--audit-segment-mib", settings.segment_mib),
                ("--audit-segments-max", settings.segments_max),
                ("--audit-retention-days", settings.retention_days),
                ("--audit-auth-success-sample", settings.auth_success_sample),
                ("--audit-inference-sample", settings.inference_sample),
            ] {
                add(name, value.to_string().into());
            }
        }
        arguments.extend(self.worker_arguments.iter().cloned());
        arguments
    }
}

/// Enters the process in the ledger. One that has ended, or that this machine tells from no other, is not entered, and so
/// not adopted. One that cannot be looked at for want of something is not kept: the next hive would not know it.
async fn write_down(
    process: &OwnedProcess,
    order: &Order,
    url: &str,
    ledger: &Ledger,
) -> Result<(), SpawnError> {
    match process.pid().map(ProcessHandle::open) {
        Some(Ok(handle)) => {
            let started = Started { identity: handle.identity().clone(), url: url.to_owned() };
            Ok(ledger.started(&order.id, started).await?)
        }
        Some(Err(error)) if is_for_want_of_something(&error) => Err(SpawnError::Identity(error)),
        Some(Err(error)) => {
            tracing::debug!(worker_id = %order.id, %error, "a worker's process cannot be identified");
            Ok(())
        }
        None => Ok(()),
    }
}

/// Whether the machine lacked something for looking at a process that is there, or could not read what it says of it.
fn is_for_want_of_something(error: &io::Error) -> bool {
    const WANTS: [Errno; 6] =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO, Errno::AGAIN, Errno::INTR];
    error
        .raw_os_error()
        .is_some_and(|number| WANTS.iter().any(|want| want.raw_os_error() == number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }

    #[test]
    fn what_the_machine_is_short_of_is_no_failure_of_the_program_or_the_port() {
        let run = |number| SpawnError::Run { program: PathBuf::new(), source: errno(number) };
        let port = |number| SpawnError::Port(errno(number));
        for (error, cause) in [
            (run(Errno::NOENT), ExitCause::ProgramMissing),
            (run(Errno::ACCESS), ExitCause::ProgramMissing),
            (run(Errno::NOEXEC), ExitCause::ProgramMissing),
            (run(Errno::AGAIN), ExitCause::NotStarted),
            (run(Errno::NOMEM), ExitCause::NotStarted),
            (run(Errno::MFILE), ExitCause::NotStarted),
            (port(Errno::ADDRINUSE), ExitCause::PortTaken),
            (port(Errno::ACCESS), ExitCause::PortTaken),
            (port(Errno::MFILE), ExitCause::NotStarted),
            (SpawnError::LogHandle(errno(Errno::MFILE)), ExitCause::NotStarted),
            (SpawnError::Identity(errno(Errno::MFILE)), ExitCause::NotStarted),
        ] {
            assert_eq!(error.cause(), cause, "{error:?}");
        }
    }

    #[test]
    fn a_process_is_given_up_for_want_of_something_and_not_where_it_can_never_be_told() {
        for (number, is_given_up) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::IO, true),
            (Errno::NOENT, false),
            (Errno::SRCH, false),
            (Errno::NOSYS, false),
            (Errno::PERM, false),
        ] {
            assert_eq!(is_for_want_of_something(&errno(number)), is_given_up, "{number}");
        }
        assert!(!is_for_want_of_something(&io::Error::from(io::ErrorKind::NotFound)));
    }
}
