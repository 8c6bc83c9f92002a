//! What follows from a failure: the exit code and the name for scripts, the hint for people. Decides by who must act.

use std::io;

use rbee_api::error::ErrorCode;
use rbee_home::{ConfigError, ExitStatus, HomeError};
use secrets_management::SecretError;

use super::KeeperError;

impl KeeperError {
    /// Returns the exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        let status = match self {
            Self::Usage { .. } | Self::Invalid { .. } => ExitStatus::Usage,
            Self::NoQueen
            | Self::Unreachable { .. }
            | Self::EndpointUnusable { .. }
            | Self::Foreign { .. }
            | Self::QueenMissing { .. }
            | Self::QueenSlow { .. } => ExitStatus::Unavailable,
            Self::Refused(detail) => refused_status(detail.code),
            Self::QueenDied { status, .. } => *status,
            Self::Home(error) => home_status(error),
            Self::Config(error) => error.exit_status(),
            Self::Secret(SecretError::NotFound { .. }) | Self::NoCa { .. } | Self::Tls(_) => {
                ExitStatus::Config
            }
            Self::Secret(_) => ExitStatus::NoPermission,
            Self::Stopped(stop) => return stop.exit_code(),
            Self::NoFile { .. }
            | Self::NotAFile { .. }
            | Self::NoSuchWorker { .. }
            | Self::TimedOut { .. }
            | Self::BrokenOff
            | Self::Garbled(_)
            | Self::Client(_)
            | Self::QueenSpawn(_)
            | Self::Log { .. }
            | Self::Audit(_)
            | Self::NoAuditLog { .. }
            | Self::AuditBroken { .. }
            | Self::BenchFailures { .. }
            | Self::ReportFile { .. }
            | Self::Input(_)
            | Self::Output(_)
            | Self::Setup { .. } => ExitStatus::Failure,
        };
        status.code()
    }

    /// Names the error for programs; stable.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Usage { .. } | Self::Invalid { .. } => "validation_failed",
            Self::NoFile { .. } => "file_not_found",
            Self::NotAFile { .. } => "invalid_model_file",
            Self::NoQueen => "queen_not_running",
            Self::NoSuchWorker { .. } => "worker_not_found",
            Self::Refused(detail) => detail.code.as_str(),
            Self::Unreachable { .. } => "queen_unreachable",
            Self::TimedOut { .. } => "deadline_exceeded",
            Self::Foreign { .. } => "not_a_queen",
            Self::BrokenOff => "stream_broken",
            Self::Garbled(_) => "answer_not_understood",
            Self::QueenMissing { .. }
            | Self::QueenSpawn(_)
            | Self::QueenDied { .. }
            | Self::QueenSlow { .. } => "queen_start_failed",
            Self::Home(_) => "home_unusable",
            Self::Config(_) => "config_invalid",
            Self::Secret(_) => "token_unusable",
            Self::Stopped(_) => "stopped",
            Self::EndpointUnusable { .. } => "endpoint_unusable",
            Self::BenchFailures { .. } => "requests_failed",
            Self::NoAuditLog { .. } => "audit_log_not_found",
            Self::AuditBroken { .. } => "audit_log_broken",
            Self::Tls(_) | Self::NoCa { .. } => "ca_file_unusable",
            Self::Client(_)
            | Self::Log { .. }
            | Self::Audit(_)
            | Self::ReportFile { .. }
            | Self::Input(_)
            | Self::Output(_)
            | Self::Setup { .. } => "io_error",
        }
    }

    /// Says what the user can do.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Usage { hint, .. } | Self::QueenDied { hint, .. } => hint.clone(),
            Self::Invalid { .. } => return None,
            Self::NoFile { .. } => {
                "a file on another machine is written file:/absolute/path".to_owned()
            }
            Self::NotAFile { .. } => "name the GGUF file itself".to_owned(),
            Self::NoQueen => "start one with `rbee queen start`".to_owned(),
            Self::NoSuchWorker { .. } => "`rbee ps` lists the workers".to_owned(),
            // The queen's own words may name the command already.
            Self::Refused(detail) if detail.message.contains("`rbee ") => return None,
            Self::Refused(detail) => return refused_hint(detail.code).map(str::to_owned),
            Self::Unreachable { .. } => {
                "check the address, and that queen-rbee runs there".to_owned()
            }
            Self::TimedOut { .. } => {
                "see `rbee status`; `rbee run` takes more time with --timeout".to_owned()
            }
            Self::Foreign { .. } => "check the address".to_owned(),
            Self::BrokenOff => "see `rbee status` and `rbee logs queen`".to_owned(),
            Self::Garbled(_) => "use rbee and queen-rbee of the same version".to_owned(),
            Self::QueenMissing { .. } => "install queen-rbee beside rbee".to_owned(),
            Self::QueenSpawn(_) | Self::QueenSlow { .. } => "see `rbee logs queen`".to_owned(),
            Self::Home(error) => error.hint(),
            Self::Config(ConfigError::Value { .. }) => return None,
            Self::Config(ConfigError::Content { path, suggestion: None, .. }) => {
                format!("correct {}; its keys are home, queen_url and token_file", path.display())
            }
            Self::Config(error) => error.hint(),
            Self::Secret(_) => {
                "name the file with the queen's token with --token-file or RBEE_TOKEN_FILE"
                    .to_owned()
            }
            Self::Log { .. } => "the program may never have been started from here".to_owned(),
            Self::NoAuditLog { .. } => {
                "a daemon makes one when it starts, unless its config file says audit.mode = \"off\""
                    .to_owned()
            }
            Self::AuditBroken { .. } => {
                "keep the files as they are; compare with what another machine holds in audit/held"
                    .to_owned()
            }
            Self::EndpointUnusable { .. } => {
                "check its address, the model's name, and the key in --key-file or --key-env"
                    .to_owned()
            }
            Self::BenchFailures { .. } => {
                "the figures are those of the others; --allow-errors ends with 0 all the same"
                    .to_owned()
            }
            Self::Tls(_) | Self::NoCa { .. } => {
                "copy tls/ca.pem from the queen's home directory, and name it with --ca-file or RBEE_TLS_CA_FILE; `rbee bench` takes any file of CAs"
                    .to_owned()
            }
            Self::Client(_)
            | Self::Audit(_)
            | Self::ReportFile { .. }
            | Self::Input(_)
            | Self::Output(_)
            | Self::Setup { .. }
            | Self::Stopped(_) => return None,
        };
        Some(hint)
    }
}

/// A path that leads nowhere is a wrong setting; scripts that know this program's table need no code beyond it.
fn home_status(error: &HomeError) -> ExitStatus {
    match (error, error.exit_status()) {
        (HomeError::Io { source, .. }, ExitStatus::OsError) => match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ExitStatus::Config,
            _ => ExitStatus::Failure,
        },
        (_, status) => status,
    }
}

fn refused_status(code: ErrorCode) -> ExitStatus {
    match (code, code.status()) {
        (_, 401 | 403) => ExitStatus::NoPermission,
        (ErrorCode::HiveUnreachable, _) => ExitStatus::Unavailable,
        (ErrorCode::ModelInUse, _) | (_, 429 | 503) => ExitStatus::TryAgain,
        _ => ExitStatus::Failure,
    }
}

fn refused_hint(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::ModelNotFound => {
            Some("`rbee list` shows the models, `rbee pull FILE --name NAME` adds one")
        }
        ErrorCode::Unauthorized | ErrorCode::Forbidden => {
            Some("name the file with the queen's token with --token-file or RBEE_TOKEN_FILE")
        }
        ErrorCode::ContextLengthExceeded => Some("shorten the prompt, or ask for fewer tokens"),
        ErrorCode::PayloadTooLarge => Some("shorten the prompt"),
        ErrorCode::InvalidModelFile | ErrorCode::ChecksumMismatch => {
            Some("fetch the file again; it must be a whole GGUF model")
        }
        ErrorCode::AliasTaken => {
            Some("choose another --name, or remove the other model with `rbee rm`")
        }
        ErrorCode::KeyTaken => {
            Some("choose another name, or take the other key back with `rbee key revoke`")
        }
        ErrorCode::KeyNotFound => Some("`rbee key list` shows the keys"),
        ErrorCode::RateLimitExceeded => {
            Some("wait as long as it says; `rbee usage` shows what was used")
        }
        ErrorCode::ModelInUse => Some("stop its workers first with `rbee stop`"),
        ErrorCode::HiveUnreachable => Some("see `rbee status` and `rbee logs hive`"),
        ErrorCode::WorkerFailed | ErrorCode::WorkerStartFailed => {
            Some("`rbee ps` names the worker, `rbee logs WORKER` says more")
        }
        ErrorCode::WorkerFailing => Some(
            "`rbee ps` shows why and when the next try is, `rbee workers reset WORKER` tries at once",
        ),
        ErrorCode::InsufficientMemory => {
            Some("free memory with `rbee stop`, or take a smaller model")
        }
        ErrorCode::InsufficientDisk | ErrorCode::AuditUnavailable => {
            Some("make room, or remove a model with `rbee rm`")
        }
        ErrorCode::WorkerLimitReached => Some("stop a worker with `rbee stop`"),
        ErrorCode::NoWorkerAvailable
        | ErrorCode::AllSlotsBusy
        | ErrorCode::QueueFull
        | ErrorCode::TooManyFailures
        | ErrorCode::Loading
        | ErrorCode::Draining => Some("try again in a moment; `rbee ps` shows what runs"),
        ErrorCode::WorkerNotFound => Some("`rbee ps` lists the workers"),
        ErrorCode::InternalError => Some("`rbee logs queen` says more"),
        ErrorCode::DeadlineExceeded => Some("give it more time with --timeout"),
        ErrorCode::TlsRequired => Some("give the queen's address with https://"),
        ErrorCode::ValidationFailed
        | ErrorCode::UnsupportedParameter
        | ErrorCode::RouteNotFound
        | ErrorCode::HostNotAllowed
        | ErrorCode::FileNotFound
        | ErrorCode::HiveNotFound
        | ErrorCode::MethodNotAllowed
        | ErrorCode::RequestTimeout
        | ErrorCode::RequestNotFound
        | ErrorCode::RequestCancelled
        | ErrorCode::UnsupportedMediaType => None,
    }
}

#[cfg(test)]
mod tests {
    use rbee_api::error::ErrorDetail;

    use super::*;

    #[test]
    fn a_refusal_ends_with_the_exit_code_of_its_status() {
        for (code, expected) in [
            (ErrorCode::ModelNotFound, 1),
            (ErrorCode::ContextLengthExceeded, 1),
            (ErrorCode::Unauthorized, 77),
            (ErrorCode::Forbidden, 77),
            (ErrorCode::InsufficientMemory, 75),
            (ErrorCode::ModelInUse, 75),
            (ErrorCode::AliasTaken, 1),
            (ErrorCode::WorkerFailed, 1),
            (ErrorCode::HiveUnreachable, 69),
        ] {
            let error = KeeperError::Refused(Box::new(ErrorDetail::new(code, "no")));
            assert_eq!(error.exit_code(), expected, "{code}");
            assert_eq!(error.code(), code.as_str());
        }
    }
}
