//! What the echo engine says and how it behaves, read from the beginning of a
//! prompt: `[[tokens=20 delay_ms=10 text=some words]] the rest`. `text` is the
//! last key and runs to the closing brackets.

use std::time::Duration;

use crate::engine::backend::PromptError;

/// What is said when there is nothing to repeat.
const NOTHING_TO_REPEAT: &str = "echo";
/// Most tokens that a script may ask for.
const TOKENS_MAX: u32 = 1_000_000;
/// Longest delay that a script may ask for.
const DELAY_MS_MAX: u64 = 60_000;

/// A reply and how it is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Script {
    /// Tokens in the reply.
    pub(super) tokens: u32,
    /// Time that each token after the first takes.
    pub(super) delay: Duration,
    /// The token, counted from 1, at which the process aborts.
    pub(super) die_at: Option<u32>,
    /// The token, counted from 1, at which the engine stops for good.
    pub(super) hang_at: Option<u32>,
    /// Whether the sampler draws the pieces, all being equally likely.
    pub(super) draws: bool,
    /// The piece, counted from 1, that fails its job when it is drawn first.
    pub(super) fail_first: Option<u32>,
    /// Whether the worker ignores SIGTERM from now on.
    pub(super) ignore_sigterm: bool,
    /// The bytes of the reply before it repeats.
    text: Vec<u8>,
    /// Whether pieces are words.
    spaced: bool,
    /// Where each piece ends in `text`.
    ends: Vec<usize>,
}

impl Script {
    /// Reads the script that `prompt` begins with; without one, the words of
    /// the prompt are the reply. Keys: `tokens` (the reply repeats until it has
    /// that many), `delay_ms`, `die_at`, `hang_at`, `draw=1`, `fail_first`,
    /// `ignore_term=1`, `bytes` (pieces of that many bytes instead of words), `text`.
    pub(super) fn parse(prompt: &str) -> Result<Self, PromptError> {
        let mut script = Self::default();
        let mut rest = prompt;
        let mut piece_bytes = None;
        let mut tokens = None;
        if let Some((keys, after)) = prompt.strip_prefix("[[").and_then(|s| s.split_once("]]")) {
            rest = after.trim_start();
            let (keys, text) = match keys.split_once("text=") {
                Some((keys, text)) => (keys, Some(text)),
                None => (keys, None),
            };
            rest = text.unwrap_or(rest);
            for pair in keys.split_whitespace() {
                let (key, value) = pair.split_once('=').ok_or_else(|| wrong(pair))?;
                let number: u64 = value.parse().map_err(|_| wrong(pair))?;
                let small = u32::try_from(number.min(u64::from(TOKENS_MAX))).unwrap_or(TOKENS_MAX);
                match key {
                    "tokens" => tokens = Some(small),
                    "delay_ms" => script.delay = Duration::from_millis(number.min(DELAY_MS_MAX)),
                    "die_at" => script.die_at = Some(small),
                    "hang_at" => script.hang_at = Some(small),
                    "draw" => script.draws = number != 0,
                    "fail_first" => script.fail_first = Some(small),
                    "ignore_term" => script.ignore_sigterm = number != 0,
                    "bytes" => piece_bytes = Some(small.max(1) as usize),
                    _ => return Err(wrong(pair)),
                }
            }
        }
        let rest = if rest.trim().is_empty() { NOTHING_TO_REPEAT } else { rest };
        match piece_bytes {
            Some(bytes) => script.cut_bytes(rest, bytes),
            None => script.cut_words(rest),
        }
        let once = u32::try_from(script.ends.len()).unwrap_or(TOKENS_MAX);
        script.tokens = tokens.unwrap_or(once);
        Ok(script)
    }

    /// Every word is a piece, with a space before it.
    fn cut_words(&mut self, text: &str) {
        self.spaced = true;
        for word in text.split_whitespace() {
            self.text.push(b' ');
            self.text.extend_from_slice(word.as_bytes());
            self.ends.push(self.text.len());
        }
    }

    fn cut_bytes(&mut self, text: &str, bytes: usize) {
        for piece in text.as_bytes().chunks(bytes) {
            self.text.extend_from_slice(piece);
            self.ends.push(self.text.len());
        }
    }

    /// How many pieces there are before they repeat.
    pub(super) fn pieces(&self) -> usize {
        self.ends.len()
    }

    /// Returns the bytes of one token. The text repeats as often as needed; its
    /// first word has no space before it the first time.
    pub(super) fn piece(&self, token: u32) -> &[u8] {
        let pieces = self.ends.len();
        let index = (token as usize).checked_rem(pieces).unwrap_or(0);
        let end = self.ends.get(index).copied().unwrap_or(0);
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied();
        let piece = self.text.get(start.unwrap_or(0)..end).unwrap_or_default();
        if self.spaced && token == 0 { piece.trim_ascii_start() } else { piece }
    }
}

fn wrong(pair: &str) -> PromptError {
    PromptError::Script { reason: format!("{pair:?} is no key with a number") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(prompt: &str) -> String {
        let script = Script::parse(prompt).unwrap();
        let bytes = (0..script.tokens).flat_map(|token| script.piece(token).to_vec()).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_reply_repeats_the_prompt_or_what_the_script_says() {
        for (prompt, reply) in [
            ("hello  big\nworld", "hello big world"),
            ("", "echo"),
            ("[[tokens=2]] a b c", "a b"),
            ("[[tokens=5]] a b", "a b a b a"),
            ("[[tokens=3]]", "echo echo echo"),
            ("[[text=so be it]] not this", "so be it"),
            ("[[bytes=1 text=é😀]]", "é😀"),
            ("[[no script", "[[no script"),
        ] {
            assert_eq!(said(prompt), reply, "{prompt:?}");
        }
    }

    #[test]
    fn behaviour_is_read_and_mistakes_are_refused() {
        let keys = "[[delay_ms=7 die_at=3 hang_at=4 draw=1 ignore_term=1]] x y";
        let script = Script::parse(keys).unwrap();
        assert_eq!(script.delay, Duration::from_millis(7));
        assert_eq!((script.die_at, script.hang_at), (Some(3), Some(4)));
        assert!(script.ignore_sigterm && script.draws && script.fail_first.is_none());
        assert_eq!(script.pieces(), 2);
        for bad in ["[[tokens]]", "[[tokens=x]]", "[[speed=3]]", "[[die_at=-1]]"] {
            assert!(Script::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pieces_of_bytes_cut_characters() {
        let script = Script::parse("[[bytes=1 text=é]]").unwrap();
        assert_eq!(
            (script.tokens, script.piece(0), script.piece(1)),
            (2, &b"\xc3"[..], &b"\xa9"[..])
        );
    }
}
