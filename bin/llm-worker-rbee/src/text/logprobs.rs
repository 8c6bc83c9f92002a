//! Keeps what is known of each token until the text that the token begins in
//! is sent, so that log probabilities arrive with their text, and those of a
//! stop sequence not at all.

use std::collections::VecDeque;

use crate::sampler::TokenLogprobs;

/// A token at its place in the reply.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PlacedLogprobs {
    pub(crate) logprobs: TokenLogprobs,
    /// Characters of the reply before its text.
    pub(crate) offset: u32,
}

/// The tokens of one generation whose text has not been sent.
#[derive(Debug, Default)]
pub(crate) struct LogprobQueue {
    /// Each token with the byte of the text that it begins at.
    waiting: VecDeque<(usize, TokenLogprobs)>,
    sent_bytes: usize,
    sent_chars: u32,
}

impl LogprobQueue {
    /// Takes in a token that begins at this byte of the text.
    pub(crate) fn add(&mut self, start: usize, logprobs: TokenLogprobs) {
        self.waiting.push_back((start, logprobs));
    }

    /// Returns the tokens that begin in `text`, which is sent next.
    pub(crate) fn release(&mut self, text: &str) -> Vec<PlacedLogprobs> {
        let end = self.sent_bytes + text.len();
        let due = self.waiting.partition_point(|(start, _)| *start < end);
        let (sent_bytes, sent_chars) = (self.sent_bytes, self.sent_chars);
        let placed = self.waiting.drain(..due).map(|(start, logprobs)| {
            let before = text.get(..start.saturating_sub(sent_bytes)).unwrap_or_default();
            PlacedLogprobs { logprobs, offset: sent_chars.saturating_add(count(before)) }
        });
        let placed = placed.collect();
        self.sent_bytes = end;
        self.sent_chars = self.sent_chars.saturating_add(count(text));
        placed
    }

    /// Whether every token that was taken in has been returned.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Drops the tokens of a stop sequence that has come.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// Returns the tokens that begin in `text`, the last one, and those after
    /// it that have no text of their own.
    pub(crate) fn release_all(&mut self, text: &str) -> Vec<PlacedLogprobs> {
        let mut placed = self.release(text);
        let offset = self.sent_chars;
        let rest = self.waiting.drain(..);
        placed.extend(rest.map(|(_, logprobs)| PlacedLogprobs { logprobs, offset }));
        placed
    }
}

fn count(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::{Flow, TextStream};

    fn entry(token: u32) -> TokenLogprobs {
        TokenLogprobs { token, logprob: -0.5, top: Vec::new() }
    }

    /// The texts sent, each with its tokens and their offsets.
    fn run(pieces: &[&[u8]], stops: &[&str]) -> Vec<(String, Vec<(u32, u32)>)> {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let (mut stream, mut queue) = (TextStream::new(&stops), LogprobQueue::default());
        let placed = |placed: Vec<PlacedLogprobs>| {
            placed.into_iter().map(|p| (p.logprobs.token, p.offset)).collect()
        };
        let mut sent = Vec::new();
        for (token, piece) in (0..).zip(pieces) {
            queue.add(stream.decoded_bytes(), entry(token));
            let mut text = String::new();
            let flow = stream.push(piece, &mut text);
            if !text.is_empty() {
                let tokens = placed(queue.release(&text));
                sent.push((text, tokens));
            }
            if flow == Flow::Stopped {
                return sent;
            }
        }
        let mut text = String::new();
        if stream.finish(&mut text) == Flow::GoesOn {
            let tokens = placed(queue.release_all(&text));
            sent.push((text, tokens));
        }
        sent
    }

    #[test]
    fn tokens_come_with_the_text_that_they_begin_in() {
        type Sent<'a> = &'a [(&'a str, &'a [(u32, u32)])];
        type Case<'a> = (&'a [&'a [u8]], &'a [&'a str], Sent<'a>);
        let cases: [Case<'_>; 6] = [
            (&[b"ab", b"c"], &[], &[("ab", &[(0, 0)]), ("c", &[(1, 2)]), ("", &[])]),
            // Three tokens are one character.
            (
                &[b"x\xf0\x9f", b"\x98", b"\x80y"],
                &[],
                &[("x", &[(0, 0)]), ("\u{1f600}y", &[(1, 1), (2, 1)]), ("", &[])],
            ),
            // What a stop sequence may begin in waits for it; what is in it never comes.
            (
                &[b"a", b"EN", b"x"],
                &["END"],
                &[("a", &[(0, 0)]), ("ENx", &[(1, 1), (2, 3)]), ("", &[])],
            ),
            (&[b"a", b"bEN", b"Dc"], &["END"], &[("a", &[(0, 0)]), ("b", &[(1, 1)])]),
            // A token without text goes with the next text, or with the end.
            (&[b"a", b"", b"b"], &[], &[("a", &[(0, 0)]), ("b", &[(1, 1), (2, 1)]), ("", &[])]),
            (&[b"a\xf0", b""], &[], &[("a", &[(0, 0)]), ("\u{fffd}", &[(1, 1)])]),
        ];
        for (pieces, stops, expected) in cases {
            let expected: Vec<(String, Vec<(u32, u32)>)> =
                expected.iter().map(|(text, t)| ((*text).to_owned(), t.to_vec())).collect();
            assert_eq!(run(pieces, stops), expected, "{pieces:?}");
        }
    }

    proptest! {
        #[test]
        fn no_token_is_lost_and_offsets_point_at_their_text(
            pieces in proptest::collection::vec("[abE\u{e9}]{0,3}", 0..20),
            stops in proptest::collection::vec("[aE]{2,3}", 0..2),
        ) {
            let bytes: Vec<&[u8]> = pieces.iter().map(String::as_bytes).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let sent = run(&bytes, &stops);
            let text: String = sent.iter().map(|(text, _)| text.as_str()).collect();
            let tokens: Vec<(u32, u32)> = sent.into_iter().flat_map(|(_, tokens)| tokens).collect();
            let mut offset = 0;
            let mut expected = Vec::new();
            for (token, piece) in (0..).zip(&pieces) {
                expected.push((token, offset));
                offset += u32::try_from(piece.chars().count()).unwrap();
            }
            let length = u32::try_from(text.chars().count()).unwrap();
            if length < offset {
                expected.retain(|(_, start)| *start < length);
            }
            prop_assert_eq!(tokens, expected);
        }
    }
}
