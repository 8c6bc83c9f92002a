//! Whom a program believes that it calls. Owns the check of a server's certificate: exactly the certificates that were
//! named, never those of the operating system.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::authority::Authority;
use crate::own::OwnCertificate;
use crate::peer::{CertificateFingerprint, Peer};
use crate::{TlsError, provider};

/// Whom a caller believes, as whom it expects the other end, and what it shows itself.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// CAs, and certificates of servers themselves.
    certificates: Vec<CertificateDer<'static>>,
    /// A CA of which only this is known.
    fingerprint: Option<CertificateFingerprint>,
    /// Whose certificate it has to be; `None` where the name in the URL decides.
    expected: Option<Peer>,
    shown: Option<OwnCertificate>,
}

impl Trust {
    /// Believes nobody: calls over TLS fail.
    #[must_use]
    pub fn nobody() -> Self {
        Self::default()
    }

    /// Believes the certificates in PEM files: CAs, and servers by their own certificate, whatever their name. Files
    /// that are not there hold none. Blocks.
    ///
    /// # Errors
    /// [`TlsError::Io`] and [`TlsError::NoCertificate`].
    pub fn in_files<P: AsRef<Path>>(files: impl IntoIterator<Item = P>) -> Result<Self, TlsError> {
        let mut trust = Self::nobody();
        for file in files {
            let file = file.as_ref();
            match std::fs::read(file) {
                Ok(pem) => {
                    trust.certificates.extend(certificates(&pem, &file.display().to_string())?);
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(TlsError::Io { action: "read", path: file.to_owned(), source });
                }
            }
        }
        Ok(trust)
    }

    /// Believes the certificates in PEM text; `origin` names it in errors.
    ///
    /// # Errors
    /// [`TlsError::NoCertificate`].
    pub fn in_pem(pem: &str, origin: &str) -> Result<Self, TlsError> {
        Ok(Self { certificates: certificates(pem.as_bytes(), origin)?, ..Self::nobody() })
    }

    /// Believes a CA of this program's own.
    #[must_use]
    pub fn of_authority(authority: &Authority) -> Self {
        Self { certificates: vec![authority.certificate().clone()], ..Self::nobody() }
    }

    /// Believes the CA of this fingerprint, which the other end has to show.
    #[must_use]
    pub fn of_fingerprint(fingerprint: CertificateFingerprint) -> Self {
        Self { fingerprint: Some(fingerprint), ..Self::nobody() }
    }

    /// Takes the other end for nobody but `peer`, whatever its address.
    #[must_use]
    pub fn expecting(self, peer: Peer) -> Self {
        Self { expected: Some(peer), ..self }
    }

    /// Shows `own` to who asks for it.
    #[must_use]
    pub fn showing(self, own: OwnCertificate) -> Self {
        Self { shown: Some(own), ..self }
    }

    /// Says whether nobody at all is believed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.certificates.is_empty() && self.fingerprint.is_none()
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificates.iter().cloned());
        roots
    }

    /// Makes the caller's side. Speaks TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let verifier = Verifier {
            certificates: self.certificates.clone(),
            roots: self.roots(),
            fingerprint: self.fingerprint,
            expected: self.expected.as_ref().map(Peer::server_name).transpose()?,
            provider: provider(),
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::setup)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        Ok(match &self.shown {
            Some(own) => builder.with_client_cert_resolver(Arc::new(own.clone())),
            None => builder.with_no_client_auth(),
        })
    }
}

fn certificates(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let nothing = || TlsError::NoCertificate { origin: origin.to_owned() };
    found.ok().filter(|found| !found.is_empty()).ok_or_else(nothing)
}

/// Checks what a server shows.
#[derive(Debug)]
struct Verifier {
    certificates: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
    fingerprint: Option<CertificateFingerprint>,
    expected: Option<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Returns the roots, the one that is known by its fingerprint included where the server has shown it.
    fn roots_among(&self, shown: &[CertificateDer<'_>]) -> RootCertStore {
        let mut roots = self.roots.clone();
        let is_it = |certificate: &&CertificateDer<'_>| {
            Some(CertificateFingerprint::of(certificate)) == self.fingerprint
        };
        let found = shown.iter().filter(is_it).map(|found| found.clone().into_owned());
        roots.add_parsable_certificates(found);
        roots
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        called: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let is_named = self.certificates.iter().any(|known| known == end_entity);
        if is_named && self.expected.is_none() {
            return Ok(ServerCertVerified::assertion());
        }
        let roots = self.roots_among(intermediates);
        if roots.is_empty() {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let shown = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&shown, &roots, intermediates, now, algorithms)?;
        verify_server_name(&shown, self.expected.as_ref().unwrap_or(called))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls::version::{TLS12, TLS13};
    use rustls::{ClientConnection, ServerConfig, ServerConnection};

    use super::*;

    /// Shakes hands in memory; returns what the client says of it.
    fn shake_hands(client: ClientConfig, server: ServerConfig) -> Result<(), Error> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let mut wire = Vec::new();
        while client.is_handshaking() {
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            wire.clear();
            server.process_new_packets()?;
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            wire.clear();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn a_certificate_is_good_only_with_its_key() {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_generate(directory.path()).unwrap();
        let issue = || authority.issue(None, &["localhost".to_owned()]).unwrap();
        let (own, other) = (issue(), issue());
        let stolen = CertifiedKey::new(own.cert.clone(), other.key);
        for version in [&TLS12, &TLS13] {
            for (shown, is_good) in [(&own, true), (&stolen, false)] {
                let server = ServerConfig::builder_with_provider(provider())
                    .with_protocol_versions(&[version])
                    .unwrap()
                    .with_no_client_auth()
                    .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown.clone())));
                let client = Trust::of_authority(&authority).client_config().unwrap();
                let outcome = shake_hands(client, server);
                assert_eq!(outcome.is_ok(), is_good, "{version:?}: {outcome:?}");
            }
        }
    }
}
