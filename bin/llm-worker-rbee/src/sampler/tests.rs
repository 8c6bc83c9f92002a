//! Holds the sampler to distributions worked out by hand and to a slow
//! reference that sorts everything.

use std::collections::BTreeMap;

use proptest::prelude::*;

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

/// The tokens that may be drawn with their likelihoods, the slow way.
fn reference(settings: &Sampling, logits: &[f32]) -> BTreeMap<u32, f64> {
    let mut list: Vec<(f64, u32)> = (0..).zip(logits).map(|(t, l)| (f64::from(*l), t)).collect();
    list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    if settings.top_k > 0 {
        list.truncate(settings.top_k as usize);
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
    let cases: [(Sampling, &[(u32, f64)]); 7] = [
        (open(), &[(0, 0.5), (1, 0.25), (2, 0.125), (3, 0.0625), (4, 0.0625)]),
        (Sampling { top_k: 2, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        (Sampling { top_p: 0.7, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        (Sampling { top_p: 0.0, ..open() }, &[(0, 1.0)]),
        (Sampling { min_p: 0.4, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
        (Sampling { top_k: 2, temperature: 2.0, ..open() }, &[(0, 0.585_8), (1, 0.414_2)]),
        // Top-p measures against what top-k left: 0.5 of 0.75 is below 0.68.
        (Sampling { top_k: 2, top_p: 0.68, ..open() }, &[(0, 2.0 / 3.0), (1, 1.0 / 3.0)]),
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
        temperature in 0.3..2.0_f32,
    ) {
        let mut logits = logits;
        for (index, height) in peaks {
            let index = index.index(logits.len());
            logits[index] = height;
        }
        let settings = Sampling { temperature, top_k, top_p, min_p, ..open() };
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
