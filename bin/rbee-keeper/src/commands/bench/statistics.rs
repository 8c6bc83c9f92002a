//! From samples to figures. Pure. Percentiles are exact: all samples are sorted, and between two of them the value is
//! interpolated (Hyndman and Fan's type 7, R's and NumPy's default).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::exchange::{CountedBy, FailureClass, Phase, Reply, Sample};

/// What a good request is; an absent bound holds always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Objective {
    pub(super) ttft_ms: Option<f64>,
    pub(super) tpot_ms: Option<f64>,
}

/// How values are spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    /// How many values there were.
    pub(super) count: usize,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    pub(super) mean: f64,
}

/// One kind of failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct FailureCount {
    pub(super) class: String,
    pub(super) count: usize,
    /// The first one's words.
    pub(super) example: String,
}

/// Requests that met the objective.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Goodput {
    pub(super) requests: usize,
    pub(super) requests_per_second: f64,
    /// Of all requests, failed ones included.
    pub(super) share: f64,
}

/// The figures of one phase. Latencies are those of the requests that did not fail.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) requests: usize,
    pub(super) failed: usize,
    pub(super) failures: Vec<FailureCount>,
    /// From the first request's due time to the last one's end; of several rounds the sum.
    pub(super) wall_seconds: f64,
    pub(super) output_tokens: u64,
    /// How many replies' tokens this program had to count itself.
    pub(super) counted_by_deltas: usize,
    /// `None` where no server said.
    pub(super) prompt_tokens: Option<u64>,
    pub(super) cached_tokens: Option<u64>,
    pub(super) output_tokens_per_second: f64,
    pub(super) requests_per_second: f64,
    pub(super) goodput: Option<Goodput>,
    pub(super) ttft_ms: Option<Spread>,
    pub(super) tpot_ms: Option<Spread>,
    pub(super) itl_ms: Option<Spread>,
    pub(super) e2e_ms: Option<Spread>,
}

impl Summary {
    /// Sums up one phase of one or several rounds.
    pub(super) fn of(phase: Phase, rounds: &[&[Sample]], objective: Objective) -> Self {
        let in_phase = |round: &&'_ [Sample]| -> Vec<Sample> {
            round.iter().filter(|sample| sample.phase == phase).cloned().collect()
        };
        let rounds: Vec<Vec<Sample>> = rounds.iter().map(in_phase).collect();
        let wall: Duration = rounds.iter().map(|round| wall(round)).sum();
        let samples: Vec<&Sample> = rounds.iter().flatten().collect();
        let good: Vec<(&Sample, &Reply)> = samples
            .iter()
            .filter_map(|sample| Some((*sample, sample.outcome.as_ref().ok()?)))
            .collect();
        let output_tokens = good.iter().map(|(_, reply)| reply.completion_tokens).sum();
        let gaps = good.iter().flat_map(|(sample, reply)| gaps(reply, sample.gaps_from));
        Self {
            requests: samples.len(),
            failed: samples.len() - good.len(),
            failures: failures(&samples),
            wall_seconds: rounded(wall.as_secs_f64()),
            output_tokens,
            counted_by_deltas: good
                .iter()
                .filter(|(_, reply)| reply.counted_by == CountedBy::Deltas)
                .count(),
            prompt_tokens: sum_known(good.iter().map(|(_, reply)| reply.prompt_tokens)),
            cached_tokens: sum_known(good.iter().map(|(_, reply)| reply.cached_tokens)),
            output_tokens_per_second: per_second(count_f64(output_tokens), wall),
            requests_per_second: per_second(len_f64(good.len()), wall),
            goodput: goodput(&samples, wall, objective),
            ttft_ms: Spread::of(good.iter().map(|(sample, reply)| ttft_ms(sample, reply))),
            tpot_ms: Spread::of(good.iter().filter_map(|(_, reply)| tpot_ms(reply))),
            itl_ms: Spread::of(gaps),
            e2e_ms: Spread::of(samples.iter().filter_map(|sample| e2e_ms(sample))),
        }
    }
}

impl Spread {
    /// Returns `None` where there are no values.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            count: sorted.len(),
            p50: rounded(quantile(&sorted, 0.5)?),
            p90: rounded(quantile(&sorted, 0.9)?),
            p99: rounded(quantile(&sorted, 0.99)?),
            max: rounded(*sorted.last()?),
            mean: rounded(sorted.iter().sum::<f64>() / len_f64(sorted.len())),
        })
    }
}

/// Interpolates between the neighbours of position (n − 1)·q in `sorted`.
pub(super) fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let position = len_f64(last) * q.clamp(0.0, 1.0);
    let low = (0..=last).rev().find(|index| len_f64(*index) <= position)?;
    let below = *sorted.get(low)?;
    let above = *sorted.get(low + 1).unwrap_or(&below);
    Some(below + (above - below) * (position - len_f64(low)))
}

/// Time to first token: from when the request was due.
pub(super) fn ttft_ms(sample: &Sample, reply: &Reply) -> f64 {
    let first = reply.tokens_at.first().copied().unwrap_or(sample.ended);
    milliseconds(first.saturating_sub(sample.due))
}

/// Time per output token: from the first piece of text to the last, over the tokens after the first. `None` for a
/// reply that came in one piece.
pub(super) fn tpot_ms(reply: &Reply) -> Option<f64> {
    let [first, .., last] = reply.tokens_at.as_slice() else { return None };
    let later = reply.completion_tokens.checked_sub(1).filter(|later| *later > 0)?;
    Some(milliseconds(last.saturating_sub(*first)) / count_f64(later))
}

/// The gaps between pieces of text that end after `from`.
pub(super) fn gaps(reply: &Reply, from: Duration) -> impl Iterator<Item = f64> {
    let pairs = reply.tokens_at.iter().zip(reply.tokens_at.iter().skip(1));
    pairs
        .filter(move |(_, later)| **later > from)
        .map(|(earlier, later)| milliseconds(later.saturating_sub(*earlier)))
}

/// End to end: from when the request was due; `None` for one that failed.
pub(super) fn e2e_ms(sample: &Sample) -> Option<f64> {
    sample.outcome.is_ok().then(|| milliseconds(sample.ended.saturating_sub(sample.due)))
}

/// Milliseconds with a microsecond's precision.
pub(super) fn milliseconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1e3)
}

/// Three decimals are more than any clock here is good for.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn wall(round: &[Sample]) -> Duration {
    let first = round.iter().map(|sample| sample.due).min().unwrap_or_default();
    let last = round.iter().map(|sample| sample.ended).max().unwrap_or_default();
    last.saturating_sub(first)
}

fn goodput(samples: &[&Sample], wall: Duration, objective: Objective) -> Option<Goodput> {
    if objective == Objective::default() {
        return None;
    }
    let within = |value: f64, bound: Option<f64>| bound.is_none_or(|bound| value <= bound);
    let requests = samples
        .iter()
        .filter(|sample| {
            sample.outcome.as_ref().is_ok_and(|reply| {
                within(ttft_ms(sample, reply), objective.ttft_ms)
                    && tpot_ms(reply).is_none_or(|tpot| within(tpot, objective.tpot_ms))
            })
        })
        .count();
    Some(Goodput {
        requests,
        requests_per_second: per_second(len_f64(requests), wall),
        share: rounded(len_f64(requests) / len_f64(samples.len().max(1))),
    })
}

fn failures(samples: &[&Sample]) -> Vec<FailureCount> {
    let mut classes: BTreeMap<FailureClass, (usize, &str)> = BTreeMap::new();
    for failure in samples.iter().filter_map(|sample| sample.outcome.as_ref().err()) {
        classes.entry(failure.class).or_insert((0, &failure.message)).0 += 1;
    }
    classes
        .into_iter()
        .map(|(class, (count, example))| FailureCount {
            class: class.name(),
            count,
            example: example.to_owned(),
        })
        .collect()
}

fn sum_known(values: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    values.flatten().fold(None, |sum, value| Some(sum.unwrap_or(0) + value))
}

fn per_second(count: f64, wall: Duration) -> f64 {
    let seconds = wall.as_secs_f64();
    if seconds > 0.0 { rounded(count / seconds) } else { 0.0 }
}

/// Exact up to 2^32, beyond any count here.
fn len_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn count_f64(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
