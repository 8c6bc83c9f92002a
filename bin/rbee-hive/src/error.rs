//! Why a hive cannot start. Owns the exit code and the hint of each reason; what goes wrong later is answered to
//! whoever asked, or logged.

use std::io;
use std::net::SocketAddr;

use audit_logging::AuditError;
use auth_min::BindError;
use model_catalog::{CatalogError, StoreError};
use rbee_home::{ConfigError, ExitStatus, HomeError};
use rbee_http::{CallError, LogError, MetricsError};
use rbee_sqlite::DatabaseError;
use rbee_tls::TlsError;
use secrets_management::SecretError;

use crate::pairing::PairingError;

/// Says why the hive does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HiveError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The home directory cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The queen's and hive's token cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The certificate that is configured cannot be used.
    #[error("cannot speak TLS")]
    Tls(#[from] TlsError),
    /// This machine could not be paired, or what was kept of that cannot be used.
    #[error(transparent)]
    Pairing(#[from] PairingError),
    /// The address may not be listened on.
    #[error(transparent)]
    BindPolicy(#[from] BindError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address wanted.
        address: SocketAddr,
        /// Why the operating system refused.
        #[source]
        source: io::Error,
    },
    /// Logging could not be started.
    #[error("cannot start logging")]
    Logs(#[from] LogError),
    /// The audit log cannot be written, and a hive that should keep one must not run without it.
    #[error("cannot keep the audit log")]
    Audit(#[from] AuditError),
    /// Metrics could not be started.
    #[error("cannot start metrics")]
    Metrics(#[from] MetricsError),
    /// The model catalog cannot be used.
    #[error("cannot open the model catalog")]
    Catalog(#[from] CatalogError),
    /// The ledger of workers cannot be used.
    #[error("cannot open the ledger of workers, workers.db")]
    Ledger(#[from] DatabaseError),
    /// The model directory cannot be used.
    #[error("cannot open the model store")]
    Store(#[from] StoreError),
    /// The process does not know where its own program lies.
    #[error("cannot find the path of this program")]
    OwnPath(#[source] io::Error),
    /// The asynchronous runtime or the signal handlers could not be set up.
    #[error("cannot set up the process")]
    Setup(#[source] io::Error),
    /// A task that a hive cannot do without has panicked. Its workers run on.
    #[error("a task of the hive has panicked")]
    Defect,
}

impl HiveError {
    /// Returns the exit code.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Config(error) => error.exit_status(),
            Self::Home(error) => error.exit_status(),
            Self::Secret(error) => secret_status(error),
            Self::BindPolicy(_) | Self::Logs(_) | Self::Tls(_) => ExitStatus::Config,
            Self::Pairing(error) => pairing_status(error),
            Self::Bind { source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => {
                    ExitStatus::Unavailable
                }
                io::ErrorKind::PermissionDenied => ExitStatus::NoPermission,
                _ => ExitStatus::OsError,
            },
            Self::Ledger(DatabaseError::Newer) => ExitStatus::Config,
            Self::Catalog(_)
            | Self::Ledger(_)
            | Self::Store(_)
            | Self::Metrics(_)
            | Self::Defect => ExitStatus::Failure,
            Self::Audit(_) | Self::OwnPath(_) | Self::Setup(_) => ExitStatus::OsError,
        }
    }

    /// Says what the user can do, where the error itself does not.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => Some(error.hint()),
            Self::Home(error) => Some(error.hint()),
            Self::Bind { address, source } => Some(match source.kind() {
                io::ErrorKind::AddrInUse => format!(
                    "port {port} is taken; stop the program that listens there (`ss -ltnp 'sport = :{port}'` names \
                     it), or set --bind or RBEE_HIVE_BIND to another address",
                    port = address.port()
                ),
                _ => "set --bind or RBEE_HIVE_BIND to an address of this machine".to_owned(),
            }),
            Self::Logs(_) => {
                Some("set --log-level or RBEE_LOG to error, warn, info, debug or trace".to_owned())
            }
            Self::Ledger(DatabaseError::Newer) => {
                Some("install the newer rbee again, or stop its workers and move workers.db away".to_owned())
            }
            Self::Ledger(_) => Some(
                "check the rights on the home directory and the room on its disk, or move workers.db away".to_owned(),
            ),
            Self::Audit(_) => Some(
                "see the rights on the home directory and the room on its disk; `audit.mode = \"off\"` in the config file \
                 runs without an audit log"
                    .to_owned(),
            ),
            Self::Pairing(error) => pairing_hint(error),
            Self::Tls(_) => Some("check the files under [tls] in rbee-hive.toml".to_owned()),
            Self::Defect => Some(
                "start the hive again: it goes on with its workers; please report what stands above, which is a defect of rbee"
                    .to_owned(),
            ),
            Self::Secret(_) | Self::BindPolicy(_) | Self::Metrics(_) => None,
            Self::Catalog(_) | Self::Store(_) | Self::OwnPath(_) | Self::Setup(_) => None,
        }
    }
}

fn pairing_status(error: &PairingError) -> ExitStatus {
    match error {
        PairingError::NotACode => ExitStatus::Usage,
        PairingError::NoAddress { .. } | PairingError::Damaged(_) => ExitStatus::Config,
        PairingError::Refused(CallError::Refused(_)) => ExitStatus::NoPermission,
        PairingError::Refused(_) => ExitStatus::Unavailable,
        PairingError::Answer(_) => ExitStatus::Failure,
        PairingError::Secret(error) => secret_status(error),
    }
}

fn pairing_hint(error: &PairingError) -> Option<String> {
    let hint = match error {
        PairingError::NoAddress { .. } => {
            "give the address at which the queen reaches this machine: `rbee-hive --pair --bind ADDRESS:PORT`, or \
             --own-url https://HOST:PORT"
        }
        PairingError::Refused(CallError::Refused(_)) => {
            "a code can be used once, within ten minutes; `rbee hive pair NAME` makes another one"
        }
        PairingError::Refused(_) => "see that the queen runs, and that this machine reaches her",
        _ => return None,
    };
    Some(hint.to_owned())
}

fn secret_status(error: &SecretError) -> ExitStatus {
    match error {
        SecretError::WrongOwner { .. } | SecretError::WrongMode { .. } => ExitStatus::NoPermission,
        SecretError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            ExitStatus::NoPermission
        }
        _ => ExitStatus::Config,
    }
}
