//! The hash that links entries: SHA-256, written as 64 hex digits.

use sha2::{Digest as _, Sha256};

/// Hex digits of a hash.
pub(crate) const HASH_DIGITS: usize = 64;

/// The SHA-256 of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryHash([u8; 32]);

impl EntryHash {
    /// Stands before the first entry.
    pub(crate) const NONE: Self = Self([0; 32]);

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub(crate) fn hex(self) -> [u8; HASH_DIGITS] {
        let mut text = [0; HASH_DIGITS];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            if let [high, low] = pair {
                (*high, *low) = (digit(byte >> 4), digit(byte & 0xf));
            }
        }
        text
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        from_hex(text).map(Self)
    }
}

impl std::fmt::Display for EntryHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

const fn digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// Writes bytes as lower-case hex digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).map(|n| char::from(digit(n))).collect()
}

/// Reads exactly `N` bytes from lower-case hex digits.
pub(crate) fn from_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(bytes)
}

const fn value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_sha_256_in_hex_and_back() {
        let hash = EntryHash::of(b"abc");
        assert!(hash.to_string().starts_with("ba7816bf8f01cfea"));
        assert_eq!(hash.hex(), hash.to_string().as_bytes());
        assert_eq!(EntryHash::parse(&hash.hex()), Some(hash));
        assert_eq!(EntryHash::NONE.to_string(), "0".repeat(64));
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &"A".repeat(64)] {
            assert_eq!(EntryHash::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
