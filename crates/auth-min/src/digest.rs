//! What is kept and shown of a token. Owns the digest that is compared and the fingerprint that is logged; never
//! holds the token.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

/// Holds the SHA-256 of a token, 32 bytes, for comparison in constant time.
///
/// Digests are compared instead of tokens, so that neither content nor length shows in the time it takes. There is no
/// `PartialEq`: [`TokenDigest::matches`] is the only comparison.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// Computes the digest of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// Takes over a digest that was written down.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the digest to be written down where only its owner reads.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// Returns the part that logs may show.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        let [a, b, c, ..] = self.0;
        Fingerprint([a, b, c])
    }
}

/// Shows the fingerprint alone: a whole digest would let a guess be checked offline.
impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenDigest({}…)", self.fingerprint())
    }
}

/// Identifies a token in logs: the first six hex digits of its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 3]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_first_six_digits_of_sha_256() {
        // FIPS 180-2: SHA-256("abc") = ba7816bf 8f01cfea …
        let digest = TokenDigest::of("abc");
        assert_eq!(digest.fingerprint().to_string(), "ba7816");
        assert_eq!(format!("{digest:?}"), "TokenDigest(ba7816…)");
    }

    #[test]
    fn only_the_same_token_matches() {
        let right = TokenDigest::of("right-token");
        assert!(right.matches(&TokenDigest::of("right-token")));
        for wrong in ["", "right-toke", "right-token ", "Right-token", "right-tokem"] {
            assert!(!right.matches(&TokenDigest::of(wrong)), "{wrong:?}");
        }
    }
}
