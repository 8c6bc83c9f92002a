//! The schedule of restarts, in virtual time: tables, and properties of every course of events.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const NONE: Jitter = Jitter::new(0.0);

pub(super) fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(super) fn rules() -> RestartRules {
    RestartRules {
        delay: seconds(1),
        delay_max: seconds(60),
        failures_max: 3,
        window: seconds(600),
        healthy: seconds(300),
        probe_delays: [60, 120, 300].map(seconds).to_vec(),
    }
}

/// Lets workers fail at once after each start, and returns the pauses between, in whole seconds.
fn pauses(rules: &RestartRules, cure: Cure, count: usize) -> Vec<u64> {
    let mut record = RestartRecord::default();
    let mut now = Instant::now();
    let pause = |_| {
        record.failed(rules, now, cure, NONE);
        let next = record.next_try().unwrap();
        let pause = (next - now).as_secs();
        now = next;
        record.starts();
        pause
    };
    (0..count).map(pause).collect()
}

#[test]
fn a_loop_of_crashes_is_started_three_times_and_then_at_long_intervals() {
    assert_eq!(pauses(&rules(), Cure::Retry, 7), [1, 2, 60, 120, 300, 300, 300]);
}

#[test]
fn what_a_retry_cannot_cure_opens_the_breaker_at_once() {
    assert_eq!(pauses(&rules(), Cure::Hand, 4), [60, 120, 300, 300]);
    for cause in ExitCause::ALL {
        let text = cause.as_str();
        let by_hand = [
            "bad_usage",
            "bad_config",
            "bad_model",
            "model_unreadable",
            "program_missing",
            "port_taken",
        ];
        assert_eq!(Cure::of(*cause) == Cure::Hand, by_hand.contains(&text), "{text}");
    }
}

#[test]
fn pauses_double_up_to_a_minute_while_the_breaker_is_closed() {
    let patient = RestartRules { failures_max: 1000, ..rules() };
    assert_eq!(pauses(&patient, Cure::Retry, 9), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    assert_eq!(*pauses(&patient, Cure::Retry, 100).last().unwrap(), 60, "nothing overflows");
}

#[test]
fn failures_that_lie_far_apart_never_open_the_breaker() {
    let rules = RestartRules { healthy: seconds(100_000), ..rules() };
    let mut record = RestartRecord::default();
    let mut now = Instant::now();
    for _ in 0..50 {
        record.failed(&rules, now, Cure::Retry, NONE);
        assert_eq!(record.breaker(), Breaker::Closed);
        record.starts();
        now += seconds(301);
    }
    now += seconds(1);
    record.failed(&rules, now, Cure::Retry, NONE);
    record.failed(&rules, now, Cure::Retry, NONE);
    assert_eq!(record.breaker(), Breaker::Open);
}

#[test]
fn a_day_of_crashes_makes_no_start_that_is_not_on_the_schedule() {
    let rules = rules();
    let mut record = RestartRecord::default();
    let begin = Instant::now();
    let (mut now, mut starts) = (begin, 1);
    while now < begin + seconds(24 * 3600) {
        record.failed(&rules, now, Cure::Retry, NONE);
        assert_ne!(record.gate(now + Duration::from_millis(999)), Gate::Open);
        now = record.next_try().unwrap();
        assert_eq!(record.gate(now), Gate::Open);
        record.starts();
        starts += 1;
    }
    // 1, 2, 60 and 120 s, and then one start each 300 s.
    assert_eq!(starts, 5 + (24 * 3600 - 183_u64).div_ceil(300));
}

#[test]
fn five_healthy_minutes_and_a_reset_wipe_the_past_out() {
    let rules = rules();
    let mut record = RestartRecord::default();
    let now = Instant::now();
    for _ in 0..4 {
        record.failed(&rules, now, Cure::Retry, NONE);
    }
    assert_eq!((record.breaker(), record.failures()), (Breaker::Open, 4));
    record.starts();
    record.is_ready(now);
    assert_eq!(record.breaker(), Breaker::HalfOpen);
    assert!(!record.has_recovered(&rules, now + seconds(299)));
    assert!(record.has_recovered(&rules, now + seconds(300)));
    let mut unhealthy = record.clone();
    unhealthy.failed(&rules, now + seconds(299), Cure::Retry, NONE);
    assert_eq!((unhealthy.breaker(), unhealthy.failures()), (Breaker::Open, 5));
    record.failed(&rules, now + seconds(300), Cure::Retry, NONE);
    assert_eq!((record.breaker(), record.failures()), (Breaker::Closed, 1));
    unhealthy.reset();
    assert_eq!(unhealthy.gate(now), Gate::Open);
    assert_eq!((unhealthy.breaker(), unhealthy.failures()), (Breaker::Closed, 0));
}

#[test]
fn a_start_without_room_is_put_off_and_counts_as_no_failure() {
    let rules = rules();
    let mut record = RestartRecord::default();
    let mut now = Instant::now();
    record.failed(&rules, now, Cure::Retry, NONE);
    for _ in 0..10 {
        now = record.next_try().unwrap();
        record.starts();
        record.had_no_room(&rules, now, NONE);
        assert_eq!(record.gate(now), Gate::After(now + seconds(1)));
    }
    assert_eq!(record.failures(), 1);
}

/// What may happen to a worker: it runs for a while, ready or not, and then fails, or is stopped.
#[derive(Debug, Clone)]
struct Run {
    lasts: Duration,
    becomes_ready: bool,
    end: Option<Cure>,
    jitter: f64,
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let lasts = prop_oneof![0_u64..5, 0_u64..400, 0_u64..2000].prop_map(seconds);
    let end =
        prop_oneof![8 => Just(Some(Cure::Retry)), 1 => Just(Some(Cure::Hand)), 1 => Just(None)];
    let run = (lasts, any::<bool>(), end, -1.0..2.0_f64)
        .prop_map(|(lasts, becomes_ready, end, jitter)| Run { lasts, becomes_ready, end, jitter });
    vec(run, 1..60)
}

proptest! {
    #[test]
    fn every_pause_is_on_the_schedule_and_the_breaker_opens_when_it_must(runs in runs()) {
        let rules = rules();
        let mut record = RestartRecord::default();
        let mut now = Instant::now();
        // What a reader of the rules would keep on paper.
        let (mut in_a_row, mut times_opened, mut failures) = (0_usize, 0_usize, Vec::<Instant>::new());
        for run in runs {
            record.starts();
            if run.becomes_ready {
                record.is_ready(now);
            }
            now += run.lasts;
            if run.becomes_ready && run.lasts >= rules.healthy {
                (in_a_row, times_opened) = (0, 0);
                failures.clear();
            }
            let Some(cure) = run.end else {
                record.stopped(&rules, now);
                prop_assert_eq!(record.next_try(), None);
                prop_assert_eq!(record.failures() as usize, in_a_row);
                continue;
            };
            in_a_row += 1;
            failures.push(now);
            let recent = failures.iter().filter(|at| now - **at < rules.window).count();
            if times_opened > 0 || cure == Cure::Hand || recent >= 3 {
                times_opened += 1;
            }
            record.failed(&rules, now, cure, Jitter::new(run.jitter));
            prop_assert_eq!(record.breaker() == Breaker::Open, times_opened > 0);
            prop_assert_eq!(record.failures() as usize, in_a_row);
            let least = match times_opened {
                0 => [1, 2, 4, 8, 16, 32, 60].get(in_a_row - 1).copied().unwrap_or(60),
                opened => [60, 120, 300].get(opened - 1).copied().unwrap_or(300),
            };
            let next = record.next_try().unwrap();
            let pause = next - now;
            prop_assert!(pause >= seconds(least) && pause <= seconds(least).mul_f64(1.25), "{pause:?}");
            let early = record.gate(next - Duration::from_nanos(1));
            prop_assert!(matches!(early, Gate::After(at) | Gate::Broken(at) if at == next));
            prop_assert_eq!(matches!(early, Gate::Broken(_)), times_opened > 0);
            prop_assert_eq!(record.gate(next), Gate::Open);
            prop_assert!(record.failures.len() <= 3);
            now = next;
        }
    }
}
