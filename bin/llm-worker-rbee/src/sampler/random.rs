//! The random numbers of one generation: xoshiro256++ of Blackman and Vigna,
//! seeded by SplitMix64, so that a seed means the same tokens in every build.

#[derive(Debug, Clone)]
pub(super) struct Random {
    state: [u64; 4],
    /// Numbers drawn so far.
    drawn: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut seed = seed;
        Self { state: std::array::from_fn(|_| split_mix(&mut seed)), drawn: 0 }
    }

    /// Returns how many numbers have been drawn.
    pub(super) fn drawn(&self) -> u64 {
        self.drawn
    }

    /// Draws so many numbers that nobody looks at.
    pub(super) fn skip(&mut self, count: u64) {
        for _ in 0..count {
            self.next();
        }
    }

    fn next(&mut self) -> u64 {
        self.drawn += 1;
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// Draws a number from 0 up to, and never, 1.
    pub(super) fn unit(&mut self) -> f64 {
        // The upper 53 bits are as many as a double holds exactly.
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double's mantissa")]
        let mantissa = (self.next() >> 11) as f64;
        mantissa / (1_u64 << 53) as f64
    }
}

fn split_mix(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *seed;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        let mut random = Random { state: [1, 2, 3, 4], drawn: 0 };
        let numbers: Vec<u64> = (0..4).map(|_| random.next()).collect();
        assert_eq!(numbers, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
        let mut seed = 1_234_567;
        let mixed = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973];
        assert_eq!([split_mix(&mut seed), split_mix(&mut seed)], mixed);
    }

    #[test]
    fn numbers_are_spread_evenly_over_the_unit_interval() {
        let mut random = Random::new(7);
        let numbers: Vec<f64> = (0..100_000).map(|_| random.unit()).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        for tenth in 0..10 {
            let from = f64::from(tenth) / 10.0;
            let count = numbers.iter().filter(|n| (from..from + 0.1).contains(*n)).count();
            assert!((9_500..10_500).contains(&count), "{tenth}: {count}");
        }
    }
}
