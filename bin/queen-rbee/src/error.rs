//! Why a queen cannot start, with the exit code and the way out of each. What
//! goes wrong with a request is not here: that is an `ErrorDetail` of rbee-api.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use audit_logging::AuditError;
use auth_min::BindError;
use rbee_home::{ConfigError, ExitStatus, HomeError};
use rbee_http::CallError;
use rbee_sqlite::DatabaseError;
use rbee_tls::TlsError;
use secrets_management::SecretError;

use crate::hives::HivesError;
use crate::jwt::JwtError;

/// Says why the queen ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueenError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The home directory cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A token cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The certificate that is configured cannot be used.
    #[error("cannot speak TLS")]
    Tls(#[from] TlsError),
    /// The database of machines cannot be used.
    #[error(transparent)]
    Hives(#[from] HivesError),
    /// The database of keys cannot be used.
    #[error("cannot use {}", path.display())]
    Keys {
        /// The database.
        path: PathBuf,
        /// Why not.
        source: DatabaseError,
    },
    /// Signed tokens cannot be checked.
    #[error("signed tokens cannot be checked")]
    Jwt(#[from] JwtError),
    /// The configuration opens the queen to the network without a good token.
    #[error(transparent)]
    Policy(#[from] BindError),
    /// The audit log cannot be written, and a queen that should keep one must not run without it.
    #[error("cannot keep the audit log")]
    Audit(#[from] AuditError),
    /// Somebody listens at the address already.
    #[error("port {} is taken", address.port())]
    PortTaken {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The operating system does not let this program listen at the address.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Logs, metrics, signals or threads could not be set up.
    #[error("cannot set up {what}")]
    Setup {
        /// What it is.
        what: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The HTTP client for a hive could not be set up.
    #[error("cannot set up the connection to a hive")]
    Client(#[from] CallError),
}

impl QueenError {
    pub(crate) fn setup<E>(what: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Setup { what, source: Box::new(source) }
    }

    /// Sorts the reason why `address` cannot be listened on.
    pub(crate) fn listen(address: SocketAddr) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::AddrInUse => Self::PortTaken { address, source },
            _ => Self::Listen { address, source },
        }
    }

    /// Returns the exit code.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Config(error) => error.exit_status(),
            Self::Home(error) => error.exit_status(),
            Self::Secret(SecretError::Io { source, .. }) | Self::Listen { source, .. } => {
                match source.kind() {
                    io::ErrorKind::PermissionDenied => ExitStatus::NoPermission,
                    io::ErrorKind::AddrNotAvailable => ExitStatus::Config,
                    _ => ExitStatus::OsError,
                }
            }
            Self::Secret(SecretError::WrongMode { .. } | SecretError::WrongOwner { .. }) => {
                ExitStatus::NoPermission
            }
            Self::Jwt(JwtError::Source(_)) => ExitStatus::Config,
            Self::Jwt(JwtError::SelfTest(_)) => ExitStatus::Failure,
            Self::Secret(_) | Self::Policy(_) | Self::Tls(_) => ExitStatus::Config,
            Self::Hives(error) => database_status(&error.source),
            Self::Keys { source, .. } => database_status(source),
            Self::PortTaken { .. } => ExitStatus::Unavailable,
            Self::Audit(_) => ExitStatus::OsError,
            Self::Setup { .. } | Self::Client(_) => ExitStatus::Failure,
        }
    }

    /// Says what the user can do, where the message does not.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => Some(error.hint()),
            Self::Home(error) => Some(error.hint()),
            Self::PortTaken { address, .. } => Some(format!(
                "stop the program that listens on {address}, or choose another port: `queen-rbee --bind {ip}:PORT`, or \
                 RBEE_QUEEN_BIND={ip}:PORT in the environment",
                ip = address.ip()
            )),
            Self::Listen { .. } => Some(
                "choose another address: `queen-rbee --bind ADDRESS:PORT`, or RBEE_QUEEN_BIND in the environment"
                    .to_owned(),
            ),
            Self::Hives(HivesError { path, source: DatabaseError::Newer }) => Some(format!(
                "install the newer rbee again, or move {} away to start without its machines",
                path.display()
            )),
            Self::Hives(HivesError { path, .. }) => Some(format!(
                "check the rights on {} and the room on its disk, or move it away",
                path.display()
            )),
            Self::Keys { path, source: DatabaseError::Newer } => Some(format!(
                "install the newer rbee again, or move {} away to start without its keys",
                path.display()
            )),
            Self::Keys { path, .. } => Some(format!(
                "check the rights on {} and the room on its disk, or move it away",
                path.display()
            )),
            Self::Jwt(JwtError::Source(_)) => {
                Some("check the files and the address under [jwt] in queen-rbee.toml".to_owned())
            }
            Self::Audit(_) => Some(
                "see the rights on the home directory and the room on its disk; `audit.mode = \"off\"` in the config file \
                 runs without an audit log"
                    .to_owned(),
            ),
            Self::Tls(_) => Some("check the files under [tls] in queen-rbee.toml".to_owned()),
            Self::Jwt(JwtError::SelfTest(_))
            | Self::Secret(_)
            | Self::Policy(_)
            | Self::Setup { .. } | Self::Client(_) => None,
        }
    }
}

fn database_status(error: &DatabaseError) -> ExitStatus {
    use rusqlite::ErrorCode as Sqlite;
    match error {
        DatabaseError::Newer => ExitStatus::Config,
        DatabaseError::Sql(error) => match error.sqlite_error_code() {
            Some(Sqlite::PermissionDenied | Sqlite::ReadOnly | Sqlite::CannotOpen) => {
                ExitStatus::NoPermission
            }
            Some(Sqlite::DatabaseBusy | Sqlite::DatabaseLocked) => ExitStatus::TryAgain,
            _ => ExitStatus::OsError,
        },
        DatabaseError::ReadOnly => ExitStatus::NoPermission,
        DatabaseError::Damaged { .. } | DatabaseError::Stuck(_) => ExitStatus::OsError,
        DatabaseError::Migration(_) => ExitStatus::Failure,
    }
}
