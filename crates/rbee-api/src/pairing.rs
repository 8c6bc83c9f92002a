//! How a machine becomes one of the cluster: the code that the queen gives out for it, and what machine and queen then
//! tell each other once.

use std::fmt;
use std::net::IpAddr;

use input_validation::NodeName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest code; an address, a fingerprint and a secret have about 200 characters.
const CODE_BYTES_MAX: usize = 1024;

/// `POST /api/v1/pairings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreatePairing {
    /// What the machine will be called.
    pub name: NodeName,
    /// Base URL by which the machine reaches the queen; absent means the address that she listens on.
    #[serde(default)]
    pub queen_url: Option<String>,
}

/// The answer to `POST /api/v1/pairings`, the only one that ever holds the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreatedPairing {
    /// What the machine will be called.
    pub name: NodeName,
    /// What is typed on the machine.
    pub code: PairingCode,
    /// For how long it can be used, once.
    pub expires_in_seconds: u64,
}

/// A one-time code: the name of the machine, the queen's base URL, the SHA-256 of her CA's certificate and a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct PairingCode(pub String);

/// What a code says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CodeParts<'c> {
    /// What the machine will be called.
    pub name: &'c str,
    /// Where the queen is.
    pub queen_url: &'c str,
    /// SHA-256 of her CA's certificate, 64 hex digits.
    pub fingerprint: &'c str,
    /// What proves that the code was given to this machine.
    pub secret: &'c str,
}

impl CodeParts<'_> {
    /// Says whether only programs of the queen's own machine reach her by this code.
    #[must_use]
    pub fn names_one_machine(&self) -> bool {
        let at = self.queen_url.split_once("://").map_or(self.queen_url, |(_, at)| at);
        let host = at.rsplit_once(':').map_or(at, |(host, _)| host).trim_matches(['[', ']']);
        let ip: Option<IpAddr> = host.parse().ok();
        host == "localhost" || ip.is_some_and(|ip| ip.to_canonical().is_loopback())
    }
}

impl PairingCode {
    /// Puts a code together: `NAME@URL#FINGERPRINT.SECRET`.
    #[must_use]
    pub fn of(parts: &CodeParts<'_>) -> Self {
        let CodeParts { name, queen_url, fingerprint, secret } = parts;
        Self(format!("{name}@{queen_url}#{fingerprint}.{secret}"))
    }

    /// Takes a code apart; `None` where it is none. What the parts hold is for others to check.
    #[must_use]
    pub fn parts(&self) -> Option<CodeParts<'_>> {
        let text = Some(self.0.trim()).filter(|text| text.len() <= CODE_BYTES_MAX)?;
        let (name, rest) = text.split_once('@')?;
        let (queen_url, rest) = rest.split_once('#')?;
        let (fingerprint, secret) = rest.split_once('.')?;
        let parts = CodeParts { name, queen_url, fingerprint, secret };
        let is_whole = [name, queen_url, fingerprint, secret].iter().all(|part| !part.is_empty());
        is_whole.then_some(parts)
    }
}

impl fmt::Debug for PairingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairingCode(…)")
    }
}

impl fmt::Debug for CodeParts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodeParts").field("queen_url", &self.queen_url).finish_non_exhaustive()
    }
}

/// `POST /api/v1/hives/{name}/pair`, with the code's secret as the bearer token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PairRequest {
    /// Base URL by which the queen reaches the hive, such as `https://10.0.0.7:9200`.
    pub url: String,
    /// The public key that the hive has made: an uncompressed point on P-256, 130 hex digits.
    pub public_key: String,
}

/// What the hive keeps from then on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PairReply {
    /// The hive's certificate, PEM.
    pub certificate: String,
    /// The certificate of the queen's CA, PEM.
    pub ca: String,
    /// The token that this hive and the queen show each other.
    pub token: String,
}

impl fmt::Debug for PairReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairReply(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_one_machine_is_told_from_others() {
        let is_of_one = |queen_url: &str| {
            CodeParts { name: "attic", queen_url, fingerprint: "ab", secret: "cd" }
                .names_one_machine()
        };
        for url in ["https://127.0.0.1:8080", "https://[::1]:8080", "https://localhost:8080"] {
            assert!(is_of_one(url), "{url}");
        }
        for url in ["https://10.0.0.5:8080", "https://[fe80::1]:8080", "https://attic.lan:8080"] {
            assert!(!is_of_one(url), "{url}");
        }
    }

    #[test]
    fn a_code_is_taken_apart_as_it_was_put_together() {
        let parts = CodeParts {
            name: "attic",
            queen_url: "https://[fe80::1]:8080",
            fingerprint: "ab",
            secret: "cd",
        };
        let code = PairingCode::of(&parts);
        assert!(code.parts() == Some(parts));
        assert!(PairingCode(format!(" {}\n", code.0)).parts() == Some(parts), "as it is pasted");
        assert!(!format!("{code:?} {parts:?}").contains("cd"));
        for bad in
            ["", "attic", "attic@https://q", "attic@https://q#ab", "@https://q#ab.cd", "a@b#c."]
        {
            assert!(PairingCode(bad.to_owned()).parts().is_none(), "{bad}");
        }
        assert!(PairingCode(format!("{}{}", code.0, "x".repeat(CODE_BYTES_MAX))).parts().is_none());
    }
}
