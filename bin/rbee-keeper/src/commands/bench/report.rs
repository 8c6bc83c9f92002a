//! Everything that was measured, in the form of the JSON document that docs/BENCH.md describes. Pure; the tables for
//! people are made from it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::compare::{Ratio, Side, ratios};
use super::endpoint::Identity;
use super::exchange::{CountedBy, Phase, Sample};
use super::settings::{End, Level, Settings, Warmup};
use super::statistics::{Summary, e2e_ms, gaps, milliseconds, rounded, tpot_ms, ttft_ms};
use crate::cli::{Api, ArrivalPattern, Scenario, Span};

/// Changes when a reader of the document would have to.
const SCHEMA: &str = "rbee-bench/1";

/// Phases of one endpoint that a scenario sets against each other.
const CONTRASTS: [(Phase, Phase); 2] =
    [(Phase::TurnTwo, Phase::Cold), (Phase::Schema, Phase::Free)];

/// One run, measured. Endpoint and level are places in their lists.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) endpoint: usize,
    pub(super) level: usize,
    pub(super) round: usize,
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
    pub(super) samples: Vec<Sample>,
}

/// The document.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: &'static str,
    date: String,
    rbee_version: &'static str,
    settings: Value,
    endpoints: Vec<Identity>,
    /// How many requests failed, in all.
    pub(super) failed: usize,
    /// All rounds of a level together.
    pub(super) totals: Vec<Total>,
    pub(super) ratios: Vec<LevelRatio>,
    rounds: Vec<RoundRecord>,
    requests: Vec<RequestRecord>,
}

/// One endpoint, level and phase.
#[derive(Debug, Serialize)]
pub(super) struct Total {
    pub(super) endpoint: String,
    pub(super) level: Level,
    pub(super) phase: Phase,
    pub(super) rounds: usize,
    /// CPU time of the load generator, over all phases.
    pub(super) own_cpu_seconds: f64,
    /// Of one core, while the load ran.
    pub(super) own_cpu_share: f64,
    #[serde(flatten)]
    pub(super) summary: Summary,
}

/// One ratio at one level.
#[derive(Debug, Serialize)]
pub(super) struct LevelRatio {
    pub(super) level: Level,
    #[serde(flatten)]
    pub(super) ratio: Ratio,
}

#[derive(Debug, Serialize)]
struct RoundRecord {
    endpoint: String,
    level: Level,
    phase: Phase,
    round: usize,
    own_cpu_seconds: f64,
    #[serde(flatten)]
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct RequestRecord {
    endpoint: String,
    level: Level,
    phase: Phase,
    round: usize,
    due_ms: f64,
    sent_ms: f64,
    ended_ms: f64,
    ttft_ms: Option<f64>,
    tpot_ms: Option<f64>,
    e2e_ms: Option<f64>,
    itl_max_ms: Option<f64>,
    prompt_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    output_tokens: Option<u64>,
    counted_by: Option<CountedBy>,
    failure: Option<String>,
    message: Option<String>,
}

impl Report {
    /// Computes every figure. `measured` is in the order in which it was measured.
    pub(super) fn new(
        settings: &Settings,
        endpoints: Vec<Identity>,
        measured: &[Measured],
        date: String,
    ) -> Self {
        let source = Source { settings, endpoints: &endpoints, measured };
        let failed = measured
            .iter()
            .flat_map(|run| &run.samples)
            .filter(|sample| sample.outcome.is_err())
            .count();
        Self {
            schema: SCHEMA,
            date,
            rbee_version: env!("CARGO_PKG_VERSION"),
            settings: describe(settings),
            failed,
            totals: source.totals(),
            ratios: source.ratios(),
            rounds: source.rounds(),
            requests: source.requests(),
            endpoints,
        }
    }
}

/// What the figures are computed from.
struct Source<'a> {
    settings: &'a Settings,
    endpoints: &'a [Identity],
    measured: &'a [Measured],
}

impl<'a> Source<'a> {
    fn totals(&self) -> Vec<Total> {
        self.groups()
            .into_iter()
            .map(|(level, phase, endpoint)| {
                let runs = self.runs(level, endpoint);
                let samples: Vec<&[Sample]> =
                    runs.iter().map(|run| run.samples.as_slice()).collect();
                let cpu: Duration = runs.iter().map(|run| run.cpu).sum();
                let wall: Duration = runs.iter().map(|run| run.wall).sum();
                Total {
                    endpoint: self.name(endpoint),
                    level: self.level(level),
                    phase,
                    rounds: runs.len(),
                    own_cpu_seconds: rounded(cpu.as_secs_f64()),
                    own_cpu_share: rounded(
                        cpu.as_secs_f64() / wall.as_secs_f64().max(f64::EPSILON),
                    ),
                    summary: Summary::of(phase, &samples, self.settings.objective),
                }
            })
            .collect()
    }

    /// The first endpoint over each other, phase by phase, and the phases of one endpoint that belong together.
    fn ratios(&self) -> Vec<LevelRatio> {
        let mut found = Vec::new();
        for (level, phase, endpoint) in self.groups() {
            let first = (0, phase);
            if endpoint != 0 {
                found.extend(self.ratio(level, first, (endpoint, phase)));
            }
            for (above, below) in CONTRASTS {
                if phase == above {
                    found.extend(self.ratio(level, (endpoint, above), (endpoint, below)));
                }
            }
        }
        found
    }

    fn ratio(&self, level: usize, above: (usize, Phase), below: (usize, Phase)) -> Vec<LevelRatio> {
        let side = |(endpoint, phase)| Side { endpoint: self.name(endpoint), phase };
        let summaries = |(endpoint, phase)| self.summaries(level, endpoint, phase);
        let (upper, lower) = (summaries(above), summaries(below));
        let upper: Vec<&Summary> = upper.iter().collect();
        let lower: Vec<&Summary> = lower.iter().collect();
        let level = self.level(level);
        ratios((&side(above), &upper), (&side(below), &lower))
            .into_iter()
            .map(|ratio| LevelRatio { level, ratio })
            .collect()
    }

    fn rounds(&self) -> Vec<RoundRecord> {
        let mut records = Vec::new();
        for run in self.measured {
            for phase in phases(&run.samples) {
                records.push(RoundRecord {
                    endpoint: self.name(run.endpoint),
                    level: self.level(run.level),
                    phase,
                    round: run.round,
                    own_cpu_seconds: rounded(run.cpu.as_secs_f64()),
                    summary: Summary::of(phase, &[&run.samples], self.settings.objective),
                });
            }
        }
        records
    }

    fn requests(&self) -> Vec<RequestRecord> {
        let of_run = |run: &'a Measured| run.samples.iter().map(move |sample| (run, sample));
        self.measured
            .iter()
            .flat_map(of_run)
            .map(|(run, sample)| self.request(run, sample))
            .collect()
    }

    fn request(&self, run: &Measured, sample: &Sample) -> RequestRecord {
        let reply = sample.outcome.as_ref().ok();
        let failure = sample.outcome.as_ref().err();
        RequestRecord {
            endpoint: self.name(run.endpoint),
            level: self.level(run.level),
            phase: sample.phase,
            round: run.round,
            due_ms: milliseconds(sample.due),
            sent_ms: milliseconds(sample.sent),
            ended_ms: milliseconds(sample.ended),
            ttft_ms: reply.map(|reply| ttft_ms(sample, reply)),
            tpot_ms: reply.and_then(tpot_ms).map(rounded),
            e2e_ms: e2e_ms(sample),
            itl_max_ms: reply.and_then(|reply| gaps(reply, sample.gaps_from).reduce(f64::max)),
            prompt_tokens: reply.and_then(|reply| reply.prompt_tokens),
            cached_tokens: reply.and_then(|reply| reply.cached_tokens),
            output_tokens: reply.map(|reply| reply.completion_tokens),
            counted_by: reply.map(|reply| reply.counted_by),
            failure: failure.map(|failure| failure.class.name()),
            message: failure.map(|failure| failure.message.clone()),
        }
    }

    /// Every level, phase and endpoint that there is, in the order in which they are shown.
    fn groups(&self) -> BTreeSet<(usize, Phase, usize)> {
        let of_run = |run: &'a Measured| {
            phases(&run.samples).into_iter().map(|phase| (run.level, phase, run.endpoint))
        };
        self.measured.iter().flat_map(of_run).collect()
    }

    /// The runs of one endpoint at one level, by round.
    fn runs(&self, level: usize, endpoint: usize) -> Vec<&'a Measured> {
        let mut runs: Vec<&Measured> = self
            .measured
            .iter()
            .filter(|run| run.level == level && run.endpoint == endpoint)
            .collect();
        runs.sort_by_key(|run| run.round);
        runs
    }

    fn summaries(&self, level: usize, endpoint: usize, phase: Phase) -> Vec<Summary> {
        self.runs(level, endpoint)
            .iter()
            .map(|run| Summary::of(phase, &[&run.samples], self.settings.objective))
            .collect()
    }

    fn name(&self, endpoint: usize) -> String {
        self.endpoints.get(endpoint).map(|identity| identity.name.clone()).unwrap_or_default()
    }

    fn level(&self, level: usize) -> Level {
        self.settings.levels.get(level).copied().unwrap_or(Level::Streams(0))
    }
}

fn phases(samples: &[Sample]) -> BTreeSet<Phase> {
    samples.iter().map(|sample| sample.phase).collect()
}

fn describe(settings: &Settings) -> Value {
    let workload = &settings.workload;
    let (requests, duration_seconds) = match settings.end {
        End::Requests(count) => (Some(count), None),
        End::After(duration) => (None, Some(duration.as_secs())),
    };
    let is_open = settings.levels.iter().any(|level| matches!(level, Level::RatePerSecond(_)));
    let span = |span: Span| json!({ "min": span.min, "max": span.max });
    json!({
        "scenario": scenario_name(settings.scenario),
        "loop": if is_open { "open" } else { "closed" },
        "levels": settings.levels,
        "arrivals": is_open.then_some(match settings.arrivals {
            ArrivalPattern::Poisson => "poisson",
            ArrivalPattern::Constant => "constant",
        }),
        "requests": requests,
        "duration_seconds": duration_seconds,
        "rounds": settings.rounds,
        "warmup": settings.warmup == Warmup::Wave,
        "seed": workload.seed,
        "prompt_words": span(workload.prompt_words),
        "output_tokens": span(workload.output_tokens),
        "prompt_start": workload.start,
        "shared_prefix_words": workload.prefix.map_or(0, |prefix| prefix.words),
        "shared_percent": workload.prefix.map_or(0, |prefix| prefix.percent),
        "requests_per_prefix": workload.prefix.and_then(|prefix| prefix.requests),
        "chats": (settings.scenario == Scenario::SecondTurn).then_some(settings.chats),
        "long_words": (settings.scenario == Scenario::LongPromptArrives)
            .then_some(settings.long_words),
        "api": match settings.dialect.api {
            Api::Chat => "chat",
            Api::Completions => "completions",
        },
        "temperature": settings.dialect.temperature,
        "body": settings.dialect.extra,
        "timeout_seconds": settings.timeout.as_secs(),
        "objective": settings.objective,
    })
}

/// Names the scenario as it is typed.
pub(super) const fn scenario_name(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Unique => "unique",
        Scenario::SharedPrefix => "shared-prefix",
        Scenario::SecondTurn => "second-turn",
        Scenario::LongPromptArrives => "long-prompt-arrives",
        Scenario::Copy => "copy",
        Scenario::JsonSchema => "json-schema",
    }
}
