//! Why there is no hive on this machine, for the log and, without paths and
//! addresses, for clients.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_home::{ExitStatus as Known, HomeError};
use rbee_http::CallError;

use super::LAUNCH_LIMIT;

/// Says why there is no hive on this machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// What a hive would leave in the home directory cannot be read.
    #[error("cannot look for the hive of this machine")]
    Home(#[from] HomeError),
    /// A hive is there and does not answer as one of ours.
    #[error("the hive of this machine does not answer")]
    NotAnswering(#[from] CallError),
    /// A hive is there and is shutting down.
    #[error("the hive of this machine is shutting down")]
    Draining,
    /// A hive holds the home directory's lock and tells no address.
    #[error("the hive of this machine tells no address")]
    NoAddress,
    /// None runs, and the queen is not to start one.
    #[error("no hive runs on this machine, and local_hive is off")]
    NotRunning,
    /// The program cannot be executed.
    #[error("cannot start {}", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The process ended before it could be used.
    #[error("the hive ended while it was starting ({status}); the end of its log: {tail}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its last words, made harmless for a log.
        tail: String,
    },
    /// The process runs and does not become usable.
    #[error("the hive did not answer within {} s of its start", LAUNCH_LIMIT.as_secs())]
    Silent,
}

impl LaunchError {
    /// Returns what clients are told: no path and no address.
    pub(super) fn detail(&self) -> ErrorDetail {
        let why = match self {
            Self::Home(_) | Self::NotAnswering(_) | Self::NoAddress => "does not answer",
            Self::Draining => "is shutting down",
            Self::NotRunning => "does not run, and local_hive is off; start it with rbee-hive",
            Self::Spawn { .. } => {
                "cannot be started: its program is missing or cannot be executed; see queen-rbee.log"
            }
            Self::Ended { status, .. } => why_ended(*status),
            Self::Silent => "does not start; rbee-hive.log says why",
        };
        ErrorDetail::new(
            ErrorCode::HiveUnreachable,
            format!("the hive of the queen's machine {why}"),
        )
    }
}

/// What clients are told of a hive that starts and ends again soon, each time.
pub(super) fn ends_again_and_again() -> ErrorDetail {
    let message = "the hive of the queen's machine ends again and again; rbee-hive.log says why";
    ErrorDetail::new(ErrorCode::HiveUnreachable, message)
}

/// What a hive's exit code says about how it ended.
fn why_ended(status: ExitStatus) -> &'static str {
    let is = |known: Known| status.code() == Some(i32::from(known.code()));
    if is(Known::Config) {
        "does not start: its configuration is wrong; `rbee-hive --validate-config` says where"
    } else if is(Known::Unavailable) {
        "does not start: something that it needs is not to be had, such as its address; \
         rbee-hive.log says what"
    } else if is(Known::NoPermission) {
        "does not start: it may not use one of its files; rbee-hive.log says which"
    } else {
        "does not start; rbee-hive.log says why"
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn clients_are_told_what_the_exit_code_says_and_no_path() {
        for (raw, told) in [
            (78 << 8, "--validate-config"),
            (69 << 8, "its address"),
            (77 << 8, "one of its files"),
            (1 << 8, "does not start; rbee-hive.log"),
            (9, "does not start; rbee-hive.log"),
        ] {
            let tail = "the config file /etc/x is wrong".to_owned();
            let ended = LaunchError::Ended { status: ExitStatus::from_raw(raw), tail };
            let detail = ended.detail();
            assert!(detail.message.contains(told), "{raw}: {}", detail.message);
            assert!(!detail.message.contains('/'), "{}", detail.message);
        }
    }
}
