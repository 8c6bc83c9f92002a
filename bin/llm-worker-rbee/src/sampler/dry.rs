//! DRY, "don't repeat yourself": makes a token less likely, the longer the
//! sequence that it would repeat (p-e-w, text-generation-webui #5677). Looks at
//! the tokens so far, backwards, up to the last sequence breaker.

use std::collections::{HashMap, VecDeque};

use rbee_api::limits::REPEAT_LAST_N_MAX;
use rbee_api::openai::Dry as Settings;

/// Tells the bytes that a token adds to the text.
pub(crate) type Spelling = Box<dyn Fn(u32) -> Vec<u8> + Send>;

/// The largest exponent: beyond it the penalty would leave the range of a float.
const LOG_MAX: f32 = 88.0;

/// The tokens so far, and what it costs to repeat them.
pub(super) struct Dry {
    multiplier: f32,
    base: f32,
    allowed_length: usize,
    window_len: usize,
    /// The tokens of the window, newest first.
    window: VecDeque<u32>,
    breakers: Vec<Vec<u8>>,
    breaker_bytes_max: usize,
    spelling: Option<Spelling>,
    /// The end of the text, long enough to find a breaker in.
    tail: Vec<u8>,
    /// Tokens since the last breaker.
    since_breaker: usize,
    /// How long a sequence each token would repeat; reused between tokens.
    repeats: HashMap<u32, usize>,
    /// See [`suffix_lengths`]; reused between tokens.
    lengths: Vec<usize>,
}

impl std::fmt::Debug for Dry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dry").field("multiplier", &self.multiplier).finish_non_exhaustive()
    }
}

impl Dry {
    pub(super) fn new(settings: &Settings) -> Self {
        let breakers: Vec<Vec<u8>> =
            settings.breakers.iter().map(|text| text.clone().into_bytes()).collect();
        Self {
            multiplier: settings.multiplier,
            base: settings.base,
            allowed_length: settings.allowed_length as usize,
            window_len: settings.last_n.unwrap_or(REPEAT_LAST_N_MAX) as usize,
            window: VecDeque::new(),
            breaker_bytes_max: breakers.iter().map(Vec::len).max().unwrap_or(0),
            breakers,
            spelling: None,
            tail: Vec::new(),
            since_breaker: 0,
            repeats: HashMap::new(),
            lengths: Vec::new(),
        }
    }

    /// Without a spelling there are no breakers.
    pub(super) fn spell_with(&mut self, spelling: Spelling) {
        self.spelling = Some(spelling);
    }

    pub(super) fn accept(&mut self, tokens: &[u32]) {
        let seen = tokens.len().saturating_sub(self.window_len);
        for token in tokens.iter().skip(seen) {
            self.window.truncate(self.window_len.saturating_sub(1));
            self.window.push_front(*token);
            self.since_breaker = if self.breaks(*token) { 0 } else { self.since_breaker + 1 };
        }
    }

    /// Whether a sequence breaker ends within the bytes of a token.
    fn breaks(&mut self, token: u32) -> bool {
        let Some(spelling) = &self.spelling else { return false };
        let before = self.tail.len();
        self.tail.extend(spelling(token));
        let found = self.breakers.iter().any(|breaker| {
            let from = before.saturating_sub(breaker.len() - 1);
            let text = self.tail.get(from..).unwrap_or_default();
            text.windows(breaker.len()).any(|window| window == breaker)
        });
        let kept = self.breaker_bytes_max.saturating_sub(1).min(self.tail.len());
        self.tail.drain(..self.tail.len() - kept);
        found
    }

    /// Lowers the logits of the tokens that would go on with a repetition.
    pub(super) fn apply(&mut self, row: &mut [f32]) {
        let longest = self.since_breaker.min(self.window.len());
        if longest < self.allowed_length || longest == 0 {
            return;
        }
        suffix_lengths(self.window.make_contiguous(), &mut self.lengths);
        self.repeats.clear();
        // The token after each earlier occurrence of the text's end.
        for (next, length) in self.window.iter().zip(self.lengths.iter().skip(1)) {
            let length = (*length).min(longest);
            if length >= self.allowed_length.max(1) {
                let repeat = self.repeats.entry(*next).or_insert(0);
                *repeat = (*repeat).max(length);
            }
        }
        let exponent_max = if self.base > 1.0 { LOG_MAX / self.base.ln() } else { LOG_MAX };
        for (token, length) in &self.repeats {
            #[expect(clippy::cast_precision_loss, reason = "the window is below 2^24 tokens")]
            let exponent = ((length - self.allowed_length) as f32).min(exponent_max);
            if let Some(logit) = row.get_mut(*token as usize) {
                *logit -= self.multiplier * self.base.powf(exponent);
            }
        }
    }
}

/// For each position of `text`: how many elements from there on are the same
/// as those at its beginning (the Z-function, linear in the length).
fn suffix_lengths(text: &[u32], lengths: &mut Vec<usize>) {
    lengths.clear();
    lengths.resize(text.len(), 0);
    let (mut left, mut right) = (0, 0);
    for position in 1..text.len() {
        let known = lengths.get(position - left).copied().unwrap_or(0);
        let mut length = if position < right { known.min(right - position) } else { 0 };
        while position + length < text.len() && text.get(length) == text.get(position + length) {
            length += 1;
        }
        if position + length > right {
            (left, right) = (position, position + length);
        }
        if let Some(place) = lengths.get_mut(position) {
            *place = length;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dry(breakers: &[&str], last_n: Option<u32>) -> Dry {
        let settings = Settings {
            multiplier: 1.0,
            base: 2.0,
            allowed_length: 2,
            last_n,
            breakers: breakers.iter().map(|text| (*text).to_owned()).collect(),
        };
        // Each token is a letter.
        let spelling = |token: u32| vec![b'a' + u8::try_from(token).unwrap()];
        let mut dry = Dry::new(&settings);
        dry.spell_with(Box::new(spelling));
        dry
    }

    /// What each of four letters costs after `text`.
    fn costs(dry: &mut Dry, text: &str) -> [f32; 4] {
        let tokens: Vec<u32> = text.bytes().map(|byte| u32::from(byte - b'a')).collect();
        dry.accept(&tokens);
        let mut row = [0.0; 4];
        dry.apply(&mut row);
        row.map(|logit| 0.0 - logit)
    }

    #[test]
    fn a_token_costs_more_the_longer_the_sequence_it_would_repeat() {
        type Case<'a> = (&'a str, &'a [&'a str], Option<u32>, [f32; 4]);
        let cases: [Case<'_>; 8] = [
            ("abcab", &[], None, [0.0, 0.0, 1.0, 0.0]),
            ("dabcdab", &[], None, [0.0, 0.0, 2.0, 0.0]),
            ("aabdcabcab", &[], None, [0.0, 0.0, 2.0, 1.0]),
            ("abca", &[], None, [0.0; 4]),
            ("aaaa", &[], None, [2.0, 0.0, 0.0, 0.0]),
            // The repetition does not reach across a breaker, of one token or of two.
            ("dabcdab", &["d"], None, [0.0, 0.0, 1.0, 0.0]),
            ("dabcdab", &["da"], None, [0.0; 4]),
            // The first occurrence is outside of the window.
            ("abcdab", &[], Some(4), [0.0; 4]),
        ];
        for (text, breakers, last_n, expected) in cases {
            assert_eq!(costs(&mut dry(breakers, last_n), text), expected, "{text} {breakers:?}");
        }
    }

    #[test]
    fn a_long_repetition_costs_a_finite_amount() {
        let text = "ab".repeat(600);
        let costs = costs(&mut dry(&[], None), &text);
        assert!(costs[0] > 1e30 && costs[0].is_finite(), "{costs:?}");
    }

    proptest! {
        #[test]
        fn suffix_lengths_are_those_found_by_comparing(
            text in proptest::collection::vec(0_u32..3, 0..40),
        ) {
            let mut lengths = Vec::new();
            suffix_lengths(&text, &mut lengths);
            for position in 1..text.len() {
                let same = text.iter().zip(&text[position..]).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(lengths[position], same);
            }
        }
    }
}
