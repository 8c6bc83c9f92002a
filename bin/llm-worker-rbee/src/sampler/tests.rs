//! Holds the sampler to distributions worked out by hand and to a slow
//! reference that sorts everything.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rbee_api::openai::Xtc;

use super::*;

/// Settings that change nothing: every token can be drawn.
fn open() -> Sampling {
    Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() }
}

/// How often each token comes in `draws` draws from one row.
fn histogram(settings: Sampling, logits: &[f32], draws: u32) -> BTreeMap<u32, f64> {
    let mut sampler = Sampler::new(settings, 42);
    let mut counts = BTreeMap::new();
    for _ in 0..draws {
        *counts.entry(sampler.choose(logits).unwrap()).or_insert(0_u32) += 1;
    }
    counts.into_iter().map(|(token, n)| (token, f64::from(n) / f64::from(draws))).collect()
}

/// The tokens that may be drawn with their likelihoods, the slow way. XTC is
/// left out: it has a test of its own.
fn reference(settings: &Sampling, logits: &[f32]) -> BTreeMap<u32, f64> {
    let mut list: Vec<(f64, u32)> = (0..).zip(logits).map(|(t, l)| (f64::from(*l), t)).collect();
    list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let max = list[0].0;
    if settings.top_n_sigma > 0.0 {
        #[expect(clippy::cast_precision_loss, reason = "a test's rows are short")]
        let count = list.len() as f64;
        let mean = list.iter().map(|(logit, _)| logit).sum::<f64>() / count;
        let variance = list.iter().map(|(logit, _)| (logit - mean).powi(2)).sum::<f64>() / count;
        let floor = max - f64::from(settings.top_n_sigma) * variance.sqrt();
        list.retain(|(logit, _)| *logit >= floor);
    }
    if settings.top_k > 0 {
        list.truncate(settings.top_k as usize);
    }
    if settings.typical_p < 1.0 {
        let sum: f64 = list.iter().map(|(logit, _)| (logit - max).exp()).sum();
        let share = |logit: f64| (logit - max).exp() / sum;
        let entropy: f64 = list.iter().map(|(l, _)| -share(*l) * share(*l).ln()).sum();
        let odd = |logit: f64| (-share(logit).ln() - entropy).abs();
        list.sort_by(|a, b| odd(a.0).total_cmp(&odd(b.0)).then(a.1.cmp(&b.1)));
        let mut mass = 0.0;
        let enough = list.iter().position(|(logit, _)| {
            mass += share(*logit);
            mass > f64::from(settings.typical_p)
        });
        list.truncate(enough.map_or(list.len(), |last| last + 1));
        list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }
    let max = list[0].0;
    let sum: f64 = list.iter().map(|(logit, _)| (logit - max).exp()).sum();
    let mut mass = 0.0;
    let mut nucleus = Vec::new();
    for (logit, token) in list {
        nucleus.push((logit, token));
        mass += (logit - max).exp();
        if mass >= f64::from(settings.top_p) * sum && settings.top_p < 1.0 {
            break;
        }
    }
    nucleus.retain(|(logit, _)| (logit - max).exp() >= f64::from(settings.min_p) * (1.0 - 1e-6));
    let hot = |logit: f64| ((logit - max) / f64::from(settings.temperature)).exp();
    let sum: f64 = nucleus.iter().map(|(logit, _)| hot(*logit)).sum();
    nucleus.into_iter().map(|(logit, token)| (token, hot(logit) / sum)).collect()
}

fn assert_drawn_as(expected: &BTreeMap<u32, f64>, settings: Sampling, logits: &[f32]) {
    let drawn = histogram(settings, logits, 20_000);
    for (token, share) in &drawn {
        assert!(expected.contains_key(token), "token {token} came in {share} of the draws");
    }
    for (token, share) in expected {
        let got = drawn.get(token).copied().unwrap_or(0.0);
        assert!((got - share).abs() < 0.02, "token {token}: {got} instead of {share}");
    }
}

#[test]
fn temperature_zero_and_top_k_one_take_the_most_likely_token() {
    let rows: [&[f32]; 4] = [&[1.0, 3.0, 2.0], &[-5.0, -1.0], &[0.0, 7.0, 7.0], &[f32::MIN, 0.0]];
    for row in rows {
        for settings in [
            Sampling { temperature: 0.0, ..Sampling::default() },
            Sampling { top_k: 1, ..Sampling::default() },
        ] {
            assert_eq!(Sampler::new(settings, 1).choose(row), Some(1), "{row:?}");
        }
    }
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    assert_eq!(Sampler::new(greedy, 1).choose(&[]), None);
}

#[test]
fn each_step_keeps_what_it_says() {
    // Likelihoods 0.5, 0.25, 0.125, 0.0625, 0.0625.
    let logits: Vec<f32> = [0.5_f32, 0.25, 0.125, 0.0625, 0.0625].iter().map(|p| p.ln()).collect();
    let xtc = |probability, threshold| Some(Xtc { probability, threshold });
    let cases: [(Sampling, &[(u32, f64)]); 15] = [
        (open(), &[(0, 0.5), (1, 0.25), (2, 0.125), (3, 0.0625), (4, 0.0625)]),
        (Sampling { top_k: 2, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        (Sampling { top_p: 0.7, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        (Sampling { top_p: 0.0, ..open() }, &[(0, 1.0)]),
        (Sampling { min_p: 0.4, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        (Sampling { top_k: 2, temperature: 2.0, ..open() }, &[(0, 0.585_8), (1, 0.414_2)]),
        // Top-p measures against what top-k left: 0.5 of 0.75 is below 0.68.
        (Sampling { top_k: 2, top_p: 0.68, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        // The logits' deviation is 0.81; the third is 1.39 below the best.
        (Sampling { top_n_sigma: 1.5, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        (Sampling { top_n_sigma: 1.5, top_k: 4, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        // The expected surprise is 1.3; 0.25 is 1.39 surprising, 0.5 is 0.69, 0.125 is 2.08.
        (Sampling { typical_p: 0.2, ..open() }, &[(1, 1.0)]),
        (Sampling { typical_p: 0.7, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        // Top choices are 0 and 1; the less likely of them stays.
        (Sampling { xtc: xtc(1.0, 0.2), top_k: 3, ..open() }, &[(1, 2.0 / 3.0), (2, 1.0 / 3.0)]),
        (Sampling { xtc: xtc(1.0, 0.3), top_k: 2, ..open() }, &[(1, 1.0)]),
        // Half of the time 0.5 and 0.5 of 2/3 and 1/3, else as it was.
        (Sampling { xtc: xtc(0.5, 0.3), top_k: 2, ..open() }, &[(0, 1.0 / 3.0), (1, 2.0 / 3.0)]),
        (Sampling { xtc: xtc(1.0, 0.2), temperature: 0.0, ..open() }, &[(1, 1.0)]),
    ];
    for (settings, expected) in cases {
        assert_drawn_as(&expected.iter().copied().collect(), settings, &logits);
    }
}

#[test]
fn a_seed_makes_the_draws_repeatable() {
    let logits: Vec<f32> = (0..500_u16).map(|n| f32::from(n % 7)).collect();
    let draws = |settings: Sampling, seed| -> Vec<u32> {
        let mut sampler = Sampler::new(settings, seed);
        (0..32).map(|_| sampler.choose(&logits).unwrap()).collect()
    };
    let seeded = |seed| Sampling { seed: Some(seed), ..open() };
    assert_eq!(draws(seeded(5), 1), draws(seeded(5), 2));
    assert_ne!(draws(seeded(5), 1), draws(seeded(6), 1));
    assert_ne!(draws(open(), 1), draws(open(), 2));
}

#[test]
fn penalties_count_what_the_window_holds_and_nothing_else() {
    let greedy = Sampling { temperature: 0.0, repeat_last_n: 2, ..Sampling::default() };
    let cases: [(Sampling, &[u32], &[f32], u32); 8] = [
        // Half of 3 is less than 2; a token outside of the window is left alone.
        (Sampling { repeat_penalty: 2.0, ..greedy.clone() }, &[0], &[3.0, 2.0, -9.0], 1),
        (Sampling { repeat_penalty: 2.0, ..greedy.clone() }, &[0, 2, 2], &[3.0, 2.0, -9.0], 0),
        // Twice -1 is less than -1.5.
        (Sampling { repeat_penalty: 2.0, ..greedy.clone() }, &[0], &[-1.0, -1.5], 1),
        (Sampling { presence_penalty: 1.5, ..greedy.clone() }, &[0, 0], &[3.0, 2.0], 1),
        (Sampling { presence_penalty: 0.9, ..greedy.clone() }, &[0, 0], &[3.0, 2.0], 0),
        (Sampling { frequency_penalty: 0.9, ..greedy.clone() }, &[0], &[3.0, 2.0], 0),
        (Sampling { frequency_penalty: 0.9, ..greedy.clone() }, &[0, 0], &[3.0, 2.0], 1),
        (Sampling { repeat_last_n: 0, repeat_penalty: 9.0, ..greedy }, &[0], &[3.0, 2.0], 0),
    ];
    for (settings, window, logits, expected) in cases {
        let mut sampler = Sampler::new(settings.clone(), 1);
        sampler.accept(window);
        assert_eq!(sampler.choose(logits), Some(expected), "{settings:?} {window:?}");
    }
}

#[test]
fn a_chosen_token_enters_the_window() {
    let settings = Sampling { temperature: 0.0, presence_penalty: 2.0, ..Sampling::default() };
    let mut sampler = Sampler::new(settings, 1);
    let chosen: Vec<_> = (0..3).map(|_| sampler.choose(&[3.0, 2.5, 2.0]).unwrap()).collect();
    assert_eq!(chosen, [0, 1, 2]);
}

#[test]
fn a_row_without_a_number_still_gives_a_token() {
    for settings in [open(), Sampling::default()] {
        let row = [f32::NAN; 70];
        assert!(Sampler::new(settings, 1).choose(&row).is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn draws_follow_the_reference_distribution(
        logits in proptest::collection::vec(-4.0_f32..4.0, 1..700),
        peaks in proptest::collection::vec((any::<prop::sample::Index>(), 6.0_f32..9.0), 0..5),
        top_k in prop_oneof![Just(0_u32), 1..60_u32, Just(1000)],
        top_p in prop_oneof![Just(1.0_f32), 0.05..0.99_f32],
        min_p in prop_oneof![Just(0.0_f32), 0.01..0.5_f32],
        typical_p in prop_oneof![3 => Just(1.0_f32), 1 => 0.05..0.99_f32],
        top_n_sigma in prop_oneof![2 => Just(-1.0_f32), 1 => 0.5..4.0_f32],
        temperature in 0.3..2.0_f32,
    ) {
        let mut logits = logits;
        for (index, height) in peaks {
            let index = index.index(logits.len());
            logits[index] = height;
        }
        let settings =
            Sampling { temperature, top_k, top_p, min_p, typical_p, top_n_sigma, ..open() };
        let mut expected = reference(&settings, &logits);
        // A token at the very edge of a cut may fall on either side of it.
        let drawn = histogram(settings, &logits, 4_000);
        for (token, share) in drawn {
            let wanted = expected.remove(&token).unwrap_or(0.0);
            prop_assert!((share - wanted).abs() < 0.05, "token {}: {} for {}", token, share, wanted);
        }
        prop_assert!(expected.values().all(|missed| *missed < 0.02), "never drawn: {:?}", expected);
    }
}

/// Allows some tokens; counts how often it had to mask.
#[derive(Debug, Clone)]
struct Only {
    tokens: Vec<u32>,
    fails_at: Option<u32>,
}

impl Constraint for Only {
    fn allows(&mut self, token: u32) -> Result<bool, ConstraintError> {
        if self.fails_at == Some(token) {
            return Err(ConstraintError::TooComplex { param: "grammar" });
        }
        Ok(self.tokens.contains(&token))
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        for (token, logit) in (0..).zip(logits) {
            if !self.tokens.contains(&token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        assert!(self.tokens.contains(&token), "{token} was accepted");
        Ok(())
    }

    fn try_clone(&self) -> Result<Box<dyn Constraint>, ConstraintError> {
        Ok(Box::new(self.clone()))
    }
}

fn only(settings: Sampling, tokens: &[u32], fails_at: Option<u32>) -> Sampler {
    let mut sampler = Sampler::new(settings, 42);
    sampler.constrain(Box::new(Only { tokens: tokens.to_vec(), fails_at }));
    sampler
}

#[test]
fn a_lazy_constraint_draws_as_if_only_allowed_tokens_were_there() {
    let logits: Vec<f32> = [0.4_f32, 0.3, 0.2, 0.05, 0.05].iter().map(|p| p.ln()).collect();
    let mut sampler = only(open(), &[1, 2, 4], None);
    let draws = 20_000;
    let mut counts = BTreeMap::new();
    for _ in 0..draws {
        *counts.entry(sampler.choose(&logits).unwrap()).or_insert(0) += 1;
    }
    for (token, share) in [(1, 0.3 / 0.55), (2, 0.2 / 0.55), (4, 0.05 / 0.55)] {
        let got = f64::from(counts.remove(&token).unwrap()) / f64::from(draws);
        assert!((got - share).abs() < 0.02, "token {token}: {got} instead of {share}");
    }
    assert!(counts.is_empty(), "{counts:?}");
    // The likeliest of the allowed ones, not the likeliest.
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    assert_eq!(only(greedy, &[2, 4], None).choose(&logits), Some(2));
}

#[test]
fn a_constraint_that_fails_or_leaves_nothing_ends_the_choosing() {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let mut sampler = only(greedy.clone(), &[1], Some(0));
    assert_eq!(sampler.choose(&[1.0, 0.0]), None);
    assert_eq!(sampler.failure(), Some(&ConstraintError::TooComplex { param: "grammar" }));
    assert_eq!(sampler.choose(&[0.0, 1.0]), None, "it is over");

    for settings in [greedy, open()] {
        let mut sampler = only(settings, &[1], None);
        assert_eq!(sampler.choose(&[1.0, f32::NEG_INFINITY, 0.5]), None);
        assert_eq!(sampler.failure(), Some(&ConstraintError::NoCandidate));
    }
}

#[test]
fn a_bias_is_added_before_everything_else() {
    let bias = |logit_bias: &[(u32, f32)]| Sampling {
        temperature: 0.0,
        logit_bias: logit_bias.to_vec(),
        ..Sampling::default()
    };
    let row = [3.0, 2.0, 1.0];
    for (settings, expected) in [
        (bias(&[(0, -100.0)]), 1),
        (bias(&[(2, 2.5)]), 2),
        (bias(&[(9, 100.0)]), 0),
        // 3 and a bias of 1 are divided by 2 together.
        (Sampling { repeat_penalty: 2.0, ..bias(&[(0, 0.9)]) }, 1),
        (Sampling { repeat_penalty: 2.0, ..bias(&[(0, 1.1)]) }, 0),
    ] {
        let mut sampler = Sampler::new(settings.clone(), 1);
        sampler.accept(&[0]);
        assert_eq!(sampler.choose(&row), Some(expected), "{settings:?}");
    }
}

#[test]
fn logprobs_are_those_of_the_row_as_it_came() {
    let logits: Vec<f32> = [0.5_f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln() + 7.0).collect();
    let settings = Sampling {
        temperature: 0.1,
        top_k: 1,
        logit_bias: vec![(0, -100.0)],
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(settings, 1);
    assert_eq!(sampler.choose(&logits), Some(1));
    assert_eq!(sampler.take_logprobs(), None, "nothing was asked for");
    sampler.tell_logprobs(3);
    let chosen = [sampler.choose(&logits), sampler.choose(&[0.0])];
    assert_eq!(chosen, [Some(1), Some(0)]);
    let told = sampler.take_logprobs().unwrap();
    let close = |a: f32, b: f32| (a - b.ln()).abs() < 1e-5;
    assert!(told.token == 1 && close(told.logprob, 0.25), "{told:?}");
    assert_eq!(told.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(told.top.iter().zip([0.5, 0.25, 0.125]).all(|(top, p)| close(top.1, p)), "{told:?}");
    let next = sampler.take_logprobs().unwrap();
    assert_eq!((next.token, next.logprob, next.top), (0, 0.0, vec![(0, 0.0)]));
    assert_eq!(sampler.take_logprobs(), None);
}
