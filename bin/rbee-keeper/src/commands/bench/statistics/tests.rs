//! The figures of scripted samples, worked out by hand.

use super::super::exchange::Failure;
use super::*;

fn at(times_ms: &[u64]) -> Vec<Duration> {
    times_ms.iter().copied().map(Duration::from_millis).collect()
}

fn sample(due_ms: u64, tokens_ms: &[u64], ended_ms: u64, completion_tokens: u64) -> Sample {
    Sample {
        phase: Phase::Load,
        due: Duration::from_millis(due_ms),
        sent: Duration::from_millis(due_ms),
        ended: Duration::from_millis(ended_ms),
        gaps_from: Duration::ZERO,
        outcome: Ok(Reply {
            tokens_at: at(tokens_ms),
            completion_tokens,
            counted_by: CountedBy::Usage,
            prompt_tokens: Some(10),
            cached_tokens: Some(4),
            text: String::new(),
        }),
    }
}

fn failed(class: FailureClass, ended_ms: u64) -> Sample {
    let failure = Failure { class, message: "no".to_owned() };
    Sample { outcome: Err(failure), ..sample(0, &[], ended_ms, 0) }
}

fn summary(samples: &[Sample]) -> Summary {
    Summary::of(Phase::Load, &[samples], Objective::default())
}

#[test]
fn quantiles_interpolate_between_the_sorted_values() {
    let values: Vec<f64> = (1..=5).map(f64::from).collect();
    for (q, expected) in [(0.0, 1.0), (0.5, 3.0), (0.9, 4.6), (0.99, 4.96), (1.0, 5.0)] {
        assert!((quantile(&values, q).unwrap() - expected).abs() < 1e-9, "{q}");
    }
    assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
    assert_eq!(quantile(&[], 0.5), None);
}

#[test]
fn latencies_count_from_the_due_time_and_tokens_by_the_server() {
    // Four tokens in three pieces: one piece had two.
    let mut late = sample(100, &[150, 170, 210], 220, 4);
    late.sent = Duration::from_millis(130);
    let summary = summary(&[late]);
    let spread = |value: Option<Spread>| value.unwrap();
    assert!((spread(summary.ttft_ms).p50 - 50.0).abs() < 1e-9, "due at 100, not sent at 130");
    assert!((spread(summary.tpot_ms).p50 - 20.0).abs() < 1e-9, "60 ms for three tokens");
    let itl = spread(summary.itl_ms);
    assert_eq!((itl.count, itl.max, itl.mean), (2, 40.0, 30.0));
    assert!((spread(summary.e2e_ms).max - 120.0).abs() < 1e-9);
    assert!((summary.wall_seconds - 0.12).abs() < 1e-9);
    assert!((summary.output_tokens_per_second - 33.333).abs() < 1e-9);
    assert_eq!((summary.prompt_tokens, summary.cached_tokens), (Some(10), Some(4)));
}

#[test]
fn walls_of_rounds_add_up_and_other_phases_stay_out() {
    let mut other = sample(0, &[1, 2], 9_000, 50);
    other.phase = Phase::Cold;
    let first = [sample(0, &[50, 60], 100, 2), sample(20, &[60, 70], 200, 2), other];
    let second = [sample(500, &[550, 560], 800, 6)];
    let both = Summary::of(Phase::Load, &[&first, &second], Objective::default());
    assert_eq!((both.requests, both.output_tokens), (3, 10));
    assert!((both.wall_seconds - 0.5).abs() < 1e-9);
    assert!((both.output_tokens_per_second - 20.0).abs() < 1e-9);
    assert!((both.requests_per_second - 6.0).abs() < 1e-9);
}

#[test]
fn failures_are_counted_by_class_and_stay_out_of_the_latencies() {
    let samples = [
        sample(0, &[10, 20], 30, 2),
        failed(FailureClass::Status(503), 1),
        failed(FailureClass::Timeout, 4_000),
        failed(FailureClass::Status(503), 1),
    ];
    let summary = summary(&samples);
    assert_eq!((summary.requests, summary.failed), (4, 3));
    let counts: Vec<(&str, usize)> =
        summary.failures.iter().map(|f| (f.class.as_str(), f.count)).collect();
    assert_eq!(counts, [("timeout", 1), ("status_503", 2)]);
    assert_eq!(summary.ttft_ms.unwrap().count, 1);
    assert!((summary.wall_seconds - 4.0).abs() < 1e-9, "the time spent on failures is spent");
}

#[test]
fn goodput_takes_both_bounds_and_counts_failures_as_bad() {
    let samples = [
        sample(0, &[10, 20], 1000, 2),
        sample(0, &[90, 100], 1000, 2),
        sample(0, &[10, 60], 1000, 2),
        failed(FailureClass::BrokenOff, 1000),
    ];
    let good = |ttft_ms, tpot_ms| {
        let objective = Objective { ttft_ms, tpot_ms };
        Summary::of(Phase::Load, &[&samples], objective).goodput.map(|goodput| goodput.requests)
    };
    assert_eq!(good(None, None), None);
    assert_eq!(good(Some(50.0), None), Some(2));
    assert_eq!(good(None, Some(20.0)), Some(2));
    assert_eq!(good(Some(50.0), Some(20.0)), Some(1));
    let objective = Objective { ttft_ms: Some(50.0), tpot_ms: Some(20.0) };
    let goodput = Summary::of(Phase::Load, &[&samples], objective).goodput.unwrap();
    assert!((goodput.share - 0.25).abs() < 1e-9);
    assert!((goodput.requests_per_second - 1.0).abs() < 1e-9);
}

#[test]
fn only_gaps_that_end_after_the_arrival_count_where_one_is_awaited() {
    let mut running = sample(0, &[10, 500, 510, 900], 900, 4);
    running.gaps_from = Duration::from_millis(505);
    let itl = summary(&[running]).itl_ms.unwrap();
    assert_eq!((itl.count, itl.max), (2, 390.0));
}

#[test]
fn what_cannot_be_known_is_absent() {
    let mut whole = sample(0, &[10], 20, 9);
    if let Ok(reply) = &mut whole.outcome {
        (reply.prompt_tokens, reply.cached_tokens) = (None, None);
        reply.counted_by = CountedBy::Deltas;
    }
    let summary = summary(&[whole]);
    assert_eq!((summary.tpot_ms, summary.itl_ms), (None, None));
    assert_eq!((summary.prompt_tokens, summary.cached_tokens), (None, None));
    assert_eq!(summary.counted_by_deltas, 1);
}
