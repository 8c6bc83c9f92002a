//! Percent-encoding of paths inside references. Owns which bytes stand for themselves; never touches a file.

use std::fmt::Write as _;

/// Encodes every byte that is not a letter, a digit, `/` or one of `. _ - + = , @`, and a dot after a dot.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if is_plain(byte) && !(byte == b'.' && text.ends_with('.')) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            write!(text, "%{byte:02X}").ok();
        }
    }
    text
}

/// Decodes `%XX`, or returns nothing when a `%` is not followed by two hex digits.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = hex(bytes.next()?)?;
            let low = hex(bytes.next()?)?;
            decoded.push((high << 4) | low);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'/' | b'.' | b'_' | b'-' | b'+' | b'=' | b',' | b'@')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_broken_escape_is_refused() {
        for bad in ["%", "%1", "%zz", "a%2", "%+1"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_string_survives_a_round_trip(bytes in any::<Vec<u8>>()) {
            let text = encode(&bytes);
            prop_assert!(text.bytes().all(|b| is_plain(b) || b == b'%'));
            prop_assert!(!text.contains(".."));
            prop_assert_eq!(decode(&text), Some(bytes));
        }
    }
}
