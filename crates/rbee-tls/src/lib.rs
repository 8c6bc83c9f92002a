//! Certificates: the CA of a home directory, what a program shows of itself, whom it believes, and who a certificate
//! says its holder is. Owns every use of X.509 and every file of it; opens no connection and knows nothing of HTTP.

mod authority;
mod error;
mod hex;
mod own;
mod peer;
mod settings;
mod trust;

pub use authority::{Authority, HiveKey, NoHiveKey};
pub use error::TlsError;
pub use own::{OwnCertificate, server_config};
pub use peer::{CertificateFingerprint, NoFingerprint, Peer, PeerCertificate};
pub use settings::{Served, TlsMode, TlsSettings};
pub use trust::Trust;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// Returns the cryptography that all connections use.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
