//! The signature under a checkpoint: Ed25519, so that whoever holds a copy can check it without being able to make one.
//! Owns the signing key; never writes it anywhere.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;
use rbee_api::audit::AuditCheckpoint;
use secrets_management::Secret;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::entry::Position;
use crate::hash::{from_hex, to_hex};

/// Signs for one log.
pub struct Signer {
    key: SigningKey,
    service: String,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("service", &self.service).finish_non_exhaustive()
    }
}

impl Signer {
    /// Makes the key of a log out of its secret; the same secret gives the same key again.
    #[must_use]
    pub fn new(secret: &Secret, service: &str) -> Self {
        let seed: Zeroizing<[u8; 32]> =
            Zeroizing::new(Sha256::digest(secret.expose().as_bytes()).into());
        Self { key: SigningKey::from_bytes(&seed), service: service.to_owned() }
    }

    /// Returns the key that verifies what this one signs, 64 hex digits.
    #[must_use]
    pub fn key(&self) -> String {
        to_hex(self.key.verifying_key().as_bytes())
    }

    /// Signs that the log has this entry at this place.
    pub(crate) fn sign(&self, position: Position) -> AuditCheckpoint {
        let mut checkpoint = AuditCheckpoint {
            service: self.service.clone(),
            sequence: position.sequence,
            entry_hash: position.hash.to_string(),
            timestamp: format!("{:.3}", Timestamp::now()),
            key: self.key(),
            signature: String::new(),
        };
        let signature = self.key.sign(&signed_bytes(&checkpoint));
        checkpoint.signature = to_hex(&signature.to_bytes());
        checkpoint
    }
}

/// Returns the public key that belongs to a log's secret, 64 hex digits.
#[must_use]
pub fn key_of(secret: &Secret) -> String {
    Signer::new(secret, "").key()
}

/// Says whether a checkpoint was signed with the key that it names.
pub(crate) fn is_signed(checkpoint: &AuditCheckpoint) -> bool {
    let verified = || {
        let key = VerifyingKey::from_bytes(&from_hex(checkpoint.key.as_bytes())?).ok()?;
        let signature = Signature::from_bytes(&from_hex(checkpoint.signature.as_bytes())?);
        key.verify_strict(&signed_bytes(checkpoint), &signature).ok()
    };
    verified().is_some()
}

/// Lengths stand before texts, so that no two checkpoints have the same bytes.
fn signed_bytes(checkpoint: &AuditCheckpoint) -> Vec<u8> {
    let AuditCheckpoint { service, sequence, entry_hash, timestamp, key, signature: _ } =
        checkpoint;
    let mut bytes = b"rbee audit checkpoint 1\n".to_vec();
    for text in [service.as_str(), &sequence.to_string(), entry_hash, timestamp, key] {
        bytes.extend_from_slice(format!("{}:{text}\n", text.len()).as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_exactly_what_was_signed() {
        let signer = Signer::new(&Secret::generate().unwrap(), "queen-rbee");
        let good = signer.sign(Position { sequence: 5, ..Position::START });
        assert!(is_signed(&good));
        let other = Signer::new(&Secret::generate().unwrap(), "queen-rbee").key();
        for bad in [
            AuditCheckpoint { service: "rbee-hive".to_owned(), ..good.clone() },
            AuditCheckpoint { sequence: 6, ..good.clone() },
            AuditCheckpoint { entry_hash: "1".repeat(64), ..good.clone() },
            AuditCheckpoint { timestamp: "later".to_owned(), ..good.clone() },
            AuditCheckpoint { key: other, ..good.clone() },
            AuditCheckpoint { signature: "0".repeat(128), ..good.clone() },
            AuditCheckpoint { signature: String::new(), ..good.clone() },
        ] {
            assert!(!is_signed(&bad), "{bad:?}");
        }
    }

    #[test]
    fn the_same_secret_gives_the_same_key_and_debug_does_not_show_it() {
        let secret = Secret::from_bytes(b"canary-canary", "test").unwrap();
        assert_eq!(Signer::new(&secret, "a").key(), key_of(&secret));
        assert_eq!(format!("{:?}", Signer::new(&secret, "a")), "Signer { service: \"a\", .. }");
    }
}
