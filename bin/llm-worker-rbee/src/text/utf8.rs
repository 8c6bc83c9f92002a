//! Puts characters together that tokens have cut in pieces.

/// Appends whole characters and keeps the beginning of an unfinished one.
#[derive(Debug, Default)]
pub(super) struct Characters {
    /// The unfinished character, at most three bytes, and the bytes being looked at.
    pending: Vec<u8>,
}

impl Characters {
    /// Appends the characters that `bytes` completes. Bytes that can never be
    /// part of a character become U+FFFD, as `String::from_utf8_lossy` has it.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut String) {
        // Nearly every token is whole text after whole text.
        if self.pending.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            out.push_str(text);
            return;
        }
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        let unfinished = loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    break 0;
                }
                Err(error) => error,
            };
            let (valid, broken) = rest.split_at(error.valid_up_to());
            out.push_str(std::str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                None => break broken.len(),
                Some(len) => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = broken.get(len..).unwrap_or_default();
                }
            }
        };
        self.pending.drain(..self.pending.len() - unfinished);
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub(super) fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_read_as_the_standard_library_reads_them_whole(
            pieces in proptest::collection::vec(
                proptest::collection::vec(prop_oneof![
                    3 => prop::sample::select("a\u{e9}\u{20ac}\u{1f600}".as_bytes().to_vec()),
                    1 => any::<u8>(),
                ], 0..6), 0..12),
        ) {
            let mut characters = Characters::default();
            let mut out = String::new();
            for piece in &pieces {
                characters.push(piece, &mut out);
            }
            characters.finish(&mut out);
            let whole = pieces.concat();
            prop_assert_eq!(out, String::from_utf8_lossy(&whole));
        }
    }
}
