//! A report for people: a block of figures for each endpoint, level and phase, then the ratios. Formats; computes
//! nothing.

use super::compare::Ratio;
use super::report::{LevelRatio, Report, Total};
use super::settings::Level;
use super::statistics::Spread;
use crate::error::KeeperError;
use crate::output::Output;

/// Prints the report.
pub(super) fn print(output: &Output, report: &Report) -> Result<(), KeeperError> {
    for total in &report.totals {
        block(output, total)?;
    }
    let mut rest = report.ratios.as_slice();
    while let Some(first) = rest.first() {
        let belongs = |other: &LevelRatio| {
            (other.level, &other.ratio.numerator, &other.ratio.denominator)
                == (first.level, &first.ratio.numerator, &first.ratio.denominator)
        };
        let count = rest.iter().take_while(|other| belongs(other)).count();
        let (group, later) = rest.split_at(count);
        ratio_block(output, first, group)?;
        rest = later;
    }
    Ok(())
}

/// Says in one line why requests failed.
pub(super) fn failures(report: &Report) -> String {
    let mut parts = Vec::new();
    for total in &report.totals {
        for failure in &total.summary.failures {
            let count = failure.count;
            let (endpoint, class) = (&total.endpoint, &failure.class);
            parts.push(format!("{endpoint}: {count} {class} ({})", failure.example));
        }
    }
    parts.join("; ")
}

/// Writes a level of load.
pub(super) fn level(level: Level) -> String {
    match level {
        Level::Streams(1) => "1 stream".to_owned(),
        Level::Streams(count) => format!("{count} streams"),
        Level::RatePerSecond(rate) => format!("{rate} requests/s"),
    }
}

fn block(output: &Output, total: &Total) -> Result<(), KeeperError> {
    let summary = &total.summary;
    output.line(&format!(
        "{}, {}, {}: {}, {} failed, {}",
        total.endpoint,
        level(total.level),
        total.phase.name(),
        counted(summary.requests, "request"),
        summary.failed,
        counted(total.rounds, "round"),
    ))?;
    let mut facts = vec![
        format!("{:.1} tokens/s", summary.output_tokens_per_second),
        format!("{:.2} requests/s", summary.requests_per_second),
    ];
    if let Some(goodput) = summary.goodput {
        let percent = goodput.share * 100.0;
        facts.push(format!("good {:.2} requests/s ({percent:.0}%)", goodput.requests_per_second));
    }
    if let Some(prompt) = summary.prompt_tokens {
        let cached =
            summary.cached_tokens.map_or("an unknown number".to_owned(), |c| c.to_string());
        facts.push(format!("{prompt} prompt tokens, {cached} cached"));
    }
    if summary.counted_by_deltas > 0 {
        facts.push("tokens counted by pieces of text, because the server did not".to_owned());
    }
    let percent = total.own_cpu_share * 100.0;
    facts.push(format!("own CPU {:.2} s ({percent:.0}%)", total.own_cpu_seconds));
    output.line(&facts.join(", "))?;
    let rows = [
        ("TTFT", summary.ttft_ms),
        ("TPOT", summary.tpot_ms),
        ("ITL", summary.itl_ms),
        ("E2E", summary.e2e_ms),
    ];
    let rows = rows.into_iter().filter_map(|(name, spread)| Some(spread_row(name, spread?)));
    output.table(["MS", "P50", "P90", "P99", "MAX", "MEAN"], rows)?;
    output.line("")
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn spread_row(name: &str, spread: Spread) -> [String; 6] {
    let cell = |value: f64| format!("{value:.2}");
    [
        name.to_owned(),
        cell(spread.p50),
        cell(spread.p90),
        cell(spread.p99),
        cell(spread.max),
        cell(spread.mean),
    ]
}

fn ratio_block(
    output: &Output,
    first: &LevelRatio,
    group: &[LevelRatio],
) -> Result<(), KeeperError> {
    let Ratio { numerator, denominator, .. } = &first.ratio;
    let title = if numerator.endpoint == denominator.endpoint {
        let (above, below) = (numerator.phase.name(), denominator.phase.name());
        format!("{}: {above} / {below}", numerator.endpoint)
    } else {
        let phase = numerator.phase.name();
        format!("{} / {}, {phase}", numerator.endpoint, denominator.endpoint)
    };
    output.line(&format!("{title}, {}", level(first.level)))?;
    let cell = |value: f64| format!("{value:.3}");
    let rows = group.iter().map(|LevelRatio { ratio, .. }| {
        [ratio.metric.label().to_owned(), cell(ratio.median), cell(ratio.min), cell(ratio.max)]
    });
    output.table(["RATIO", "MEDIAN", "MIN", "MAX"], rows)?;
    output.line("")
}
