//! How this machine becomes one of a cluster, and what it keeps of that: a name, a key, a certificate, the CA of the
//! queen and a token, in one file of mode 0600. Owns the conversation with the queen about it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use auth_min::is_loopback;
use deadline_propagation::Deadline;
use input_validation::NodeName;
use rbee_api::pairing::{CodeParts, PairReply, PairRequest, PairingCode};
use rbee_home::Home;
use rbee_http::HopClient;
use rbee_tls::{HiveKey, OwnCertificate, Peer, Served, TlsError, Trust, server_config};
use secrets_management::{Secret, SecretError, load_document, store_document};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// How long the queen may take: she signs and writes a few rows.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// What certificates are said to come from, in errors.
const ORIGIN: &str = "the file of the pairing";

/// What a paired hive keeps.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Pairing {
    /// The machine's name in the cluster.
    pub(crate) name: NodeName,
    /// Where the queen is.
    pub(crate) queen_url: String,
    /// PEM.
    certificate: String,
    /// PEM, of the queen's CA.
    ca: String,
    /// PEM.
    key: Zeroizing<String>,
    /// What this hive and the queen show each other.
    token: Zeroizing<String>,
}

/// Shows no secret.
impl fmt::Debug for Pairing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = (&self.name, &self.queen_url);
        f.debug_tuple("Pairing").field(&shown).finish()
    }
}

/// Says why a machine was not paired.
#[derive(Debug, thiserror::Error)]
pub enum PairingError {
    /// What was given is no code.
    #[error("this is not a pairing code; `rbee hive pair NAME` on the queen's machine prints one")]
    NotACode,
    /// The hive is to listen where the queen would not reach it.
    #[error("the queen would not reach this hive at {address}")]
    NoAddress {
        /// Where the hive is to listen.
        address: SocketAddr,
    },
    /// The queen did not take the machine in.
    #[error("the queen did not take this machine in")]
    Refused(#[from] rbee_http::CallError),
    /// The queen's answer cannot be used.
    #[error("the queen's answer cannot be used")]
    Answer(#[source] TlsError),
    /// Something cannot be kept.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The file of the pairing holds something else.
    #[error("{ORIGIN}, secrets/pairing.json, cannot be read; pair the machine again")]
    Damaged(#[from] serde_json::Error),
}

impl Pairing {
    /// Loads what was kept; `None` for a machine that was not paired. Blocks.
    ///
    /// # Errors
    /// [`PairingError::Secret`] and [`PairingError::Damaged`].
    pub(crate) fn load(home: &Home) -> Result<Option<Self>, PairingError> {
        match load_document(&home.pairing()) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(SecretError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a key, shows the queen the secret of `code`, and returns what she gave.
    ///
    /// # Errors
    /// [`PairingError`]; nothing has changed on this machine then.
    pub(crate) async fn ask(code: &PairingCode, own_url: &str) -> Result<Self, PairingError> {
        let CodeParts { name, queen_url, fingerprint, secret } =
            code.parts().ok_or(PairingError::NotACode)?;
        let not_a_code = |_| PairingError::NotACode;
        let name: NodeName = name.parse().map_err(|_| PairingError::NotACode)?;
        let fingerprint = fingerprint.parse().map_err(|_| PairingError::NotACode)?;
        let secret = Secret::from_bytes(secret.as_bytes(), "the code").map_err(not_a_code)?;
        let (point, key) = HiveKey::generate().map_err(PairingError::Answer)?;
        let trust = Trust::of_fingerprint(fingerprint).expecting(Peer::Queen);
        let queen = HopClient::trusting(queen_url, Arc::new(secret), &trust)?;
        let request = PairRequest { url: own_url.to_owned(), public_key: point.to_string() };
        let path = format!("/api/v1/hives/{name}/pair");
        let reply: PairReply = queen.post(&path, &request, Deadline::after(CALL_LIMIT)).await?;
        let pairing = Self {
            name,
            queen_url: queen_url.to_owned(),
            certificate: reply.certificate,
            ca: reply.ca,
            key,
            token: reply.token.into(),
        };
        pairing.served().map_err(PairingError::Answer)?;
        pairing.token()?;
        Ok(pairing)
    }

    /// Keeps it in the place of an earlier one. Blocks.
    ///
    /// # Errors
    /// [`PairingError::Secret`].
    pub(crate) fn keep(&self, home: &Home) -> Result<(), PairingError> {
        let text = Zeroizing::new(serde_json::to_string(self)?);
        Ok(store_document(&home.pairing(), &text)?)
    }

    /// Returns what this hive serves with: its own certificate, and callers may show one of the queen's CA.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn served(&self) -> Result<Served, TlsError> {
        let own = self.own()?;
        let config = server_config(&own, Some(&Trust::in_pem(&self.ca, ORIGIN)?))?;
        Ok(Served { own, config, known_by: None, authority: None })
    }

    /// Returns whom this hive believes: the queen, to whom it shows its own certificate.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn trust(&self) -> Result<Trust, TlsError> {
        Ok(Trust::in_pem(&self.ca, ORIGIN)?.expecting(Peer::Queen).showing(self.own()?))
    }

    /// Returns the token.
    ///
    /// # Errors
    /// [`SecretError::Content`].
    pub(crate) fn token(&self) -> Result<Secret, SecretError> {
        Secret::from_bytes(self.token.as_bytes(), ORIGIN)
    }

    fn own(&self) -> Result<OwnCertificate, TlsError> {
        OwnCertificate::in_pem(&format!("{}{}", self.certificate, self.ca), &self.key, ORIGIN)
    }
}

/// Returns the URL by which the queen calls a hive that is to listen on `address`, where nobody has told another one.
///
/// # Errors
/// [`PairingError::NotACode`], and [`PairingError::NoAddress`] for an address at which she would not reach it.
pub(crate) fn own_url(
    told: Option<&str>,
    address: SocketAddr,
    code: &PairingCode,
) -> Result<String, PairingError> {
    let parts = code.parts().ok_or(PairingError::NotACode)?;
    if let Some(url) = told {
        return Ok(url.to_owned());
    }
    let is_called_here = parts.names_one_machine();
    let is_open = !address.ip().is_unspecified() && !is_loopback(address.ip());
    if address.port() != 0 && (is_open || (is_loopback(address.ip()) && is_called_here)) {
        Ok(format!("https://{address}"))
    } else {
        Err(PairingError::NoAddress { address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hive_tells_an_address_at_which_the_queen_reaches_it() {
        let code = |queen: &str| PairingCode(format!("attic@{queen}#ab.cd"));
        let far = code("https://10.0.0.5:8080");
        for (address, queen, expected) in [
            ("10.0.0.7:9200", &far, Some("https://10.0.0.7:9200")),
            ("127.0.0.1:9200", &far, None),
            ("0.0.0.0:9200", &far, None),
            ("[::]:9200", &far, None),
            ("10.0.0.7:0", &far, None),
            ("127.0.0.2:1", &code("https://127.0.0.1:8080"), Some("https://127.0.0.2:1")),
            ("[::1]:1", &code("https://[::1]:8080"), Some("https://[::1]:1")),
        ] {
            let found = own_url(None, address.parse().unwrap(), queen);
            assert_eq!(found.ok().as_deref(), expected, "{address}");
            let told = own_url(Some("https://attic.lan:1"), address.parse().unwrap(), queen);
            assert_eq!(told.unwrap(), "https://attic.lan:1");
        }
    }
}
