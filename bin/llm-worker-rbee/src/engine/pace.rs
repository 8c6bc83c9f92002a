//! Learns from the steps computed so far what the next ones take, and sizes
//! them by that. Measures nothing itself and knows no jobs.

use std::time::Duration;

use tokio::time::Instant;

use super::memory::TILE_DEPTH;
use crate::scheduler::Budget;

/// What a step beside running streams may take: a pause that a reader hardly sees.
const STEP_TARGET_SECONDS: f64 = 0.1;
/// So many times as long it may take for each prompt but the first, divided by
/// the running streams: prompts that arrived together and are computed one
/// after the other leave the steps until the last of them with few streams.
const STEP_TARGET_WAITERS: f64 = 2.5;
/// And at most so many times as long.
const STEP_TARGET_WAITERS_MAX: f64 = 8.0;
/// Where decoding alone takes long, a step may take so many times as long.
const STEP_TARGET_DECODES: f64 = 2.0;
/// Fewest prompt tokens beside streams.
const PROMPT_TOKENS_MIN: u32 = 8;
/// Tokens of prompts that are worth a pass over the weights of their own; and
/// a tile, where attention has those.
const PIECE_TOKENS: u32 = 64;
/// So many times longer a step may take for such a piece.
const STEP_TARGET_PIECE: f64 = 3.0;
/// Fewest prompt tokens in a step that says what one takes.
const PROMPT_TOKENS_TELLING: u32 = 8;
/// A measurement counts at most as so many times the average: a machine that
/// was busy with something else says little about itself.
const OUTLIER: f64 = 3.0;
/// The share that the newest measurement has in an average.
const NEWEST_SHARE: f64 = 0.2;
/// What a prompt token is taken to cost before any was measured.
const PROMPT_TOKEN_SECONDS_GUESS: f64 = 0.001;
/// What each further row adds to a step of one, before it was measured.
const ROW_SHARE_GUESS: f64 = 0.15;
/// A draft must promise to be so much faster than none.
const DRAFT_GAIN_MIN: f64 = 1.05;

/// Most guessed tokens in one step.
pub(crate) const DRAFT_MAX: u32 = 32;
/// The lengths of drafts that are weighed against each other.
const DRAFT_LENGTHS: [u32; 10] = [1, 2, 3, 4, 6, 8, 12, 16, 24, DRAFT_MAX];

/// What steps take, in seconds.
#[derive(Debug)]
pub(crate) struct Pace {
    prompt_token: f64,
    /// Steps without prompts, by their rows; the first is for one row.
    by_rows: [Option<f64>; DRAFT_MAX as usize + 1],
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { prompt_token: PROMPT_TOKEN_SECONDS_GUESS, by_rows: [None; DRAFT_MAX as usize + 1] }
    }

    /// Learns from a step of `rows` tokens of streams and `prompt_tokens` of prompts.
    pub(crate) fn observe(&mut self, rows: u32, prompt_tokens: u32, took: Duration) {
        let took = took.as_secs_f64();
        if prompt_tokens >= PROMPT_TOKENS_TELLING {
            let prompts = (took - self.beside_prompts(rows)).max(took / 10.0);
            blend(&mut self.prompt_token, prompts / f64::from(prompt_tokens));
        } else if prompt_tokens == 0
            && let Some(place) = rows.checked_sub(1).and_then(|i| self.by_rows.get_mut(i as usize))
        {
            match place {
                Some(seconds) => blend(seconds, took),
                None => *place = Some(took),
            }
        }
    }

    /// What the next step may hold, beside `streams`, while `prompts` wait.
    pub(crate) fn budget(&self, streams: u32, prompts: u32, now: Instant) -> Budget {
        let decoding = self.beside_prompts(streams);
        let waiters = f64::from(prompts.saturating_sub(1)) / f64::from(streams.max(1));
        let target = STEP_TARGET_SECONDS.max(decoding * STEP_TARGET_DECODES)
            * (waiters * STEP_TARGET_WAITERS).clamp(1.0, STEP_TARGET_WAITERS_MAX);
        let tokens = ((target - decoding) / self.prompt_token).clamp(0.0, f64::from(u16::MAX));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to the range of u16"
        )]
        let tokens = tokens as u32;
        let piece_takes = f64::from(PIECE_TOKENS) * self.prompt_token;
        let tokens = if tokens >= PIECE_TOKENS {
            tokens - tokens % PIECE_TOKENS
        } else if decoding + piece_takes <= target * STEP_TARGET_PIECE {
            PIECE_TOKENS
        } else {
            tokens
        };
        Budget {
            prompt_tokens_beside_streams: tokens.max(PROMPT_TOKENS_MIN),
            prompt_token_time: Duration::from_secs_f64(self.prompt_token),
            now,
        }
    }

    /// The length of the draft, at most `len_max`, that makes one stream
    /// fastest when each guess is right with probability `hit`; 0 for none.
    pub(crate) fn draft_len(&self, hit: f64, len_max: u32) -> u32 {
        let speed = |len: u32| tokens_expected(hit, len) / self.step_of(1 + len);
        let alone = speed(0);
        if !alone.is_finite() {
            // Not one step was measured.
            return 0;
        }
        let lengths = DRAFT_LENGTHS.iter().copied().filter(|len| *len <= len_max);
        let best = lengths.max_by(|a, b| speed(*a).total_cmp(&speed(*b)));
        best.filter(|len| speed(*len) >= alone * DRAFT_GAIN_MIN).unwrap_or(0)
    }

    /// What a step takes that holds one token of each of so many streams; nothing
    /// where none was measured.
    pub(crate) fn decoding(&self, streams: u32) -> Duration {
        Duration::try_from_secs_f64(self.step_of(streams)).unwrap_or_default()
    }

    /// What so many tokens take that are computed in pieces too small for tiles, of a
    /// text that is `depth` tokens long at last.
    pub(crate) fn outside_tiles(&self, tokens: u32, depth: u32) -> Duration {
        let each = self.prompt_token * (1.0 + f64::from(depth) / f64::from(TILE_DEPTH));
        Duration::try_from_secs_f64(each * f64::from(tokens)).unwrap_or(Duration::MAX)
    }

    /// What is left of a step when its prompts are taken out: its streams, and
    /// the pass over the weights that the prompts have for themselves.
    fn beside_prompts(&self, streams: u32) -> f64 {
        let pass = self.by_rows.first().copied().flatten().unwrap_or(0.0);
        if streams == 0 { pass } else { self.step_of(streams) + pass }
    }

    /// What a step of so many rows takes: as measured, or continued from the
    /// nearest smaller one that was.
    fn step_of(&self, rows: u32) -> f64 {
        let mut known = (1_u32..).zip(&self.by_rows).filter_map(|(n, s)| s.map(|s| (n, s)));
        let Some((first_rows, first)) = known.next() else { return 0.0 };
        let (mut below, mut slope) = ((first_rows, first), first * ROW_SHARE_GUESS);
        for (n, seconds) in known {
            if n > rows {
                if below.0 <= rows {
                    slope = (seconds - below.1) / f64::from(n - below.0);
                }
                break;
            }
            slope = ((seconds - first) / f64::from(n - first_rows)).max(0.0);
            below = (n, seconds);
        }
        below.1 + slope * f64::from(rows.saturating_sub(below.0))
    }
}

fn blend(average: &mut f64, newest: f64) {
    *average += (newest.min(*average * OUTLIER) - *average) * NEWEST_SHARE;
}

/// Tokens that come out of a step with a draft: the right guesses up to the
/// first wrong one, and the one after them.
fn tokens_expected(hit: f64, len: u32) -> f64 {
    (0..=len).map(|i| hit.powi(i.cast_signed())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn prompts_beside_streams_get_what_the_pause_allows() {
        let mut pace = Pace::new();
        (0..50).for_each(|_| pace.observe(4, 0, ms(20)));
        (0..50).for_each(|_| pace.observe(4, 100, ms(20 + 200)));
        let beside = |pace: &Pace, streams, prompts| {
            pace.budget(streams, prompts, Instant::now()).prompt_tokens_beside_streams
        };
        let together = [1, 2, 3, 8, 90].map(|prompts| beside(&pace, 4, prompts));
        assert_eq!(together, [64, 64, 64, 192, 384]);
        (0..50).for_each(|_| pace.observe(4, 100, ms(20 + 20_000)));
        assert_eq!(beside(&pace, 4, 1), PROMPT_TOKENS_MIN);
        (0..50).for_each(|_| pace.observe(4, PROMPT_TOKENS_MIN, ms(20 + 32)));
        assert_eq!(beside(&pace, 4, 1), PIECE_TOKENS, "what was slow once is slow for ever");
        (0..50).for_each(|_| pace.observe(4, 512, ms(20 + 26)));
        let fast = beside(&pace, 4, 1);
        assert!(fast > 1000, "{fast}");
    }

    #[test]
    fn one_slow_step_and_steps_with_few_prompt_tokens_say_little() {
        let mut pace = Pace::new();
        (0..50).for_each(|_| pace.observe(0, 100, ms(100)));
        let before = pace.prompt_token;
        pace.observe(0, 100, ms(100_000));
        assert!(pace.prompt_token < before * 1.5, "{} after {before}", pace.prompt_token);
        let before = pace.prompt_token;
        pace.observe(0, PROMPT_TOKENS_TELLING - 1, ms(50));
        assert!((pace.prompt_token - before).abs() < f64::EPSILON);
        // Where decoding takes half a second, prompts may take as long again.
        let mut pace = Pace::new();
        (0..50).for_each(|_| pace.observe(1, 0, ms(1)));
        (0..50).for_each(|_| pace.observe(4, 0, ms(500)));
        let budget = pace.budget(4, 1, Instant::now());
        assert!((300..=512).contains(&budget.prompt_tokens_beside_streams), "{budget:?}");
    }

    #[test]
    fn a_draft_is_as_long_as_its_odds_and_the_machine_allow() {
        let mut pace = Pace::new();
        assert_eq!(pace.draft_len(0.99, DRAFT_MAX), 0, "nothing is known");
        pace.observe(1, 0, ms(10));
        assert_eq!(pace.draft_len(0.99, DRAFT_MAX), DRAFT_MAX, "rows are taken to be cheap");
        // Each row costs as much as a step of its own: nothing to gain.
        (1..=33)
            .for_each(|rows| (0..30).for_each(|_| pace.observe(rows, 0, ms(10 * u64::from(rows)))));
        assert_eq!(pace.draft_len(0.99, DRAFT_MAX), 0);
        // A row costs a fifth of a step.
        (1..=33).for_each(|rows| {
            (0..30).for_each(|_| pace.observe(rows, 0, ms(8 + 2 * u64::from(rows))))
        });
        let sure = pace.draft_len(0.99, DRAFT_MAX);
        let likely = pace.draft_len(0.7, DRAFT_MAX);
        assert!(sure >= 16 && (1..=6).contains(&likely), "{sure} {likely}");
        assert_eq!(pace.draft_len(0.1, DRAFT_MAX), 0);
        assert!(pace.draft_len(0.99, 5) <= 5);
    }

    #[test]
    fn steps_that_were_never_measured_lie_between_those_that_were() {
        let mut pace = Pace::new();
        assert!(pace.step_of(3).abs() < f64::EPSILON);
        pace.observe(1, 0, ms(10));
        pace.observe(9, 0, ms(18));
        assert!((pace.step_of(5) - 0.014).abs() < 1e-9);
        assert!((pace.step_of(17) - 0.026).abs() < 1e-9);
    }
}
