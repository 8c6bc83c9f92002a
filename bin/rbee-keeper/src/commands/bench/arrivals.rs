//! When requests are due that do not wait for each other. Pure: a function of rate, pattern, end and seed.

use std::time::Duration;

use fastrand::Rng;

use super::settings::End;
use crate::cli::ArrivalPattern;

/// Bounds the list where a long duration meets a high rate.
const ARRIVALS_MAX: usize = 1_000_000;

/// Returns when each request is due, from the start of the run, in order.
///
/// Equal gaps are 1/rate. The gaps of a Poisson process are independent and exponential, drawn by inversion:
/// −ln(1 − u)/rate with u uniform in [0, 1).
pub(super) fn schedule(
    rate_per_second: f64,
    pattern: ArrivalPattern,
    end: End,
    seed: u64,
) -> Vec<Duration> {
    let mut rng = Rng::with_seed(seed);
    let mut seconds = 0.0;
    let mut due = Vec::new();
    loop {
        let at = Duration::from_secs_f64(seconds);
        let over = match end {
            End::Requests(count) => due.len() >= usize::try_from(count).unwrap_or(usize::MAX),
            End::After(duration) => at >= duration,
        };
        if over || due.len() >= ARRIVALS_MAX {
            return due;
        }
        due.push(at);
        seconds += match pattern {
            ArrivalPattern::Constant => 1.0 / rate_per_second,
            ArrivalPattern::Poisson => -(1.0 - rng.f64()).ln() / rate_per_second,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_gaps_are_one_over_the_rate() {
        let due = schedule(4.0, ArrivalPattern::Constant, End::Requests(4), 1);
        assert_eq!(due, [0, 250, 500, 750].map(Duration::from_millis));
        let end = End::After(Duration::from_secs(2));
        assert_eq!(schedule(4.0, ArrivalPattern::Constant, end, 1).len(), 8);
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let count = 20_000;
        let due = schedule(50.0, ArrivalPattern::Poisson, End::Requests(count), 7);
        assert_eq!(due.len(), 20_000);
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / 19_999.0;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 19_999.0;
        assert!((mean / 0.02 - 1.0).abs() < 0.03, "mean {mean}");
        assert!(
            (variance.sqrt() / mean - 1.0).abs() < 0.05,
            "an exponential's deviation is its mean"
        );
        let longer_than_mean = gaps.iter().filter(|gap| **gap > 0.02).count();
        assert!((6900..7800).contains(&longer_than_mean), "e^-1 of them: {longer_than_mean}");
    }

    #[test]
    fn the_seed_decides() {
        let of = |seed| schedule(5.0, ArrivalPattern::Poisson, End::Requests(50), seed);
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }
}
