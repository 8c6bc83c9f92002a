//! The signatures that are understood, and the check that the code behind them
//! works. There is no other algorithm: a name outside of this list is refused
//! before a key is looked at.

use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey,
};

/// A kind of signature, as the token's header names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// RSA with PKCS #1 v1.5 and SHA-256; keys of 2048 to 8192 bits.
    Rs256,
    /// ECDSA on the curve P-256 with SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// Returns the name in tokens, key sets and configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// Returns the algorithm of this name; case matters.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.as_str() == name)
    }
}

/// A public key, which knows what it may be used for: the token has no say in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PublicKey {
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    P256 { point: Vec<u8> },
    Ed25519 { point: Vec<u8> },
}

impl PublicKey {
    pub(crate) const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256 { .. } => Algorithm::Es256,
            Self::Ed25519 { .. } => Algorithm::EdDsa,
        }
    }

    /// Says whether `signature` is this key's over `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let outcome = match self {
            Self::Rsa { modulus, exponent } => RsaPublicKeyComponents { n: modulus, e: exponent }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature),
            Self::P256 { point } => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            Self::Ed25519 { point } => {
                UnparsedPublicKey::new(&ED25519, point).verify(message, signature)
            }
        };
        outcome.is_ok()
    }
}

/// The code that checks signatures does not work on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("signatures cannot be checked on this machine")]
pub struct SelfTestFailed;

/// Signs and verifies once with a key made for it, and has a changed message
/// and a changed signature refused.
///
/// # Errors
/// [`SelfTestFailed`].
pub fn self_test() -> Result<(), SelfTestFailed> {
    let random = ring::rand::SystemRandom::new();
    let document =
        Ed25519KeyPair::generate_pkcs8(&random).map_err(|_unspecified| SelfTestFailed)?;
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).map_err(|_rejected| SelfTestFailed)?;
    let key = PublicKey::Ed25519 { point: pair.public_key().as_ref().to_vec() };
    let message = b"a message";
    let signature = pair.sign(message);
    let mut changed = signature.as_ref().to_vec();
    changed.iter_mut().take(1).for_each(|byte| *byte ^= 1);
    let is_sound = key.verifies(message, signature.as_ref())
        && !key.verifies(b"A message", signature.as_ref())
        && !key.verifies(message, &changed);
    if is_sound { Ok(()) } else { Err(SelfTestFailed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_as_they_are_written() {
        for algorithm in Algorithm::ALL {
            assert_eq!(Algorithm::from_name(algorithm.as_str()), Some(algorithm));
        }
        for bad in
            ["none", "None", "NONE", "HS256", "rs256", "EDDSA", "RS512", "ES384", "PS256", ""]
        {
            assert_eq!(Algorithm::from_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_self_test_passes_here() {
        assert_eq!(self_test(), Ok(()));
    }
}
