//! Looks for stop sequences byte by byte, without ever looking back: for each
//! sequence it knows how much of it the text so far ends with (Knuth, Morris,
//! Pratt). There are at most a handful, so this beats one automaton for all.

/// A stop sequence that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it ends, counted in the bytes given to this call.
    pub(super) end: usize,
    /// Its length; it may have begun in an earlier call.
    pub(super) len: usize,
}

/// All stop sequences of one generation.
#[derive(Debug)]
pub(super) struct Stops {
    stops: Vec<Stop>,
}

#[derive(Debug)]
struct Stop {
    text: Vec<u8>,
    /// For each length of a matched beginning: the length of the longest
    /// shorter beginning that it ends with.
    fallback: Vec<usize>,
    matched: usize,
}

impl Stops {
    pub(super) fn new(stops: &[String]) -> Self {
        Self { stops: stops.iter().map(|stop| Stop::new(stop.as_bytes())).collect() }
    }

    /// Looks on in `bytes` and returns the first stop sequence that ends in
    /// them; of several that end at the same place, the longest.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<Found> {
        if self.stops.is_empty() {
            return None;
        }
        for (index, byte) in bytes.iter().enumerate() {
            let mut longest = 0;
            for stop in &mut self.stops {
                if stop.step(*byte) {
                    longest = longest.max(stop.text.len());
                }
            }
            if longest > 0 {
                return Some(Found { end: index + 1, len: longest });
            }
        }
        None
    }

    /// Begins a new text.
    pub(super) fn forget(&mut self) {
        for stop in &mut self.stops {
            stop.matched = 0;
        }
    }

    /// Bytes at the end of the text that may become a stop sequence.
    pub(super) fn partial(&self) -> usize {
        self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0)
    }
}

impl Stop {
    fn new(text: &[u8]) -> Self {
        let mut stop = Self { text: text.to_vec(), fallback: vec![0; text.len() + 1], matched: 0 };
        // The fallback of a beginning is what the sequence itself, read one
        // byte late, matches of its own beginning.
        for (index, byte) in text.iter().enumerate().skip(1) {
            stop.matched = stop.advance(*byte);
            let matched = stop.matched;
            if let Some(fallback) = stop.fallback.get_mut(index + 1) {
                *fallback = matched;
            }
        }
        stop.matched = 0;
        stop
    }

    /// Takes one byte and says whether the sequence is complete with it.
    fn step(&mut self, byte: u8) -> bool {
        self.matched = self.advance(byte);
        self.matched == self.text.len()
    }

    /// What is matched after one more byte.
    fn advance(&self, byte: u8) -> usize {
        let mut matched = self.matched;
        loop {
            if self.text.get(matched) == Some(&byte) {
                return matched + 1;
            }
            if matched == 0 {
                return 0;
            }
            matched = self.fallback.get(matched).copied().unwrap_or(0);
        }
    }
}
