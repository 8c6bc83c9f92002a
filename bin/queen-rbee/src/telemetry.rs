//! The queen's own metrics: every name, and what is recorded under it. Labels
//! are bounded: a model is named only if some machine has it.

use std::time::Duration;

use rbee_api::hive::HiveState;

use crate::cluster::{Cluster, UNKNOWN_MODEL};
use crate::keys::Tokens;

/// Starts of the local hive's process.
const HIVE_STARTS: &str = "rbee_queen_hive_starts_total";
/// Machines by state.
const HIVES: &str = "rbee_queen_hives";
/// Decisions of placement by kind.
const PLACEMENTS: &str = "rbee_queen_placements_total";
/// Requests for tokens that are being placed or forwarded.
const REQUESTS_RUNNING: &str = "rbee_queen_requests_running";
/// Requests for tokens that ended, by model and outcome.
const REQUESTS: &str = "rbee_queen_requests_total";
/// Attempts that failed, by code.
const RETRIES: &str = "rbee_queen_failed_attempts_total";
/// Failed attempts that were tried again, or not because the budget was spent.
const RETRY_BUDGET: &str = "rbee_queen_retries_total";
/// Streams whose worker ended before they did, by what became of them.
const CONTINUATIONS: &str = "rbee_queen_continuations_total";
/// From the end of a stream's worker to the next events of the stream.
const CONTINUATION_GAP: &str = "rbee_queen_continuation_gap_seconds";
/// From the arrival of a request to the choice of its worker.
const WAIT: &str = "rbee_queen_wait_seconds";
/// From the arrival of a request to the first byte of the worker's reply.
const FIRST_BYTE: &str = "rbee_queen_time_to_first_byte_seconds";
/// From the arrival of a request to the first token of its stream.
const FIRST_TOKEN: &str = "gen_ai_server_time_to_first_token_seconds";
/// From the arrival of a request to its end.
const DURATION: &str = "gen_ai_server_request_duration_seconds";

/// Requests that wait for their turn, by model.
const QUEUE_WAITING: &str = "rbee_queen_queue_waiting";
/// From the place in the queue to the turn, by model.
const QUEUE_WAIT: &str = "rbee_queen_queue_wait_seconds";
/// Bytes of the requests that wait and run.
const QUEUE_BYTES: &str = "rbee_queen_queue_bytes";
/// Requests that were not let wait or waited in vain, by reason.
const QUEUE_REFUSED: &str = "rbee_queen_queue_refused_total";

/// Requests that were let in, by key.
const KEY_REQUESTS: &str = "rbee_queen_key_requests_total";
/// Requests that a limit of their key refused.
const KEY_REFUSED: &str = "rbee_queen_key_refused_total";
/// Requests at this moment, under all keys.
const KEY_RUNNING: &str = "rbee_queen_key_requests_running";
/// Tokens, by key and kind.
const KEY_TOKENS: &str = "rbee_queen_key_tokens_total";

/// What a finished request is counted under.
#[derive(Debug, Clone)]
pub(crate) struct RequestLabels {
    /// The model's name, once some machine was found to have it.
    pub(crate) model: Option<String>,
    /// The kind of request, as OpenTelemetry names it.
    pub(crate) operation: &'static str,
}

impl RequestLabels {
    fn model(&self) -> String {
        self.model.clone().unwrap_or_else(|| UNKNOWN_MODEL.to_owned())
    }
}

pub(crate) fn hive_started() {
    metrics::counter!(HIVE_STARTS).increment(1);
}

pub(crate) fn decided(decision: &'static str) {
    metrics::counter!(PLACEMENTS, "decision" => decision).increment(1);
}

pub(crate) fn attempt_failed(code: &'static str) {
    metrics::counter!(RETRIES, "code" => code).increment(1);
}

pub(crate) fn retry(is_paid: bool) {
    let outcome = if is_paid { "tried" } else { "over_budget" };
    metrics::counter!(RETRY_BUDGET, "outcome" => outcome).increment(1);
}

/// What became of a stream whose worker ended before it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Continuation {
    /// Another worker went on.
    Continued {
        /// How long the client heard nothing.
        gap: Duration,
    },
    /// Nobody could go on in time.
    TimedOut,
    /// Nobody may go on: no worker or machine with the file is left, or too many failed.
    Refused,
    /// The reply was too long to be remembered, or it is switched off.
    Impossible,
}

pub(crate) fn continuation(outcome: Continuation) {
    let label = match outcome {
        Continuation::Continued { gap } => {
            metrics::histogram!(CONTINUATION_GAP).record(gap.as_secs_f64());
            "continued"
        }
        Continuation::TimedOut => "timed_out",
        Continuation::Refused => "refused",
        Continuation::Impossible => "impossible",
    };
    metrics::counter!(CONTINUATIONS, "outcome" => label).increment(1);
}

pub(crate) fn request_began() {
    metrics::gauge!(REQUESTS_RUNNING).increment(1.0);
}

pub(crate) fn placed(after: Duration) {
    metrics::histogram!(WAIT).record(after.as_secs_f64());
}

pub(crate) fn first_byte(after: Duration) {
    metrics::histogram!(FIRST_BYTE).record(after.as_secs_f64());
}

pub(crate) fn first_token(labels: &RequestLabels, after: Duration) {
    metrics::histogram!(FIRST_TOKEN, "model" => labels.model(), "operation" => labels.operation)
        .record(after.as_secs_f64());
}

pub(crate) fn request_ended(labels: &RequestLabels, code: &'static str, after: Duration) {
    metrics::gauge!(REQUESTS_RUNNING).decrement(1.0);
    metrics::counter!(REQUESTS, "model" => labels.model(), "code" => code).increment(1);
    metrics::histogram!(DURATION, "model" => labels.model(), "operation" => labels.operation, "code" => code)
        .record(after.as_secs_f64());
}

/// `model` is the name of a line, of which there is one for each known model.
pub(crate) fn queue_grew(model: &str) {
    metrics::gauge!(QUEUE_WAITING, "model" => model.to_owned()).increment(1.0);
}

pub(crate) fn queue_shrank(model: &str) {
    metrics::gauge!(QUEUE_WAITING, "model" => model.to_owned()).decrement(1.0);
}

pub(crate) fn queue_left(model: &str, after: Duration) {
    metrics::histogram!(QUEUE_WAIT, "model" => model.to_owned()).record(after.as_secs_f64());
}

pub(crate) fn queue_refused(reason: &'static str) {
    metrics::counter!(QUEUE_REFUSED, "reason" => reason).increment(1);
}

/// `key` is a label: a name of ours, of which there are few, or `other`.
pub(crate) fn key_request(key: &str) {
    metrics::counter!(KEY_REQUESTS, "key" => key.to_owned()).increment(1);
}

pub(crate) fn key_refused(key: &str, limit: &'static str) {
    metrics::counter!(KEY_REFUSED, "key" => key.to_owned(), "limit" => limit).increment(1);
}

pub(crate) fn key_tokens(key: &str, tokens: Tokens) {
    let Tokens { prompt, cached, completion } = tokens;
    for (kind, tokens) in [("prompt", prompt), ("cached", cached), ("completion", completion)] {
        if tokens > 0 {
            metrics::counter!(KEY_TOKENS, "key" => key.to_owned(), "kind" => kind)
                .increment(tokens);
        }
    }
}

/// Sets the gauges that are read off the cluster and the queue; to be called at
/// each scrape.
pub(crate) fn scraped(cluster: &Cluster, queue_bytes: u64, key_requests: u32) {
    metrics::gauge!(KEY_RUNNING).set(key_requests);
    // Exact up to 2^53.
    metrics::gauge!(QUEUE_BYTES).set(queue_bytes as f64);
    for state in HiveState::ALL {
        let count = cluster.hives.iter().filter(|hive| hive.state() == *state).count();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        metrics::gauge!(HIVES, "state" => state.as_str()).set(count);
    }
}
