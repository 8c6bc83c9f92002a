//! Bytes as hex digits, in the forms that people and messages carry: fingerprints and public keys.

use std::fmt;

/// Writes two lower-case digits a byte.
pub(crate) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads exactly `N` bytes; `None` for anything but their digits.
pub(crate) fn read_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_digits_are_read_and_nothing_else_is() {
        assert_eq!(read_hex("00fF"), Some([0, 255]));
        for bad in ["", "0", "00f", "00f0f0", "000g", "+1+1", "é"] {
            assert_eq!(read_hex::<2>(bad), None, "{bad}");
        }
    }
}
