//! The certificate that a program shows, and its replacement while the program runs. Owns when one that the local CA
//! has signed is due to be renewed; who asks for that is the program's own business.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrets_management::load_document;

use crate::authority::Authority;
use crate::peer::Peer;
use crate::trust::Trust;
use crate::{TlsError, provider};

/// What every connection speaks.
const HTTP_1_1: &[u8] = b"http/1.1";
/// How old a certificate of the local CA may become: a third of its life, so that many renewals may fail.
const RENEW_AFTER: Duration = Duration::from_secs(10 * 24 * 60 * 60);

/// Where a certificate comes from, each time that it is asked for.
enum Source {
    /// Files that somebody else keeps.
    Files { certificate: PathBuf, key: PathBuf },
    /// The CA of the home directory, for these names.
    Local { authority: Arc<Authority>, peer: Option<Peer>, names: Vec<String> },
    /// Text that was handed over once.
    Fixed,
}

impl Source {
    fn load(&self) -> Result<Option<CertifiedKey>, TlsError> {
        match self {
            Self::Files { certificate, key } => read(certificate, key).map(Some),
            Self::Local { authority, peer, names } => {
                authority.issue(peer.as_ref(), names).map(Some)
            }
            Self::Fixed => Ok(None),
        }
    }
}

/// The certificate of this program with its key. Clones share it.
#[derive(Clone)]
pub struct OwnCertificate(Arc<Held>);

struct Held {
    source: Source,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    key: Arc<CertifiedKey>,
    since: SystemTime,
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnCertificate(…)")
    }
}

impl OwnCertificate {
    /// Reads certificate and key from PEM files. Blocks.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn in_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        Self::from_source(Source::Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        })
    }

    /// Has the local CA sign for `names`, host names and addresses, and for a program of the cluster.
    ///
    /// # Errors
    /// [`TlsError::Issue`].
    pub fn signed_by(
        authority: Arc<Authority>,
        peer: Option<Peer>,
        names: Vec<String>,
    ) -> Result<Self, TlsError> {
        Self::from_source(Source::Local { authority, peer, names })
    }

    /// Takes certificates and key as PEM text; `origin` names it in errors.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn in_pem(certificates: &str, key: &str, origin: &str) -> Result<Self, TlsError> {
        let key = parse(certificates.as_bytes(), origin, key.as_bytes(), origin)?;
        Ok(Self::holding(Source::Fixed, key))
    }

    fn from_source(source: Source) -> Result<Self, TlsError> {
        match source.load()? {
            Some(key) => Ok(Self::holding(source, key)),
            None => Err(TlsError::NoCertificate { origin: "nothing".to_owned() }),
        }
    }

    fn holding(source: Source, key: CertifiedKey) -> Self {
        let current = Current { key: Arc::new(key), since: SystemTime::now() };
        Self(Arc::new(Held { source, current: RwLock::new(current) }))
    }

    /// Reads the files again, or has the local CA sign anew; connections that are open go on with the old one. On an
    /// error everything stays as it was. Blocks.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn renew(&self) -> Result<(), TlsError> {
        if let Some(key) = self.0.source.load()? {
            let current = Current { key: Arc::new(key), since: SystemTime::now() };
            *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        }
        Ok(())
    }

    /// Says whether this is a certificate of the local CA that `now` is time to renew. A clock that was set back makes
    /// it due: it might not be good yet.
    #[must_use]
    pub fn is_due(&self, now: SystemTime) -> bool {
        let is_old = |since| now.duration_since(since).map_or(true, |age| age >= RENEW_AFTER);
        matches!(self.0.source, Source::Local { .. }) && is_old(self.current().since)
    }

    fn current(&self) -> Current {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current().key)
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current().key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Makes the server's side: shows `own`, and lets callers show certificates that `callers` believe. None has to, and
/// who shows another one is turned away. Speaks TLS 1.2 and 1.3.
///
/// # Errors
/// [`TlsError::Setup`].
pub fn server_config(
    own: &OwnCertificate,
    callers: Option<&Trust>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::setup)?;
    let builder = match callers {
        None => builder.with_no_client_auth(),
        Some(callers) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(callers.roots()), provider())
                .allow_unauthenticated()
                .build()
                .map_err(TlsError::setup)?,
        ),
    };
    let mut config = builder.with_cert_resolver(Arc::new(own.clone()));
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    Ok(Arc::new(config))
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| TlsError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })
    };
    let pem = load_document(key)?;
    let (chain_at, key_at) = (certificate.display().to_string(), key.display().to_string());
    parse(&read(certificate)?, &chain_at, pem.as_bytes(), &key_at)
}

fn parse(
    certificates: &[u8],
    certificates_at: &str,
    key: &[u8],
    key_at: &str,
) -> Result<CertifiedKey, TlsError> {
    let nothing = || TlsError::NoCertificate { origin: certificates_at.to_owned() };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(nothing)?;
    let no_key = |_| TlsError::NoKey { origin: key_at.to_owned() };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(no_key)?;
    CertifiedKey::from_der(chain, key, &provider())
        .map_err(|source| TlsError::Mismatch { origin: certificates_at.to_owned(), source })
}
