//! SHA-256 digests as text. Owns the form; never computes one.

use std::fmt::Write as _;

use crate::ValidationError;
use crate::text::{check, text_conversions};

/// Hex digits in a SHA-256 digest.
const DIGITS: usize = 64;

/// Holds a SHA-256 digest as 64 lower-case hex digits; upper-case input is lowered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256Hex {
    text: String,
}

impl Sha256Hex {
    fn parse(text: &str) -> Result<Self, ValidationError> {
        let field = "SHA-256 digest";
        check(field, text, DIGITS, "hex digits", |c| c.is_ascii_hexdigit())?;
        if text.len() != DIGITS {
            return Err(ValidationError::Malformed { field, expected: "64 hex digits" });
        }
        Ok(Self { text: text.to_ascii_lowercase() })
    }

    /// Writes the 32 bytes of a digest as text.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        let text = bytes.iter().fold(String::with_capacity(DIGITS), |mut text, byte| {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").ok();
            text
        });
        Self { text }
    }
}

text_conversions!(Sha256Hex);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_sixty_four_hex_digits_pass() {
        let upper = "AB".repeat(32);
        assert_eq!(upper.parse::<Sha256Hex>().unwrap().as_str(), "ab".repeat(32));
        let length = |n: usize| "a".repeat(n);
        let mut bad = vec![length(0), length(63), length(65), length(4096), "../../x".to_owned()];
        bad.push(format!("{}g", length(63)));
        bad.push(format!("{}\0", length(63)));
        bad.push(format!("{}٣", length(63)));
        bad.push(format!("sha256:{}", length(64)));
        for text in bad {
            assert!(text.parse::<Sha256Hex>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn bytes_and_text_agree(bytes in any::<[u8; 32]>()) {
            let digest = Sha256Hex::from_bytes(&bytes);
            prop_assert_eq!(&digest.as_str().parse::<Sha256Hex>().unwrap(), &digest);
            let first = u8::from_str_radix(&digest.as_str()[..2], 16).unwrap();
            prop_assert_eq!(first, bytes[0]);
        }
    }
}
