//! Why something could not be written down, or read back.

use std::io;
use std::path::{Path, PathBuf};

/// Says what failed with an audit log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A file or directory of the log cannot be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The thread that writes the log could not be started.
    #[error("cannot start the writer of the audit log")]
    Thread(#[source] io::Error),
    /// The entry is not on the disk, so what it tells must not happen.
    #[error("the audit log cannot be written")]
    NotWritten,
    /// More entries wait to be written than may.
    #[error("the audit log does not keep up")]
    Full,
    /// The disk did not take the entry in time.
    #[error("the audit log is not written in time")]
    TimedOut,
    /// A checkpoint from elsewhere is none.
    #[error("the checkpoint has no good signature of its own key")]
    BadCheckpoint,
    /// One machine has shown more keys than are kept.
    #[error("this machine has signed with too many different keys")]
    TooManyKeys,
}

impl AuditError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
