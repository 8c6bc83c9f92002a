//! Who a certificate says its holder is. Owns the names that our own CA writes into certificates for that; whether the
//! holder may do something is for others to decide.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use input_validation::NodeName;
use rustls_pki_types::{CertificateDer, ServerName};
use sha2::{Digest as _, Sha256};

use crate::TlsError;
use crate::hex::{read_hex, write_hex};

/// The name by which a queen is known to her hives. No resolver answers to `.internal`.
const QUEEN: &str = "queen.rbee.internal";
/// What follows a machine's name in its certificate.
const HIVE_SUFFIX: &str = ".hive.rbee.internal";
/// Bytes of a SHA-256.
const DIGEST_BYTES: usize = 32;

/// A program of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The queen.
    Queen,
    /// The hive of one machine.
    Hive(NodeName),
}

impl Peer {
    /// Returns the name that stands in the certificate.
    pub(crate) fn certified_name(&self) -> String {
        match self {
            Self::Queen => QUEEN.to_owned(),
            Self::Hive(name) => format!("{name}{HIVE_SUFFIX}"),
        }
    }

    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, TlsError> {
        ServerName::try_from(self.certified_name()).map_err(TlsError::setup)
    }

    fn of_certified_name(name: &str) -> Option<Self> {
        match name.strip_suffix(HIVE_SUFFIX) {
            Some(hive) => hive.parse().ok().map(Self::Hive),
            None => (name == QUEEN).then_some(Self::Queen),
        }
    }
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CertificateFingerprint([u8; DIGEST_BYTES]);

/// The text is not the fingerprint of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint of a certificate has 64 hex digits")]
pub struct NoFingerprint;

impl CertificateFingerprint {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate.as_ref()).into())
    }

    /// Takes over one that was written down.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns it to be written down.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }
}

impl fmt::Display for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for CertificateFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateFingerprint(")?;
        fmt::Display::fmt(self, f)?;
        f.write_char(')')
    }
}

impl FromStr for CertificateFingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        read_hex(text).map(Self).ok_or(NoFingerprint)
    }
}

/// A certificate that the other end of a connection showed and that our CA has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Whose it is.
    pub peer: Peer,
    /// Which one it is.
    pub fingerprint: CertificateFingerprint,
}

impl PeerCertificate {
    /// Reads what the other end showed; `None` for one that names nobody of the cluster, or more than one. To be called
    /// with what a finished handshake has checked.
    #[must_use]
    pub fn read(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let shown = chain.first()?;
        let parsed = webpki::EndEntityCert::try_from(shown).ok()?;
        let mut peers = parsed.valid_dns_names().filter_map(Peer::of_certified_name);
        let peer = peers.next()?;
        let fingerprint = CertificateFingerprint::of(shown);
        peers.next().is_none().then_some(Self { peer, fingerprint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_certificates_tell_queen_and_hives_apart() {
        for peer in [Peer::Queen, Peer::Hive("attic".parse().unwrap())] {
            assert_eq!(Peer::of_certified_name(&peer.certified_name()), Some(peer));
        }
        let called_queen = Peer::Hive("queen".parse().unwrap());
        assert_eq!(Peer::of_certified_name("queen.hive.rbee.internal"), Some(called_queen));
        for other in
            ["localhost", "a.b.hive.rbee.internal", ".hive.rbee.internal", "x.rbee.internal"]
        {
            assert_eq!(Peer::of_certified_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_certificate_that_names_two_programs_names_nobody() {
        let read = |peers: &[Peer]| {
            let names: Vec<String> = peers.iter().map(Peer::certified_name).collect();
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            PeerCertificate::read(&[made.cert.der().clone()]).map(|shown| shown.peer)
        };
        let (attic, cellar) =
            (Peer::Hive("attic".parse().unwrap()), Peer::Hive("cellar".parse().unwrap()));
        assert_eq!(read(std::slice::from_ref(&attic)), Some(attic.clone()));
        for two in [[attic.clone(), cellar], [attic.clone(), Peer::Queen], [Peer::Queen, attic]] {
            assert_eq!(read(&two), None, "{two:?}");
        }
    }

    #[test]
    fn a_fingerprint_is_read_back_and_nothing_else_is_one() {
        let fingerprint = CertificateFingerprint::of(&CertificateDer::from(vec![1, 2, 3]));
        let text = fingerprint.to_string();
        assert_eq!(text.parse(), Ok(fingerprint));
        for bad in ["", "ab", &text[1..], &format!("{}+1", &text[2..]), &format!("{text}00")] {
            assert_eq!(bad.parse::<CertificateFingerprint>(), Err(NoFingerprint), "{bad}");
        }
    }
}
