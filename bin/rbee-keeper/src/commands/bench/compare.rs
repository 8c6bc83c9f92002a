//! Who goes first in a round, and ratios within rounds. Pure.

use serde::Serialize;

use super::exchange::Phase;
use super::statistics::{Spread, Summary, quantile, rounded};

/// Returns the order of `count` endpoints in a round: forward and backward in turn, A B B A A B …, so that what
/// drifts with time favours none.
pub(super) fn order(count: usize, round: usize) -> Vec<usize> {
    let forward = 0..count;
    if round.is_multiple_of(2) { forward.collect() } else { forward.rev().collect() }
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    OutputTokensPerSecond,
    RequestsPerSecond,
    TtftP50,
    TtftP99,
    TpotP50,
    ItlP50,
    ItlP99,
    ItlMax,
    E2eP50,
    E2eP99,
}

impl Metric {
    const ALL: [Self; 10] = [
        Self::OutputTokensPerSecond,
        Self::RequestsPerSecond,
        Self::TtftP50,
        Self::TtftP99,
        Self::TpotP50,
        Self::ItlP50,
        Self::ItlP99,
        Self::ItlMax,
        Self::E2eP50,
        Self::E2eP99,
    ];

    /// Names the metric for people.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::OutputTokensPerSecond => "tokens/s",
            Self::RequestsPerSecond => "requests/s",
            Self::TtftP50 => "TTFT p50",
            Self::TtftP99 => "TTFT p99",
            Self::TpotP50 => "TPOT p50",
            Self::ItlP50 => "ITL p50",
            Self::ItlP99 => "ITL p99",
            Self::ItlMax => "ITL max",
            Self::E2eP50 => "E2E p50",
            Self::E2eP99 => "E2E p99",
        }
    }

    fn of(self, summary: &Summary) -> Option<f64> {
        let from = |spread: Option<Spread>, part: fn(Spread) -> f64| spread.map(part);
        match self {
            Self::OutputTokensPerSecond => Some(summary.output_tokens_per_second),
            Self::RequestsPerSecond => Some(summary.requests_per_second),
            Self::TtftP50 => from(summary.ttft_ms, |spread| spread.p50),
            Self::TtftP99 => from(summary.ttft_ms, |spread| spread.p99),
            Self::TpotP50 => from(summary.tpot_ms, |spread| spread.p50),
            Self::ItlP50 => from(summary.itl_ms, |spread| spread.p50),
            Self::ItlP99 => from(summary.itl_ms, |spread| spread.p99),
            Self::ItlMax => from(summary.itl_ms, |spread| spread.max),
            Self::E2eP50 => from(summary.e2e_ms, |spread| spread.p50),
            Self::E2eP99 => from(summary.e2e_ms, |spread| spread.p99),
        }
    }
}

/// One side of a ratio.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Side {
    pub(super) endpoint: String,
    pub(super) phase: Phase,
}

/// One metric of one side over the same of another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Ratio {
    pub(super) metric: Metric,
    pub(super) numerator: Side,
    pub(super) denominator: Side,
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    /// Round by round; rounds that cannot be compared are left out.
    pub(super) rounds: Vec<f64>,
}

/// Forms the ratios of every metric, round by round. A round where a side has no figure, or zero to divide by, does
/// not count.
pub(super) fn ratios(
    (numerator, above): (&Side, &[&Summary]),
    (denominator, below): (&Side, &[&Summary]),
) -> Vec<Ratio> {
    let ratio = |metric: Metric| {
        let rounds: Vec<f64> = above
            .iter()
            .zip(below)
            .filter_map(|(above, below)| {
                let below = metric.of(below).filter(|value| *value > 0.0)?;
                Some(rounded(metric.of(above)? / below))
            })
            .collect();
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        Some(Ratio {
            metric,
            numerator: numerator.clone(),
            denominator: denominator.clone(),
            median: rounded(quantile(&sorted, 0.5)?),
            min: *sorted.first()?,
            max: *sorted.last()?,
            rounds,
        })
    };
    Metric::ALL.into_iter().filter_map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::super::statistics::Objective;
    use super::*;

    #[test]
    fn the_order_alternates() {
        let seen: Vec<Vec<usize>> = (0..4).map(|round| order(2, round)).collect();
        assert_eq!(seen, [[0, 1], [1, 0], [0, 1], [1, 0]]);
        assert_eq!(order(3, 1), [2, 1, 0]);
    }

    fn with(rate: f64, ttft: Option<f64>) -> Summary {
        let empty = Summary::of(Phase::Load, &[], Objective::default());
        let ttft_ms = ttft.and_then(|value| Spread::of([value].into_iter()));
        Summary { output_tokens_per_second: rate, ttft_ms, ..empty }
    }

    #[test]
    fn ratios_are_formed_within_rounds() {
        let side = |name: &str| Side { endpoint: name.to_owned(), phase: Phase::Load };
        let above = [with(10.0, Some(5.0)), with(30.0, Some(4.0)), with(80.0, None)];
        let below = [with(10.0, Some(10.0)), with(20.0, Some(4.0)), with(20.0, Some(1.0))];
        let (above, below): (Vec<&Summary>, Vec<&Summary>) =
            (above.iter().collect(), below.iter().collect());
        let ratios = ratios((&side("a"), &above), (&side("b"), &below));
        let rate = &ratios[0];
        assert_eq!(rate.metric, Metric::OutputTokensPerSecond);
        // The ratio of the medians would be 30 / 20.
        assert_eq!(rate.rounds, [1.0, 1.5, 4.0]);
        assert_eq!((rate.median, rate.min, rate.max), (1.5, 1.0, 4.0));
        let ttft = ratios.iter().find(|ratio| ratio.metric == Metric::TtftP50).unwrap();
        assert_eq!(ttft.rounds, [0.5, 1.0]);
        assert!(!ratios.iter().any(|ratio| ratio.metric == Metric::ItlMax), "nobody has it");
    }
}
