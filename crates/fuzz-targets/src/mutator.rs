//! Changes input at random, as fuzzers do: bits, numbers, pieces, splices. Knows no format. The same seed makes the same
//! changes.

use fastrand::Rng;

/// Longest input that is made; the bounds that matter are far below it or tested by themselves.
const LENGTH_MAX: usize = 16 * 1024;

/// Numbers at which lengths, counts and signs break.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    u64::MAX - 1,
    u64::MAX,
];

/// Makes input out of seeds.
#[derive(Debug)]
pub struct Mutator {
    rng: Rng,
    seeds: Vec<Vec<u8>>,
    words: &'static [&'static str],
}

impl Mutator {
    /// Draws with `seed`. Without seeds, input begins empty.
    #[must_use]
    pub fn new(seed: u64, seeds: Vec<Vec<u8>>, words: &'static [&'static str]) -> Self {
        Self { rng: Rng::with_seed(seed), seeds, words }
    }

    /// Makes the next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut input = self.any_seed();
        for _ in 0..self.rng.u32(1..=6) {
            self.change(&mut input);
        }
        input.truncate(LENGTH_MAX);
        input
    }

    fn any_seed(&mut self) -> Vec<u8> {
        self.rng.choice(&self.seeds).cloned().unwrap_or_default()
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        match self.rng.u32(0..10) {
            0 => self.overwrite(input, |rng, byte| byte ^ (1 << rng.u32(0..8))),
            1 => self.overwrite(input, |rng, _| rng.u8(..)),
            2 => {
                let (start, end) = self.range(input);
                input.drain(start..end);
            }
            3 => {
                let (start, end) = self.range(input);
                let piece: Vec<u8> = input.get(start..end).unwrap_or_default().to_vec();
                self.insert(input, &piece);
            }
            4 => {
                let at = self.place(input);
                input.truncate(at);
            }
            5 => {
                let other = self.any_seed();
                let (start, end) = self.range(&other);
                let piece = other.get(start..end).unwrap_or_default().to_vec();
                self.insert(input, &piece);
            }
            6 => {
                let byte = self.rng.u8(..);
                let count = self.rng.usize(1..64);
                self.insert(input, &vec![byte; count]);
            }
            7 => {
                let edge = self.rng.choice(EDGES).unwrap_or_default();
                let text = edge.to_string();
                self.insert(input, text.as_bytes());
            }
            8 => self.write_number(input),
            _ => {
                let word = self.rng.choice(self.words).copied().unwrap_or_default();
                self.insert(input, word.as_bytes());
            }
        }
    }

    /// A place in `input`, its end included.
    fn place(&mut self, input: &[u8]) -> usize {
        self.rng.usize(0..=input.len())
    }

    fn range(&mut self, input: &[u8]) -> (usize, usize) {
        let start = self.place(input);
        let end = (start + self.rng.usize(0..=64)).min(input.len());
        (start, end)
    }

    fn insert(&mut self, input: &mut Vec<u8>, piece: &[u8]) {
        let at = self.place(input);
        input.splice(at..at, piece.iter().copied());
    }

    fn overwrite(&mut self, input: &mut [u8], byte: impl Fn(&mut Rng, u8) -> u8) {
        let at = self.place(input);
        if let Some(place) = input.get_mut(at) {
            *place = byte(&mut self.rng, *place);
        }
    }

    /// Writes a little-endian number at an edge over what stands there.
    fn write_number(&mut self, input: &mut [u8]) {
        let edge = self.rng.choice(EDGES).unwrap_or_default();
        let width = self.rng.choice([1, 2, 4, 8]).unwrap_or(8);
        let at = self.place(input);
        let places = input.iter_mut().skip(at).take(width);
        places.zip(edge.to_le_bytes()).for_each(|(place, byte)| *place = byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_input_and_another_other_input() {
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed, vec![b"hello world".to_vec()], &["word"]);
            (0..100).map(|_| mutator.next_input()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        let mut different = inputs(1);
        different.sort();
        different.dedup();
        assert!(different.len() > 80, "{}", different.len());
    }
}
