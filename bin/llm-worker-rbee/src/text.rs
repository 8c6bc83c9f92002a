//! Turns the bytes of tokens into text that may be sent: whole characters
//! only, and nothing that may still become a stop sequence. Holds back no more
//! than the longest beginning of a stop sequence that the text ends with.

mod logprobs;
mod stop;
mod utf8;

pub(crate) use logprobs::{LogprobQueue, PlacedLogprobs};
use stop::Stops;
use utf8::Characters;

/// Whether the text goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    GoesOn,
    /// A stop sequence came; it and what follows is not part of the text.
    Stopped,
}

/// The text of one generation on its way out.
#[derive(Debug)]
pub(crate) struct TextStream {
    characters: Characters,
    stops: Stops,
    /// Characters that are whole and not yet sent.
    held: String,
    /// Bytes of all whole characters so far, sent and held.
    decoded_bytes: usize,
}

impl TextStream {
    /// `stops` are not empty texts.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self {
            characters: Characters::default(),
            stops: Stops::new(stops),
            held: String::new(),
            decoded_bytes: 0,
        }
    }

    /// Where in the text the next token begins, in bytes: with the character
    /// that its first byte is a part of.
    pub(crate) fn decoded_bytes(&self) -> usize {
        self.decoded_bytes
    }

    /// Takes the bytes of one token and appends to `out` what may be sent now.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut String) -> Flow {
        let before = self.held.len();
        self.characters.push(bytes, &mut self.held);
        self.advance(before, out)
    }

    /// Ends the text: appends what was held back, an unfinished character as U+FFFD.
    pub(crate) fn finish(&mut self, out: &mut String) -> Flow {
        let before = self.held.len();
        self.characters.finish(&mut self.held);
        let flow = self.advance(before, out);
        if flow == Flow::GoesOn {
            out.push_str(&self.held);
        }
        self.held.clear();
        flow
    }

    /// Looks at what was added to `held` after `before`.
    fn advance(&mut self, before: usize, out: &mut String) -> Flow {
        let fresh = self.held.as_bytes().get(before..).unwrap_or_default();
        self.decoded_bytes += fresh.len();
        let (keep_from, flow) = match self.stops.find(fresh) {
            Some(found) => (before + found.end - found.len, Flow::Stopped),
            None => (self.held.len() - self.stops.partial(), Flow::GoesOn),
        };
        out.push_str(self.held.get(..keep_from).unwrap_or_default());
        match flow {
            Flow::GoesOn => {
                self.held.drain(..keep_from);
            }
            Flow::Stopped => {
                self.held.clear();
                self.characters = Characters::default();
                self.stops.forget();
            }
        }
        flow
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the whole text must be, found the slow way: the shortest beginning
    /// that ends in a stop sequence is cut before the longest such sequence.
    fn reference(bytes: &[u8], stops: &[String]) -> (String, Flow) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let hit = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(len) = hit.map(String::len).max() {
                return (text[..end - len].to_owned(), Flow::Stopped);
            }
        }
        (text, Flow::GoesOn)
    }

    /// The longest end of `text` that begins a stop sequence.
    fn longest_partial(text: &str, stops: &[String]) -> usize {
        let partial = |len: &usize| {
            text.is_char_boundary(text.len() - len)
                && stops.iter().any(|stop| stop.starts_with(&text[text.len() - len..]))
        };
        (0..=text.len()).rev().find(partial).unwrap_or(0)
    }

    fn run(chunks: &[&[u8]], stops: &[&str]) -> (Vec<String>, Flow) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = TextStream::new(&stops);
        let mut parts = Vec::new();
        for chunk in chunks {
            let mut out = String::new();
            let flow = stream.push(chunk, &mut out);
            parts.push(out);
            if flow == Flow::Stopped {
                let mut rest = String::new();
                assert_eq!((stream.finish(&mut rest), rest.as_str()), (Flow::GoesOn, ""));
                return (parts, flow);
            }
        }
        let mut out = String::new();
        let flow = stream.finish(&mut out);
        parts.push(out);
        (parts, flow)
    }

    #[test]
    fn text_is_sent_as_soon_as_it_can_no_longer_be_part_of_a_stop() {
        type Case<'a> = (&'a [&'a [u8]], &'a [&'a str], &'a [&'a str], Flow);
        let cases: [Case<'_>; 9] = [
            (&[b"ab", b"cd"], &[], &["ab", "cd", ""], Flow::GoesOn),
            (&[b"ab", b"cd"], &["bc"], &["a", ""], Flow::Stopped),
            (&[b"ab", b"xd"], &["bc"], &["a", "bxd", ""], Flow::GoesOn),
            (&[b"a\n", b"\nb"], &["\n\n"], &["a", ""], Flow::Stopped),
            (&[b"aab", b"aabb"], &["aabb"], &["", "aab"], Flow::Stopped),
            (&[b"ST", b"OP"], &["STOP", "TO"], &["", "S"], Flow::Stopped),
            (&[b"half ST"], &["STOP"], &["half ", "ST"], Flow::GoesOn),
            (&[b"\xf0\x9f", b"\x98\x80!"], &["!"], &["", "\u{1f600}"], Flow::Stopped),
            (&[b"a!\xf0\x9f"], &["!"], &["a"], Flow::Stopped),
        ];
        for (chunks, stops, parts, flow) in cases {
            let parts = parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
            assert_eq!(run(chunks, stops), (parts, flow), "{chunks:?} {stops:?}");
        }
    }

    #[test]
    fn an_unfinished_character_becomes_a_replacement_at_the_end_only() {
        let (parts, _) = run(&[b"a\xe2\x82"], &[]);
        assert_eq!(parts, ["a", "\u{fffd}"]);
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_reference_and_leaks_nothing(
            // Few letters, so that stop sequences occur, overlap and nearly occur.
            bytes in proptest::collection::vec(
                prop::sample::select(b"aab\xc3\xa9\xf0\x9f\x98\x80\xff".to_vec()), 0..40),
            stops in proptest::collection::vec("[ab\u{e9}]{1,4}", 0..4),
            cuts in proptest::collection::vec(0..41_usize, 0..12),
        ) {
            let (expected, expected_flow) = reference(&bytes, &stops);
            let mut cuts: Vec<usize> =
                cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let mut stream = TextStream::new(&stops);
            let (mut sent, mut flow) = (String::new(), Flow::GoesOn);
            for pair in cuts.windows(2) {
                flow = stream.push(&bytes[pair[0]..pair[1]], &mut sent);
                if flow == Flow::Stopped {
                    break;
                }
                prop_assert!(expected.starts_with(&sent), "{sent:?} of {expected:?}");
                let whole = String::from_utf8_lossy(&bytes[..pair[1]]);
                let whole = whole.trim_end_matches('\u{fffd}');
                let due = whole.len() - longest_partial(whole, &stops);
                prop_assert!(sent.len() >= due.min(expected.len()), "{sent:?} held too much of {whole:?}");
            }
            if flow == Flow::GoesOn {
                flow = stream.finish(&mut sent);
            }
            prop_assert_eq!((sent, flow), (expected, expected_flow));
        }
    }
}
