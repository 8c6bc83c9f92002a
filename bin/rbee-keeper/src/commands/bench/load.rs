//! One run: a scenario's requests against one endpoint, closed loop, open loop or in stages. Owns which requests are
//! on their way at the same time; never computes statistics.

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::join;
use futures_util::{StreamExt as _, stream};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::arrivals;
use super::endpoint::Endpoint;
use super::exchange::{Phase, Sample, exchange};
use super::settings::{End, Level, Settings};
use super::workload::{Ask, Form, RunId};
use crate::cli::Scenario;

/// Most requests of an open loop that are waited for at once. A later one is sent when an earlier one ends, and its
/// latency counts from when it was due all the same.
const OPEN_STREAMS_MAX: usize = 1024;
/// Streams of the warm-up before an open loop.
const OPEN_WARMUP_STREAMS: usize = 4;
/// The long prompt arrives when each running stream has had this share of its tokens.
const ARRIVES_AFTER_SHARE: u32 = 8;

/// One run against one endpoint.
#[derive(Debug)]
pub(super) struct Run<'a> {
    settings: &'a Settings,
    endpoint: &'a Endpoint,
    level: Level,
    id: RunId,
    started: Instant,
}

impl<'a> Run<'a> {
    /// Starts the run's clock.
    pub(super) fn start(
        settings: &'a Settings,
        endpoint: &'a Endpoint,
        level: Level,
        id: RunId,
    ) -> Self {
        Self { settings, endpoint, level, id, started: Instant::now() }
    }

    /// Sends what the scenario asks for and waits for all of it. Dropping the future closes every connection.
    pub(super) async fn measure(&self) -> Vec<Sample> {
        match (self.settings.scenario, self.level) {
            (Scenario::SecondTurn, _) => self.second_turns().await,
            (Scenario::LongPromptArrives, _) => self.long_prompt_arrives().await,
            (Scenario::JsonSchema, _) => self.free_and_schema().await,
            (
                Scenario::Unique | Scenario::SharedPrefix | Scenario::Copy,
                Level::RatePerSecond(rate),
            ) => self.open_loop(rate).await,
            (Scenario::Unique | Scenario::SharedPrefix | Scenario::Copy, Level::Streams(_)) => {
                self.closed_loop(self.id, Phase::Load, Form::Free).await
            }
        }
    }

    /// Sends one wave of plain requests, so that what happens once does not count.
    pub(super) async fn warm_up(&self) -> Vec<Sample> {
        let wave = (0..self.streams()).map(|number| self.settings.workload.ask(self.id, number));
        self.at_once(Phase::Load, wave).await
    }

    fn streams(&self) -> usize {
        match self.level {
            Level::Streams(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Level::RatePerSecond(_) => OPEN_WARMUP_STREAMS,
        }
    }

    /// Keeps `streams` requests running: a new one begins when one ends.
    async fn closed_loop(&self, id: RunId, phase: Phase, form: Form) -> Vec<Sample> {
        let begun = self.started.elapsed();
        let goes_on = |number: &usize| match self.settings.end {
            End::Requests(each) => {
                let each = usize::try_from(each).unwrap_or(usize::MAX);
                *number < each.saturating_mul(self.streams())
            }
            End::After(duration) => self.started.elapsed().saturating_sub(begun) < duration,
        };
        let asks = (0..usize::MAX).take_while(goes_on).map(|number| {
            let ask = self.settings.workload.ask(id, number);
            Ask { form, ..ask }
        });
        self.at_once(phase, asks).await
    }

    /// Begins each request when it is due, whatever has become of the others.
    async fn open_loop(&self, rate: f64) -> Vec<Sample> {
        let settings = self.settings;
        let level = u64::try_from(self.id.level).unwrap_or_default();
        let seed = settings.workload.seed.rotate_left(32) ^ level;
        let due = arrivals::schedule(rate, settings.arrivals, settings.end, seed);
        let requests = due.into_iter().enumerate().map(|(number, due)| async move {
            let ask = settings.workload.ask(self.id, number);
            tokio::time::sleep_until(self.started + due).await;
            self.one(Phase::Load, &ask, Some(due), |_| {}).await
        });
        stream::iter(requests).buffer_unordered(OPEN_STREAMS_MAX).collect().await
    }

    /// Every chat's first turn; then every chat's second; then the second turns' text as if never seen.
    async fn second_turns(&self) -> Vec<Sample> {
        let workload = &self.settings.workload;
        let chats = usize::try_from(self.settings.chats).unwrap_or(usize::MAX);
        let mut first: Vec<(usize, Ask, Sample)> = stream::iter(0..chats)
            .map(|number| async move {
                let ask = workload.ask(self.id, number);
                let sample = self.one(Phase::TurnOne, &ask, None, |_| {}).await;
                (number, ask, sample)
            })
            .buffer_unordered(self.streams())
            .collect()
            .await;
        first.sort_by_key(|(number, ..)| *number);
        let turns: Vec<(usize, Ask)> = first
            .iter()
            .filter_map(|(number, ask, sample)| {
                let reply = sample.outcome.as_ref().ok()?;
                Some((*number, workload.second_turn(self.id, *number, ask, &reply.text)))
            })
            .collect();
        let second = self.at_once(Phase::TurnTwo, turns.iter().map(|(_, ask)| ask.clone())).await;
        let unseen = turns.iter().map(|(number, ask)| workload.unseen(self.id, *number, ask));
        let cold = self.at_once(Phase::Cold, unseen).await;
        first.into_iter().map(|(_, _, sample)| sample).chain(second).chain(cold).collect()
    }

    /// Streams that run, and a long prompt that arrives among them.
    async fn long_prompt_arrives(&self) -> Vec<Sample> {
        let workload = &self.settings.workload;
        let streams = self.streams();
        let underway = Milestone::new(streams);
        let running = stream::iter(0..streams)
            .map(|number| {
                let ask = workload.ask(self.id, number);
                let mut pass = Some(Pass(&underway));
                async move {
                    let enough = usize::try_from(ask.output_tokens / ARRIVES_AFTER_SHARE);
                    let enough = enough.unwrap_or(usize::MAX).max(1);
                    let on_token = |count| {
                        if count >= enough {
                            pass.take();
                        }
                    };
                    self.one(Phase::Running, &ask, None, on_token).await
                }
            })
            .buffer_unordered(streams)
            .collect::<Vec<Sample>>();
        let arriving = async {
            underway.all_passed().await;
            let ask = workload.long(self.id, streams, self.settings.long_words);
            self.one(Phase::Arriving, &ask, None, |_| {}).await
        };
        let (mut samples, arriving) = join(running, arriving).await;
        for sample in &mut samples {
            sample.gaps_from = arriving.sent;
        }
        samples.push(arriving);
        samples
    }

    /// The same load twice, without a schema and with it, in an order that alternates.
    async fn free_and_schema(&self) -> Vec<Sample> {
        // Other prompts for each, so that neither finds the other's in a cache.
        let free = (RunId { part: 0, ..self.id }, Phase::Free, Form::Free);
        let schema = (RunId { part: 1, ..self.id }, Phase::Schema, Form::JsonSchema);
        let even = self.id.round.is_none_or(|round| round % 2 == 0);
        let mut samples = Vec::new();
        for (id, phase, form) in if even { [free, schema] } else { [schema, free] } {
            samples.extend(self.closed_loop(id, phase, form).await);
        }
        samples
    }

    /// Sends what `asks` gives, as many at once as there are streams; `asks` is asked for more when one ends.
    async fn at_once(&self, phase: Phase, asks: impl Iterator<Item = Ask>) -> Vec<Sample> {
        let requests = asks.map(|ask| async move { self.one(phase, &ask, None, |_| {}).await });
        stream::iter(requests).buffer_unordered(self.streams()).collect().await
    }

    /// Sends one request now and waits for its end. `due` is when it should have been sent, where that may be earlier.
    async fn one(
        &self,
        phase: Phase,
        ask: &Ask,
        due: Option<Duration>,
        on_token: impl FnMut(usize),
    ) -> Sample {
        let settings = self.settings;
        let dialect = &settings.dialect;
        let body = dialect.body(ask, &self.endpoint.identity.model);
        let sent = self.started.elapsed();
        let outcome =
            exchange(self.endpoint, dialect.path(), body, settings.timeout, self.started, on_token)
                .await;
        let ended = self.started.elapsed();
        let due = due.unwrap_or(sent);
        Sample { phase, due, sent, ended, gaps_from: Duration::ZERO, outcome }
    }
}

/// Something that a number of streams have to reach.
#[derive(Debug)]
struct Milestone {
    missing: Cell<usize>,
    reached: Notify,
}

impl Milestone {
    fn new(streams: usize) -> Self {
        Self { missing: Cell::new(streams), reached: Notify::new() }
    }

    /// Waits until every stream is past it or over.
    async fn all_passed(&self) {
        self.reached.notified().await;
    }
}

/// One stream's way to a milestone; dropped when it is there, or when the stream ends before.
#[derive(Debug)]
struct Pass<'m>(&'m Milestone);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let missing = self.0.missing.get().saturating_sub(1);
        self.0.missing.set(missing);
        if missing == 0 {
            self.0.reached.notify_one();
        }
    }
}
