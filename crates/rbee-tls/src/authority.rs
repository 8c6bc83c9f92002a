//! The CA of one home directory: its key, its certificate, and what it signs. Owns `tls/ca.key` and `tls/ca.pem`; asks
//! nobody and is believed by nobody who was not told to.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use input_validation::NodeName;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use secrets_management::{SecretError, load_document, store_new_document};
use zeroize::Zeroizing;

use crate::hex::{read_hex, write_hex};
use crate::peer::{CertificateFingerprint, Peer};
use crate::{TlsError, provider};

/// What every CA of rbee is called; which one it is, its key tells.
const COMMON_NAME: &str = "rbee local CA";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Clocks of two machines may differ by this much.
const SKEW: Duration = DAY;
/// For how long a CA and the certificates of paired hives are good. What ends them is that nobody believes them any
/// more: a hive's is taken back by `rbee hive forget`.
const LONG_TIME: Duration = Duration::from_secs(20 * 365 * 24 * 60 * 60);
/// For how long a certificate is good that a running daemon renews.
const LEAF_TIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Bytes of a public key on P-256: the mark of an uncompressed point, and two coordinates.
const POINT_BYTES: usize = 65;
const POINT_MARK: u8 = 4;

/// A CA that signs for one cluster.
pub struct Authority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
}

/// Shows which one it is, and nothing of its key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Loads the CA that lies in `directory`, or makes one there. Programs that do so at once end with the same one.
    /// The directory has to be there. Blocks.
    ///
    /// # Errors
    /// [`TlsError`]; an existing file that cannot be used is an error and is left as it is.
    pub fn load_or_generate(directory: &Path) -> Result<Self, TlsError> {
        let key_file = directory.join("ca.key");
        let key = match load_document(&key_file) {
            Err(SecretError::NotFound { .. }) => {
                let fresh = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
                store_new_document(&key_file, &fresh.serialize_pem().into())?;
                load_document(&key_file)?
            }
            loaded => loaded?,
        };
        let no_key = |_| TlsError::NoKey { origin: key_file.display().to_string() };
        let key = KeyPair::from_pem(&key).map_err(no_key)?;
        let file = Self::certificate_file(directory);
        let pem = match fs::read_to_string(&file) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pem = params_of_authority().self_signed(&key)?.pem();
                store_new_document(&file, &pem.into())?;
                fs::read_to_string(&file).map_err(read_error(&file))?
            }
            Err(error) => return Err(read_error(&file)(error)),
        };
        let nothing = |_| TlsError::NoCertificate { origin: file.display().to_string() };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(nothing)?;
        if !is_of(&certificate, &key) {
            return Err(TlsError::ForeignCertificate { certificate: file, key: key_file });
        }
        Ok(Self { key, certificate, pem })
    }

    /// Returns where the certificate of the CA in `directory` lies.
    #[must_use]
    pub fn certificate_file(directory: &Path) -> PathBuf {
        directory.join("ca.pem")
    }

    /// Returns the certificate in PEM form.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the fingerprint of the certificate.
    #[must_use]
    pub fn fingerprint(&self) -> CertificateFingerprint {
        CertificateFingerprint::of(&self.certificate)
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Makes a key and signs for it: good for 30 days, for all of `names`, which are host names and addresses.
    pub(crate) fn issue(
        &self,
        peer: Option<&Peer>,
        names: &[String],
    ) -> Result<CertifiedKey, TlsError> {
        let certified = peer.map(Peer::certified_name);
        let names: Vec<String> = names.iter().cloned().chain(certified).collect();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = leaf_params("rbee", names, LEAF_TIME)?.signed_by(&key, &self.issuer())?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| {
            TlsError::Setup(Box::new(io::Error::new(io::ErrorKind::InvalidData, why)))
        })?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::setup)
    }

    /// Signs for the key that a hive has made. Returns the certificate in PEM form and its fingerprint.
    ///
    /// # Errors
    /// [`TlsError::Issue`].
    pub fn certify(
        &self,
        hive: &NodeName,
        key: &HiveKey,
    ) -> Result<(String, CertificateFingerprint), TlsError> {
        let names = vec![Peer::Hive(hive.clone()).certified_name()];
        let params = leaf_params(hive.as_str(), names, LONG_TIME)?;
        let signed: Certificate = params.signed_by(key, &self.issuer())?;
        Ok((signed.pem(), CertificateFingerprint::of(signed.der())))
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::new(params_of_authority(), &self.key)
    }
}

/// The public half of a key that a hive has made: a point on P-256.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HiveKey([u8; POINT_BYTES]);

impl HiveKey {
    /// Takes an uncompressed point; `None` for other bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let point: [u8; POINT_BYTES] = bytes.try_into().ok()?;
        (point.first() == Some(&POINT_MARK)).then_some(Self(point))
    }

    /// Makes a key. Returns its public half, and its private one in PEM form.
    ///
    /// # Errors
    /// [`TlsError::Issue`].
    pub fn generate() -> Result<(Self, Zeroizing<String>), TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let point =
            Self::from_bytes(key.public_key_raw()).ok_or(rcgen::Error::CouldNotParseKeyPair)?;
        Ok((point, key.serialize_pem().into()))
    }
}

/// The text is not a public key of a hive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not an uncompressed point on P-256, 130 hex digits")]
pub struct NoHiveKey;

impl fmt::Display for HiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl FromStr for HiveKey {
    type Err = NoHiveKey;

    fn from_str(text: &str) -> Result<Self, NoHiveKey> {
        let bytes: [u8; POINT_BYTES] = read_hex(text).ok_or(NoHiveKey)?;
        Self::from_bytes(&bytes).ok_or(NoHiveKey)
    }
}

impl PublicKeyData for HiveKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

fn params_of_authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + LONG_TIME).into());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(
    common_name: &str,
    names: Vec<String>,
    time: Duration,
) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + time).into());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Says whether a certificate holds the public half of `key`.
fn is_of(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    webpki::anchor_from_trusted_cert(certificate).is_ok_and(|anchor| {
        let spki = anchor.subject_public_key_info;
        spki.ends_with(key.public_key_raw())
    })
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> TlsError {
    move |source| TlsError::Io { action: "read", path: path.to_owned(), source }
}
