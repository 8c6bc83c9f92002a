//! Figures of the engine: written by its thread, read by anybody at any time
//! without a lock. Also feeds the metrics.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::memory::Memory;
use crate::scheduler::{Entry, JobId, Work};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// The figures themselves.
#[derive(Debug)]
pub(crate) struct Stats {
    /// The bits of an `f32` from 0 to 1.
    load_progress: AtomicU32,
    running: AtomicU32,
    steps: AtomicU64,
    batch_requests_max: AtomicU32,
    /// Whether a step is being computed now.
    stepping: AtomicBool,
    /// The job that has the running step for itself; 0 for none.
    sole_job: AtomicU64,
    meters: Meters,
}

/// What the figures were at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) load_progress: f32,
    pub(crate) slots_total: u32,
    pub(crate) slots_available: u32,
    pub(crate) requests_running: u32,
    pub(crate) requests_waiting: u32,
    /// All requests that have not ended.
    pub(crate) requests_inside: u32,
    pub(crate) engine_steps: u64,
    pub(crate) batch_requests_max: u32,
    /// Whether a step is being computed now.
    pub(crate) stepping: bool,
}

/// How a request ended; of the outcomes of its choices, the last one here counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Embedded,
    Stop,
    Length,
    Cancelled,
    Failed,
}

impl Outcome {
    const ALL: [Self; 5] =
        [Self::Embedded, Self::Stop, Self::Length, Self::Cancelled, Self::Failed];

    /// The word that stands in the metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// What one finished job took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobTimes {
    pub(crate) prompt_tokens: u32,
    /// Of those, the ones that were not computed.
    pub(crate) cached_tokens: u32,
    pub(crate) generated_tokens: u32,
    /// From the first token to the last.
    pub(crate) generation: Duration,
}

/// What one step computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepFigures {
    pub(crate) requests: u32,
    pub(crate) stream_tokens: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) took: Duration,
}

impl StepFigures {
    pub(super) fn of(entries: &[Entry], took: Duration) -> Self {
        let requests = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let mut figures = Self { requests, stream_tokens: 0, prompt_tokens: 0, took };
        for entry in entries {
            match entry.work {
                Work::Prefill { len, .. } => figures.prompt_tokens += len,
                Work::Decode { draft } => figures.stream_tokens += 1 + draft,
            }
        }
        figures
    }
}

impl Stats {
    pub(crate) fn new() -> Self {
        Self {
            load_progress: AtomicU32::new(0),
            running: AtomicU32::new(0),
            steps: AtomicU64::new(0),
            batch_requests_max: AtomicU32::new(0),
            stepping: AtomicBool::new(false),
            sole_job: AtomicU64::new(0),
            meters: Meters::register(),
        }
    }

    pub(crate) fn snapshot(&self, slots: u32, inside: u32) -> Snapshot {
        let running = self.running.load(Ordering::Relaxed);
        let waiting = inside.saturating_sub(running);
        self.meters.running.set(running);
        self.meters.waiting.set(waiting);
        Snapshot {
            load_progress: f32::from_bits(self.load_progress.load(Ordering::Relaxed)),
            slots_total: slots,
            slots_available: slots.saturating_sub(inside),
            requests_running: running,
            requests_waiting: waiting,
            requests_inside: inside,
            engine_steps: self.steps.load(Ordering::Relaxed),
            batch_requests_max: self.batch_requests_max.load(Ordering::Relaxed),
            stepping: self.stepping.load(Ordering::Relaxed),
        }
    }

    pub(super) fn set_load_progress(&self, share: f32) {
        self.load_progress.store(share.to_bits(), Ordering::Relaxed);
    }

    pub(super) fn set_running(&self, running: usize) {
        self.running.store(u32::try_from(running).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// `sole` is the job that has the step for itself.
    pub(super) fn step_begins(&self, sole: Option<JobId>) {
        self.sole_job.store(sole.map_or(0, |job| job.0), Ordering::Relaxed);
        self.stepping.store(true, Ordering::Relaxed);
    }

    /// Whether the running step is computed for nobody but `job`.
    pub(super) fn is_sole(&self, job: JobId) -> bool {
        self.sole_job.load(Ordering::Relaxed) == job.0
    }

    pub(super) fn step_ended(&self, figures: StepFigures) {
        self.sole_job.store(0, Ordering::Relaxed);
        self.stepping.store(false, Ordering::Relaxed);
        self.steps.fetch_add(1, Ordering::Relaxed);
        self.batch_requests_max.fetch_max(figures.requests, Ordering::Relaxed);
        self.meters.steps.increment(1);
        self.meters.step_requests.increment(u64::from(figures.requests));
        let tokens = u64::from(figures.stream_tokens) + u64::from(figures.prompt_tokens);
        self.meters.step_tokens.increment(tokens);
        self.meters.step_time.record(figures.took.as_secs_f64());
    }

    /// What the engine thread did around a step: planning, choosing, sending.
    pub(super) fn step_overhead(&self, took: Duration) {
        self.meters.step_overhead.record(took.as_secs_f64());
    }

    /// Counts the guessed tokens of one step, and those that were right.
    pub(super) fn drafted(&self, guessed: u32, right: usize) {
        self.meters.draft_tokens.increment(u64::from(guessed));
        self.meters.draft_tokens_accepted.increment(right as u64);
    }

    pub(super) fn preempted(&self) {
        self.meters.preemptions.increment(1);
    }

    pub(super) fn set_memory(&self, memory: &Memory) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        let (tokens, bytes) = (memory.tokens_held() as f64, memory.stored_bytes() as f64);
        self.meters.context_tokens.set(tokens);
        self.meters.stored_bytes.set(bytes);
    }

    /// Counts inputs that were embedded or scored.
    pub(super) fn inputs_computed(&self, inputs: usize) {
        self.meters.inputs.increment(inputs as u64);
    }

    pub(super) fn admitted(&self, waited: Duration) {
        self.meters.queue_time.record(waited.as_secs_f64());
    }

    pub(super) fn first_token(&self, since_submitted: Duration) {
        self.meters.first_token_time.record(since_submitted.as_secs_f64());
        self.meters.gen_ai_first_token_time.record(since_submitted.as_secs_f64());
    }

    /// Counts the tokens of a job that ended.
    pub(super) fn job_ended(&self, times: JobTimes) {
        self.meters.prompt_tokens.increment(u64::from(times.prompt_tokens));
        self.meters.cached_tokens.increment(u64::from(times.cached_tokens));
        self.meters.generated_tokens.increment(u64::from(times.generated_tokens));
        if times.generated_tokens > 1 {
            let each = times.generation.as_secs_f64() / f64::from(times.generated_tokens - 1);
            self.meters.token_time.record(each);
            self.meters.gen_ai_token_time.record(each);
        }
    }

    /// Counts a request whose last job ended.
    pub(super) fn request_ended(&self, outcome: Outcome, since_submitted: Duration) {
        counter!("rbee_worker_requests_total", "outcome" => outcome.as_str()).increment(1);
        self.meters.gen_ai_request_time.record(since_submitted.as_secs_f64());
    }
}

/// Handles of the metrics, looked up once.
struct Meters {
    running: Gauge,
    waiting: Gauge,
    steps: Counter,
    step_requests: Counter,
    step_tokens: Counter,
    step_time: Histogram,
    step_overhead: Histogram,
    draft_tokens: Counter,
    draft_tokens_accepted: Counter,
    preemptions: Counter,
    context_tokens: Gauge,
    stored_bytes: Gauge,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    generated_tokens: Counter,
    inputs: Counter,
    queue_time: Histogram,
    first_token_time: Histogram,
    token_time: Histogram,
    // The same under the names that OpenTelemetry gives them for all servers.
    gen_ai_first_token_time: Histogram,
    gen_ai_token_time: Histogram,
    gen_ai_request_time: Histogram,
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}

impl Meters {
    fn register() -> Self {
        for outcome in Outcome::ALL {
            counter!("rbee_worker_requests_total", "outcome" => outcome.as_str()).absolute(0);
        }
        Self {
            running: gauge!("rbee_worker_requests_running"),
            waiting: gauge!("rbee_worker_requests_waiting"),
            steps: counter!("rbee_worker_engine_steps_total"),
            step_requests: counter!("rbee_worker_step_requests_total"),
            step_tokens: counter!("rbee_worker_step_tokens_total"),
            step_time: histogram!("rbee_worker_step_seconds"),
            step_overhead: histogram!("rbee_worker_step_overhead_seconds"),
            draft_tokens: counter!("rbee_worker_draft_tokens_total"),
            draft_tokens_accepted: counter!("rbee_worker_draft_tokens_accepted_total"),
            preemptions: counter!("rbee_worker_preemptions_total"),
            context_tokens: gauge!("rbee_worker_context_tokens"),
            stored_bytes: gauge!("rbee_worker_stored_state_bytes"),
            prompt_tokens: counter!("rbee_worker_prompt_tokens_total"),
            cached_tokens: counter!("rbee_worker_cached_prompt_tokens_total"),
            generated_tokens: counter!("rbee_worker_generated_tokens_total"),
            inputs: counter!("rbee_worker_inputs_total"),
            queue_time: histogram!("rbee_worker_queue_seconds"),
            first_token_time: histogram!("rbee_worker_time_to_first_token_seconds"),
            token_time: histogram!("rbee_worker_time_per_output_token_seconds"),
            gen_ai_first_token_time: histogram!("gen_ai_server_time_to_first_token_seconds"),
            gen_ai_token_time: histogram!("gen_ai_server_time_per_output_token_seconds"),
            gen_ai_request_time: histogram!("gen_ai_server_request_duration_seconds"),
        }
    }
}
