//! What a measurement is made of: a scenario's usual values and what was typed instead of them. Decides what the
//! options mean together; asks nobody.

use std::time::Duration;

use serde::Serialize;

use super::endpoint::Dialect;
use super::statistics::Objective;
use super::workload::{Prefix, Task, Workload};
use crate::cli::{ArrivalPattern, BenchArgs, Scenario, Span};
use crate::error::KeeperError;

/// Rounds where two are compared: enough for a median that one bad round does not move.
const ROUNDS_COMPARED: u32 = 5;
/// Requests of an open loop where nothing else is said.
const OPEN_REQUESTS: u32 = 100;

/// How much load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// So many requests are running at once.
    Streams(u32),
    /// So many requests begin each second.
    RatePerSecond(f64),
}

/// When a round begins no more requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// After so many: for each stream, or in all where there are none.
    Requests(u32),
    /// After so long.
    After(Duration),
}

/// One measurement.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) scenario: Scenario,
    pub(super) levels: Vec<Level>,
    pub(super) arrivals: ArrivalPattern,
    pub(super) end: End,
    pub(super) rounds: u32,
    pub(super) warmup: Warmup,
    pub(super) chats: u32,
    pub(super) long_words: u32,
    pub(super) timeout: Duration,
    pub(super) objective: Objective,
    pub(super) workload: Workload,
    pub(super) dialect: Dialect,
}

/// Whether a wave that is not counted comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Warmup {
    Wave,
    None,
}

/// What a scenario usually is.
struct Preset {
    streams: &'static [u32],
    requests: u32,
    prompt_words: u32,
    output_tokens: u32,
    prefix_words: u32,
    task: Task,
}

const fn preset(scenario: Scenario) -> Preset {
    let plain = Preset {
        streams: &[1, 4, 8],
        requests: 4,
        prompt_words: 40,
        output_tokens: 96,
        prefix_words: 0,
        task: Task::Essay,
    };
    match scenario {
        Scenario::Unique => plain,
        Scenario::SharedPrefix => {
            Preset { streams: &[8], output_tokens: 64, prefix_words: 400, ..plain }
        }
        // One chat at a time takes its turn, so that a first token waits for nobody else's.
        Scenario::SecondTurn => {
            Preset { streams: &[1], requests: 1, prompt_words: 200, output_tokens: 64, ..plain }
        }
        // The streams have to run for longer than the long prompt takes.
        Scenario::LongPromptArrives => {
            Preset { streams: &[4], requests: 1, output_tokens: 384, ..plain }
        }
        Scenario::Copy => Preset {
            streams: &[1],
            prompt_words: 140,
            output_tokens: 160,
            task: Task::Copy,
            ..plain
        },
        Scenario::JsonSchema => Preset { streams: &[8], requests: 2, task: Task::List, ..plain },
    }
}

impl Settings {
    /// Fills in what was left out. `seed` is taken where none was typed; `compared` says that there are peers.
    ///
    /// # Errors
    /// [`KeeperError::Usage`] for options that mean nothing together.
    pub(super) fn new(args: &BenchArgs, seed: u64, compared: bool) -> Result<Self, KeeperError> {
        check(args)?;
        let preset = preset(args.scenario);
        let levels: Vec<Level> = if !args.rate.is_empty() {
            args.rate.iter().copied().map(Level::RatePerSecond).collect()
        } else if !args.streams.is_empty() {
            args.streams.iter().copied().map(Level::Streams).collect()
        } else {
            preset.streams.iter().copied().map(Level::Streams).collect()
        };
        let usual = if args.rate.is_empty() { preset.requests } else { OPEN_REQUESTS };
        let end = match args.duration {
            Some(seconds) => End::After(Duration::from_secs(seconds)),
            None => End::Requests(args.requests.unwrap_or(usual)),
        };
        let prefix = Prefix {
            words: args.shared_prefix_words.unwrap_or(preset.prefix_words),
            percent: args.shared_percent,
            requests: args.requests_per_prefix,
        };
        Ok(Self {
            scenario: args.scenario,
            levels,
            arrivals: args.arrivals,
            end,
            rounds: args.rounds.unwrap_or(if compared { ROUNDS_COMPARED } else { 1 }),
            warmup: if args.no_warmup { Warmup::None } else { Warmup::Wave },
            chats: args.chats,
            long_words: args.long_words,
            timeout: Duration::from_secs(args.timeout),
            objective: Objective { ttft_ms: args.slo_ttft_ms, tpot_ms: args.slo_tpot_ms },
            workload: Workload {
                seed: args.seed.unwrap_or(seed),
                start: args.prompt_start.clone(),
                task: preset.task,
                prompt_words: args.prompt_words.unwrap_or(Span::exactly(preset.prompt_words)),
                output_tokens: args.output_tokens.unwrap_or(Span::exactly(preset.output_tokens)),
                prefix: (prefix.words > 0).then_some(prefix),
            },
            dialect: Dialect {
                api: args.api,
                temperature: args.temperature,
                extra: args.body.clone().unwrap_or_default(),
            },
        })
    }
}

fn check(args: &BenchArgs) -> Result<(), KeeperError> {
    let refuse = |option: &str, reason: &str| {
        Err(KeeperError::usage(
            format!("{option} {reason}"),
            "leave it out, or see `rbee bench --help`",
        ))
    };
    let staged = match args.scenario {
        Scenario::SecondTurn | Scenario::LongPromptArrives => true,
        Scenario::Unique | Scenario::SharedPrefix | Scenario::Copy | Scenario::JsonSchema => false,
    };
    let counts = args.requests.is_some() || args.duration.is_some();
    if staged && counts {
        return refuse(
            "--requests or --duration",
            "does not go with a scenario that has its own course",
        );
    }
    if !args.rate.is_empty() && (staged || args.scenario == Scenario::JsonSchema) {
        return refuse("--rate", "does not go with a scenario that has its own course");
    }
    if args.scenario == Scenario::JsonSchema
        && args.body.as_ref().is_some_and(|body| body.contains_key("response_format"))
    {
        return refuse("response_format in --body", "is set by the scenario json-schema");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn settings(typed: &[&str]) -> Result<Settings, KeeperError> {
        let words = ["rbee", "bench", "-m", "m"].iter().chain(typed);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Bench(args) => Settings::new(&args, 5, false),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_typed_wins_over_the_scenario() {
        let shared = settings(&["--scenario", "shared-prefix"]).unwrap();
        assert_eq!(shared.levels, [Level::Streams(8)]);
        assert_eq!(shared.end, End::Requests(4));
        assert_eq!(shared.workload.prefix.unwrap().words, 400);
        assert_eq!((shared.workload.seed, shared.rounds), (5, 1));
        let typed = settings(&[
            "--scenario=shared-prefix",
            "--streams=2,3",
            "--requests=1",
            "--shared-prefix-words=9",
            "--seed=7",
            "--rounds=2",
        ])
        .unwrap();
        assert_eq!(typed.levels, [Level::Streams(2), Level::Streams(3)]);
        assert_eq!(typed.end, End::Requests(1));
        assert_eq!(typed.workload.prefix.unwrap().words, 9);
        assert_eq!((typed.workload.seed, typed.rounds), (7, 2));
        let open = settings(&["--rate", "2", "--duration", "3"]).unwrap();
        assert_eq!(open.levels, [Level::RatePerSecond(2.0)]);
        assert_eq!(open.end, End::After(Duration::from_secs(3)));
    }

    #[test]
    fn options_that_mean_nothing_together_are_refused() {
        for typed in [
            ["--scenario=second-turn", "--requests=2"],
            ["--scenario=long-prompt-arrives", "--duration=2"],
            ["--scenario=second-turn", "--rate=2"],
            ["--scenario=json-schema", "--rate=2"],
            ["--scenario=json-schema", "--body={\"response_format\":{}}"],
        ] {
            assert!(matches!(settings(&typed), Err(KeeperError::Usage { .. })), "{typed:?}");
        }
    }
}
