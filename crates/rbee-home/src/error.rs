//! Why the home directory cannot be used. Owns messages that name the path, and the hint that goes with each.

use std::io;
use std::path::PathBuf;

use crate::{Daemon, ExitStatus};

/// Says what went wrong with the home directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// Nobody said where the home directory is.
    #[error("this user has no home directory")]
    NoHome,
    /// Another process of the same program runs on this home.
    #[error("another {daemon} already runs on {}{}", root.display(), by(*pid))]
    Locked {
        /// The program.
        daemon: Daemon,
        /// The home directory.
        root: PathBuf,
        /// The other's process id, where its run file tells.
        pid: Option<u32>,
    },
    /// Someone else owns the directory, or others may write to it.
    #[error("{} {reason}", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

impl HomeError {
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// Returns the exit code of a program that cannot go on.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::NoHome => ExitStatus::Config,
            Self::Locked { .. } => ExitStatus::TryAgain,
            Self::Unsafe { .. } => ExitStatus::NoPermission,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    ExitStatus::NoPermission
                }
                _ => ExitStatus::OsError,
            },
        }
    }

    /// Says what the user can do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoHome => "set --home or RBEE_HOME to a directory of your own".to_owned(),
            Self::Locked { daemon, pid: Some(pid), .. } => format!(
                "use the {daemon} that runs, stop it with `kill {pid}`, or give this one another --home"
            ),
            Self::Locked { daemon, .. } => {
                format!("use the {daemon} that runs, stop it, or give this one another --home")
            }
            Self::Unsafe { path, .. } => format!(
                "it must be a directory that only this user can write to (`chmod 700 {}`), or set --home or RBEE_HOME to another one",
                path.display()
            ),
            Self::Io { source, path, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => format!(
                    "give this user the right to write to {}, or set --home or RBEE_HOME to another directory",
                    path.display()
                ),
                io::ErrorKind::StorageFull => format!(
                    "make room on the disk that holds {}, or set --home or RBEE_HOME to another one",
                    path.display()
                ),
                _ => "check the path, or set --home or RBEE_HOME to another directory".to_owned(),
            },
        }
    }
}
