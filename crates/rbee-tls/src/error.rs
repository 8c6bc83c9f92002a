//! Why certificates cannot be used. Owns messages that name the file; never shows a key.

use std::io;
use std::path::PathBuf;

use secrets_management::SecretError;

/// Says why a program cannot speak TLS as it is told to.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A private key cannot be used.
    #[error(transparent)]
    Key(#[from] SecretError),
    /// A file of certificates cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file holds no certificate in PEM form.
    #[error("{origin} holds no certificate in PEM form")]
    NoCertificate {
        /// The file, or what was read instead.
        origin: String,
    },
    /// A file holds no private key in PEM form that can be used.
    #[error("{origin} holds no private key in PEM form that can be used")]
    NoKey {
        /// The file, or what was read instead.
        origin: String,
    },
    /// Key and certificate do not belong together, or the key is of a kind that nobody uses.
    #[error("the private key and the certificate in {origin} do not fit")]
    Mismatch {
        /// The file of the certificate.
        origin: String,
        /// What the library found.
        #[source]
        source: rustls::Error,
    },
    /// The CA's certificate is not that of its key.
    #[error(
        "{} is not the certificate of the key in {}; remove it, and it is written again",
        certificate.display(), key.display()
    )]
    ForeignCertificate {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Issue(#[from] rcgen::Error),
    /// The library refuses the configuration.
    #[error("cannot set up TLS")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl TlsError {
    pub(crate) fn setup<E: std::error::Error + Send + Sync + 'static>(source: E) -> Self {
        Self::Setup(Box::new(source))
    }
}
