//! Guesses how a text goes on by looking up where its last tokens stood
//! before: replies that quote, edit or repeat are guessed right. Knows tokens
//! only; whether a guess is worth a try is weighed with `pace`.

use std::collections::HashMap;

use super::pace::{DRAFT_MAX, Pace};

/// Tokens that must stand at the end as they stood before.
const MATCH_MIN: usize = 3;
/// Matches longer than this are all alike.
const MATCH_MAX: usize = 24;
/// Tokens guessed where nothing is weighed.
const DRAFT_UNWEIGHED: u32 = 8;
/// The place of the odds of what a form of output forces.
const FORCED: usize = 3;
/// The weight that older outcomes keep.
const OLD_WEIGHT: f64 = 0.9;
/// The weight that outcomes keep over a token that was not guessed.
const IDLE_WEIGHT: f64 = 0.99;

/// The history of one stream, looked up and learned from.
#[derive(Debug)]
pub(super) struct Drafts {
    /// Where each run of tokens ends that stood last.
    ends: HashMap<[u32; MATCH_MIN], usize>,
    /// Tokens that `ends` knows.
    indexed: usize,
    /// By the length of the match: short, middle, long; and of what the form
    /// of the output forces.
    odds: [Odds; 4],
    /// The tokens guessed last.
    draft: Vec<u32>,
    /// Which odds the last guess was made by.
    kind: usize,
}

/// How often guesses were right.
#[derive(Debug, Clone, Copy)]
struct Odds {
    hits: f64,
    misses: f64,
    /// What is believed before anything is known.
    prior: f64,
}

impl Odds {
    fn new(prior: f64) -> Self {
        Self { hits: 0.0, misses: 0.0, prior }
    }

    fn hit(self) -> f64 {
        (self.hits + 2.0 * self.prior) / (self.hits + self.misses + 2.0)
    }

    fn learn(&mut self, hits: f64, misses: f64, old_weight: f64) {
        self.hits = self.hits * old_weight + hits;
        self.misses = self.misses * old_weight + misses;
    }
}

impl Drafts {
    pub(super) fn new() -> Self {
        Self {
            ends: HashMap::new(),
            indexed: 0,
            odds: [Odds::new(0.4), Odds::new(0.6), Odds::new(0.85), Odds::new(0.8)],
            draft: Vec::new(),
            kind: 0,
        }
    }

    /// Guesses what comes after `tokens`, at most `len_max` tokens; with a pace,
    /// only if that is likely to be faster. Returns the length of the guess.
    pub(super) fn guess(&mut self, tokens: &[u32], len_max: u32, pace: Option<&Pace>) -> u32 {
        self.draft.clear();
        let end = self.last_end(tokens);
        let Some(end) = end.filter(|_| len_max > 0) else { return 0 };
        let matched = match_len(tokens, end);
        self.kind = match matched {
            0..6 => 0,
            6..12 => 1,
            _ => 2,
        };
        let len = self.weigh(len_max, pace);
        for index in end..end + len as usize {
            // A guess that reaches the end of the text goes on in itself.
            let token = tokens.get(index).or_else(|| self.draft.get(index - tokens.len()));
            let Some(token) = token.copied() else { break };
            self.draft.push(token);
        }
        u32::try_from(self.draft.len()).unwrap_or(u32::MAX)
    }

    /// Guesses that `forced` comes next, under the same conditions.
    pub(super) fn expect(&mut self, forced: &[u32], len_max: u32, pace: Option<&Pace>) -> u32 {
        self.draft.clear();
        self.kind = FORCED;
        let len = u32::try_from(forced.len()).unwrap_or(u32::MAX).min(len_max);
        let len = self.weigh(len, pace);
        self.draft.extend(forced.iter().take(len as usize));
        len
    }

    /// How many of at most `len_max` guesses are worth a try.
    fn weigh(&mut self, len_max: u32, pace: Option<&Pace>) -> u32 {
        let Some(odds) = self.odds.get_mut(self.kind) else { return 0 };
        let len_max = len_max.min(DRAFT_MAX);
        let len = match pace {
            Some(pace) => pace.draft_len(odds.hit(), len_max),
            None => len_max.min(DRAFT_UNWEIGHED),
        };
        if len == 0 {
            odds.learn(0.0, 0.0, IDLE_WEIGHT);
        }
        len
    }

    /// The tokens guessed last.
    pub(super) fn draft(&self) -> &[u32] {
        &self.draft
    }

    /// Learns that the first `hits` tokens of the guess were right, and that
    /// the next one, if there was one, was not.
    pub(super) fn learn(&mut self, hits: usize) {
        let miss = hits < self.draft.len();
        if let Some(odds) = self.odds.get_mut(self.kind) {
            let hits = u32::try_from(hits).unwrap_or(u32::MAX);
            odds.learn(f64::from(hits), f64::from(u8::from(miss)), OLD_WEIGHT);
        }
        self.draft.clear();
    }

    /// Where the last tokens stood before, counted to after them. Then makes
    /// the whole text known.
    fn last_end(&mut self, tokens: &[u32]) -> Option<usize> {
        let known = self.indexed.saturating_sub(MATCH_MIN - 1);
        let windows = tokens.get(known..).unwrap_or_default().array_windows::<MATCH_MIN>();
        let mut before = None;
        for (end, window) in (known + MATCH_MIN..).zip(windows) {
            before = self.ends.insert(*window, end);
        }
        self.indexed = tokens.len();
        before
    }
}

/// How many tokens before `end` are the same as at the end of `tokens`.
fn match_len(tokens: &[u32], end: usize) -> usize {
    let earlier = tokens.get(..end).unwrap_or_default();
    let same = earlier.iter().rev().zip(tokens.iter().rev()).take(MATCH_MAX);
    same.take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A machine on which a row costs a tenth of a step.
    fn pace() -> Pace {
        let mut pace = Pace::new();
        (1..=33).for_each(|rows| pace.observe(rows, 0, Duration::from_millis(9 + u64::from(rows))));
        pace
    }

    #[test]
    fn a_text_that_repeats_is_guessed_from_where_it_stood_last() {
        let mut drafts = Drafts::new();
        let tokens: Vec<u32> = (0..40).chain(100..104).chain(10..30).collect();
        let len = drafts.guess(&tokens, 8, Some(&pace()));
        assert_eq!((len, drafts.draft()), (8, &[30, 31, 32, 33, 34, 35, 36, 37][..]));
        let mut newer = tokens.clone();
        newer.extend([30, 31, 7, 8, 9, 30, 31, 7]);
        assert!(drafts.guess(&newer, 2, Some(&pace())) > 0);
        assert_eq!(drafts.draft(), [8, 9], "the last of several places");
    }

    #[test]
    fn a_text_is_known_however_it_grows() {
        for piece in 1..5 {
            let mut drafts = Drafts::new();
            let text: Vec<u32> = (0..20).collect();
            for end in (0..=20).step_by(piece) {
                assert_eq!(drafts.guess(&text[..end], 8, None), 0);
            }
            let again: Vec<u32> = (0..20).chain(5..8).collect();
            assert!(drafts.guess(&again, 8, None) > 0, "{piece} tokens at a time");
            assert_eq!(drafts.draft()[..4], [8, 9, 10, 11]);
        }
    }

    #[test]
    fn a_loop_is_guessed_beyond_its_own_end() {
        let mut drafts = Drafts::new();
        let tokens = [1, 2, 3, 4].repeat(8);
        assert!(drafts.guess(&tokens, 12, Some(&pace())) > 4);
        assert!([1, 2, 3, 4].repeat(3).starts_with(drafts.draft()));
    }

    #[test]
    fn what_never_stood_before_is_not_guessed() {
        let mut drafts = Drafts::new();
        assert_eq!(drafts.guess(&[], 8, Some(&pace())), 0);
        let tokens: Vec<u32> = (0..100).collect();
        for len in 1..100 {
            assert_eq!(drafts.guess(&tokens[..len], 8, Some(&pace())), 0);
        }
    }

    #[test]
    fn what_a_form_forces_is_expected_as_far_as_it_pays() {
        let mut drafts = Drafts::new();
        assert_eq!(drafts.expect(&[5, 6, 7], 2, None), 2);
        assert_eq!(drafts.draft(), [5, 6]);
        assert_eq!(drafts.expect(&[5, 6, 7], 0, None), 0);
        assert!(drafts.expect(&[5, 6, 7, 8], 9, Some(&pace())) > 1);
        for _ in 0..20 {
            drafts.expect(&[5, 6, 7, 8], 9, Some(&pace()));
            drafts.learn(0);
        }
        let doubted = drafts.expect(&[5, 6, 7, 8], 9, Some(&pace()));
        assert!(doubted <= 1, "it was never right, and {doubted} are tried");
    }

    #[test]
    fn guesses_that_fail_are_given_up_and_tried_again_much_later() {
        let mut drafts = Drafts::new();
        let mut tokens: Vec<u32> = vec![1, 2, 3];
        let mut tried = Vec::new();
        for round in 0..400_u32 {
            // The same three tokens every time, and something new after them.
            tokens.extend([1000 + round, 1, 2, 3]);
            let len = drafts.guess(&tokens, 8, Some(&pace()));
            if len > 0 {
                tried.push(round);
                drafts.learn(0);
            }
        }
        assert!(tried.first() == Some(&0) && tried.len() < 40, "{tried:?}");
        assert!(tried.last().is_some_and(|last| *last > 100), "{tried:?}");
        let mut drafts = Drafts::new();
        let tokens: Vec<u32> = (0..30).chain(0..20).collect();
        for _ in 0..3 {
            let mut again = Drafts { odds: drafts.odds, ..Drafts::new() };
            assert!(again.guess(&tokens, 8, Some(&pace())) >= 4);
            again.learn(again.draft().len());
            drafts = again;
        }
        assert!(drafts.odds[2].hit() > 0.9);
    }
}
