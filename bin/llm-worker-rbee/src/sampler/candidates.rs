//! The tokens that may be drawn: top-n-sigma, top-k, typical-p, top-p, min-p,
//! XTC, temperature and the draw itself. Selects the few likely tokens without
//! sorting the vocabulary; a step that is off costs nothing.

use rbee_api::openai::{Sampling, Xtc};

use super::random::Random;
use super::{BLOCK, any_in, argmax, maximum};

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    logit: f32,
    token: u32,
}

/// Likely tokens sorted first when only top-p bounds their number.
const NUCLEUS_FIRST: usize = 256;

/// Buffers of the selection, reused between tokens.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    list: Vec<Candidate>,
    weights: Vec<f64>,
}

impl Candidates {
    /// Draws a token by the settings; at temperature 0, takes the most likely
    /// one of those that the steps before have left.
    pub(super) fn draw(
        &mut self,
        logits: &[f32],
        settings: &Sampling,
        random: &mut Random,
    ) -> Option<u32> {
        let top_k = settings.top_k as usize;
        let floor = if settings.top_n_sigma > 0.0 {
            sigma_floor(logits, settings.top_n_sigma)
        } else {
            f32::NEG_INFINITY
        };
        let typical = settings.typical_p < 1.0;
        if top_k > 0 && top_k < logits.len() {
            self.select_top_k(logits, top_k);
            self.cut_below(floor);
            self.cut_sorted(settings);
        } else if typical {
            self.select_above(logits, floor);
            self.cut_sorted(settings);
        } else {
            let max = maximum(logits);
            // Min-p only drops what top-p would rank last, so it may come
            // first, as long as top-p measures against the whole vocabulary.
            self.select_above(logits, min_p_threshold(max, settings.min_p).max(floor));
            if settings.top_p < 1.0 {
                let counts = logits.iter().filter(|logit| **logit >= floor);
                let sum = counts.map(|logit| weight(*logit, max, 1.0)).sum();
                self.sort_nucleus(settings.top_p, max, sum);
                self.cut_top_p(settings.top_p, sum);
            }
        }
        if let Some(xtc) = settings.xtc {
            self.exclude_top_choices(xtc, random);
        }
        // A row without numbers has no candidates.
        self.draw_one(settings.temperature, random).or_else(|| argmax(logits))
    }

    /// Applies the steps between top-k and XTC to the list, and sorts it.
    fn cut_sorted(&mut self, settings: &Sampling) {
        if settings.typical_p < 1.0 {
            self.keep_typical(settings.typical_p);
        }
        let max = self.list.first().map_or(f32::NEG_INFINITY, |best| best.logit);
        self.cut_top_p(settings.top_p, self.weight_sum(max));
        self.cut_below(min_p_threshold(max, settings.min_p));
    }

    /// The `k` most likely tokens with their logits, best first.
    pub(super) fn best(&mut self, logits: &[f32], k: usize) -> impl Iterator<Item = (u32, f32)> {
        self.list.clear();
        if k > 0 {
            self.select_top_k(logits, k);
        }
        self.list.iter().map(|candidate| (candidate.token, candidate.logit))
    }

    /// Keeps the `k` most likely tokens, sorted.
    fn select_top_k(&mut self, logits: &[f32], k: usize) {
        self.list.clear();
        // The list grows to twice k and is then cut back to k, so that the
        // cost of cutting is shared by k tokens. What is not above the
        // smallest of the best k so far is passed over, a block at a time.
        let mut threshold = f32::NEG_INFINITY;
        for (first, block) in (0..).step_by(BLOCK).zip(logits.chunks(BLOCK)) {
            if any_in(block, |logit| logit > threshold) || self.list.len() < k {
                for (token, logit) in (first..).zip(block) {
                    if *logit > threshold || self.list.len() < k {
                        self.list.push(Candidate { logit: *logit, token });
                    }
                }
                if self.list.len() >= 2 * k + BLOCK {
                    threshold = self.keep_best(k);
                }
            }
        }
        self.keep_best(k);
        self.list.sort_unstable_by(by_likelihood);
    }

    /// Cuts the list to its `k` most likely tokens and returns the smallest logit kept.
    fn keep_best(&mut self, k: usize) -> f32 {
        if self.list.len() > k && k > 0 {
            let (_, smallest, _) = self.list.select_nth_unstable_by(k - 1, by_likelihood);
            let smallest = smallest.logit;
            self.list.truncate(k);
            return smallest;
        }
        f32::NEG_INFINITY
    }

    /// Keeps all tokens from this logit upward, unsorted.
    fn select_above(&mut self, logits: &[f32], threshold: f32) {
        self.list.clear();
        let all = (0..).zip(logits).map(|(token, logit)| Candidate { logit: *logit, token });
        self.list.extend(all.filter(|candidate| candidate.logit >= threshold));
    }

    /// Keeps the tokens whose surprise is nearest to the expected one until
    /// their share reaches `typical_p`, and sorts them by likelihood.
    fn keep_typical(&mut self, typical_p: f32) {
        let logits = self.list.iter().map(|candidate| candidate.logit);
        let max = logits.fold(f32::NEG_INFINITY, f32::max);
        let sum = self.weight_sum(max);
        let surprise = |logit: f32| sum.ln() - f64::from(logit - max);
        let share = |logit: f32| weight(logit, max, 1.0) / sum;
        let expected: f64 = self
            .list
            .iter()
            .filter(|candidate| candidate.logit > f32::NEG_INFINITY)
            .map(|candidate| share(candidate.logit) * surprise(candidate.logit))
            .sum();
        let distance = |candidate: &Candidate| (surprise(candidate.logit) - expected).abs();
        self.list.sort_unstable_by(|a, b| {
            distance(a).total_cmp(&distance(b)).then(a.token.cmp(&b.token))
        });
        let mut mass = 0.0;
        let reached = self.list.iter().position(|candidate| {
            mass += share(candidate.logit);
            mass > f64::from(typical_p)
        });
        if let Some(last) = reached {
            self.list.truncate(last + 1);
        }
        self.list.sort_unstable_by(by_likelihood);
    }

    /// With the chance given, drops all tokens above the threshold but the
    /// least likely of them.
    fn exclude_top_choices(&mut self, xtc: Xtc, random: &mut Random) {
        if self.list.len() < 2 || random.unit() > f64::from(xtc.probability) {
            return;
        }
        self.list.sort_unstable_by(by_likelihood);
        let max = self.list.first().map_or(f32::NEG_INFINITY, |best| best.logit);
        let least = f64::from(xtc.threshold) * self.weight_sum(max);
        let above = self.list.iter().take_while(|c| weight(c.logit, max, 1.0) >= least).count();
        self.list.drain(..above.saturating_sub(1));
    }

    /// Sorts as many of the most likely tokens to the front as top-p needs.
    fn sort_nucleus(&mut self, top_p: f32, max: f32, sum: f64) {
        let mut sorted = 0;
        let mut mass = 0.0;
        let mut wanted = NUCLEUS_FIRST;
        while sorted < self.list.len() && (sorted == 0 || mass < f64::from(top_p) * sum) {
            let end = wanted.min(self.list.len());
            let Some(rest) = self.list.get_mut(sorted..) else { return };
            if end - sorted < rest.len() {
                rest.select_nth_unstable_by(end - sorted, by_likelihood);
            }
            let Some(part) = self.list.get_mut(sorted..end) else { return };
            part.sort_unstable_by(by_likelihood);
            mass += part.iter().map(|candidate| weight(candidate.logit, max, 1.0)).sum::<f64>();
            sorted = end;
            wanted = wanted.saturating_mul(4);
        }
        self.list.truncate(sorted);
    }

    /// Sums the weights of all candidates.
    fn weight_sum(&self, max: f32) -> f64 {
        self.list.iter().map(|candidate| weight(candidate.logit, max, 1.0)).sum()
    }

    /// Keeps the most likely tokens until their share of `sum` reaches `top_p`, at least one.
    fn cut_top_p(&mut self, top_p: f32, sum: f64) {
        if top_p >= 1.0 {
            return;
        }
        let Some(max) = self.list.first().map(|best| best.logit) else { return };
        let mut mass = 0.0;
        let reached = self.list.iter().position(|candidate| {
            mass += weight(candidate.logit, max, 1.0);
            mass >= f64::from(top_p) * sum
        });
        if let Some(last) = reached {
            self.list.truncate(last + 1);
        }
    }

    /// Keeps the tokens from this logit upward, at least one, of a sorted list.
    fn cut_below(&mut self, threshold: f32) {
        let kept = self.list.partition_point(|candidate| candidate.logit >= threshold);
        self.list.truncate(kept.max(1));
    }

    /// Draws one candidate by its likelihood at the temperature.
    fn draw_one(&mut self, temperature: f32, random: &mut Random) -> Option<u32> {
        if temperature <= 0.0 {
            return self.list.iter().min_by(|a, b| by_likelihood(a, b)).map(|best| best.token);
        }
        let max =
            self.list.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max);
        self.weights.clear();
        let temperature = f64::from(temperature);
        let weights = self.list.iter().map(|candidate| weight(candidate.logit, max, temperature));
        self.weights.extend(weights);
        let sum: f64 = self.weights.iter().sum();
        let mut rest = random.unit() * sum;
        let drawn = self.weights.iter().position(|weight| {
            rest -= weight;
            rest < 0.0
        });
        // Rounding can leave a rest after the last; a row without a number has no weights at all.
        let drawn = drawn.or_else(|| self.weights.iter().rposition(|weight| *weight > 0.0));
        self.list.get(drawn.unwrap_or(0)).map(|candidate| candidate.token)
    }
}

/// The likelihood of a logit in relation to that of `max`.
fn weight(logit: f32, max: f32, temperature: f64) -> f64 {
    (f64::from(logit - max) / temperature).exp()
}

/// The logit that is `n` standard deviations below the best; tokens that can
/// never come do not count.
fn sigma_floor(logits: &[f32], n: f32) -> f32 {
    let (mut count, mut sum, mut squares) = (0.0_f64, 0.0, 0.0);
    for logit in logits.iter().filter(|logit| logit.is_finite()) {
        let logit = f64::from(*logit);
        count += 1.0;
        sum += logit;
        squares += logit * logit;
    }
    let mean = sum / count;
    let deviation = (squares / count - mean * mean).max(0.0).sqrt();
    #[expect(clippy::cast_possible_truncation, reason = "logits are floats")]
    let below = (f64::from(n) * deviation) as f32;
    maximum(logits) - below
}

fn min_p_threshold(max: f32, min_p: f32) -> f32 {
    if min_p > 0.0 { max + min_p.ln() } else { f32::NEG_INFINITY }
}

/// The more likely token first; of equals, the one with the smaller id.
fn by_likelihood(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}
