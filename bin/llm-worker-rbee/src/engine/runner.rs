//! The engine thread's loop: take jobs in, have the scheduler decide a step,
//! have the backend compute it, hand the new text out. Chooses nothing itself
//! and never waits for a reader.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::{FinishReason, Usage};
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::backend::{Backend, Interrupt, StepError};
use super::stats::{JobTimes, Stats};
use super::{Command, End, EngineEnd, Event, Job};
use crate::error::EngineFailure;
use crate::sampler::constraint::ConstraintError;
use crate::scheduler::{JobId, Limits, Place, Plan, Reader, Scheduler};
use crate::text::{Flow, LogprobQueue};

/// Tokens in one step: what llama.cpp computes in one piece, so that a longer
/// step would only make a cancelled prompt take longer to notice it.
pub(super) const STEP_TOKENS: u32 = 512;
/// Prompt tokens beside running streams. Half a step bounds the pause of the
/// streams, and is enough that reading the weights twice costs little.
const PROMPT_TOKENS_BESIDE_STREAMS: u32 = 256;
/// How often jobs are looked at when all of their readers lag.
const LAG_POLL: Duration = Duration::from_millis(5);

/// A job inside the engine.
struct Active {
    job: Job,
    generated: u32,
    first_token_at: Option<Instant>,
    logprobs: LogprobQueue,
}

/// Why a job ends.
enum Cause {
    Finished(FinishReason),
    Failed(ErrorDetail),
    ReaderGone,
}

/// What reaches the engine thread from outside.
pub(super) struct Control {
    pub(super) inbox: Receiver<Command>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) interrupt: Option<Arc<dyn Interrupt>>,
}

/// The state of the engine thread.
pub(super) struct Runner {
    backend: Box<dyn Backend>,
    scheduler: Scheduler,
    jobs: HashMap<JobId, Active>,
    control: Control,
    stats: Arc<Stats>,
    /// Reused between steps.
    plan: Plan,
    ending: Vec<JobId>,
}

impl Runner {
    pub(super) fn new(
        backend: Box<dyn Backend>,
        slots: u32,
        control: Control,
        stats: Arc<Stats>,
    ) -> Self {
        let limits = Limits {
            slots,
            step_tokens: STEP_TOKENS,
            prompt_tokens_beside_streams: PROMPT_TOKENS_BESIDE_STREAMS,
        };
        Self {
            backend,
            scheduler: Scheduler::new(limits),
            jobs: HashMap::new(),
            control,
            stats,
            plan: Plan::default(),
            ending: Vec::new(),
        }
    }

    /// Runs until told to stop, or until nothing more can be computed. Jobs
    /// that are inside then are dropped; their readers see the channel close.
    pub(super) fn run(mut self) -> EngineEnd {
        loop {
            self.take_commands();
            if self.control.stopping.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.end_expired();
            self.end_abandoned();
            self.watch_readers();
            let mut plan = std::mem::take(&mut self.plan);
            self.scheduler.plan(&mut plan);
            self.begin(&plan.admitted);
            let outcome = if plan.entries.is_empty() { Ok(()) } else { self.step(&plan) };
            self.plan = plan;
            self.stats.set_running(self.scheduler.running_len());
            outcome?;
        }
    }

    /// Takes in what has come; waits for something while there is nothing to compute.
    fn take_commands(&mut self) {
        if self.jobs.is_empty() {
            match self.control.inbox.recv() {
                Ok(command) => self.take(command),
                Err(_) => self.control.stopping.store(true, Ordering::Relaxed),
            }
        } else if self.plan.entries.is_empty() {
            match self.control.inbox.recv_timeout(LAG_POLL) {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.control.stopping.store(true, Ordering::Relaxed);
                }
            }
        }
        while let Ok(command) = self.control.inbox.try_recv() {
            self.take(command);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Submit(job) => {
                let id = job.id;
                let prompt_tokens = u32::try_from(job.prompt.tokens.len()).unwrap_or(u32::MAX);
                self.scheduler.add(id, prompt_tokens, job.deadline.instant());
                let active = Active {
                    job: *job,
                    generated: 0,
                    first_token_at: None,
                    logprobs: LogprobQueue::default(),
                };
                self.jobs.insert(id, active);
            }
            // What it is for is in `stopping`.
            Command::Stop => {}
        }
    }

    fn end_expired(&mut self) {
        let mut ending = std::mem::take(&mut self.ending);
        self.scheduler.expired(Instant::now(), &mut ending);
        for id in ending.drain(..) {
            let message = "the time for this request is over";
            let detail = ErrorDetail::new(ErrorCode::DeadlineExceeded, message);
            self.end(id, Cause::Failed(detail));
        }
        self.ending = ending;
    }

    fn end_abandoned(&mut self) {
        let mut ending = std::mem::take(&mut self.ending);
        let abandoned = self.jobs.iter().filter(|(_, active)| active.job.events.is_closed());
        ending.extend(abandoned.map(|(id, _)| *id));
        for id in ending.drain(..) {
            self.end(id, Cause::ReaderGone);
        }
        self.ending = ending;
    }

    /// Leaves jobs out whose readers lag. One place in the channel is for the
    /// text of the next step, and one is kept for the end.
    fn watch_readers(&mut self) {
        for slot in 0..self.scheduler.slots() {
            let Some(id) = self.scheduler.job_in(slot) else { continue };
            let room = self.jobs.get(&id).map_or(0, |active| active.job.events.capacity());
            self.scheduler.set_reader(slot, if room < 2 { Reader::Lags } else { Reader::Keeps });
        }
    }

    fn begin(&mut self, admitted: &[(JobId, u32)]) {
        for (id, slot) in admitted {
            let Some(active) = self.jobs.get_mut(id) else { continue };
            self.backend.begin(*slot, &active.job.prompt);
            self.stats.admitted(active.job.submitted_at.elapsed());
        }
        self.stats.set_running(self.scheduler.running_len());
    }

    fn step(&mut self, plan: &Plan) -> EngineEnd {
        let sole = match plan.entries.as_slice() {
            [entry] => Some(entry.job),
            _ => None,
        };
        self.stats.step_begins(sole);
        let outcome = self.backend.step(&plan.entries);
        let tokens = plan.entries.iter().map(|entry| entry.work.tokens()).sum();
        self.stats.step_ended(plan.entries.len(), tokens);
        match outcome {
            Ok(()) => {
                self.scheduler.commit(&plan.entries);
                self.hand_out(plan);
                Ok(())
            }
            Err(StepError::NoRoom) => {
                self.give_way();
                Ok(())
            }
            // Whoever wanted it is found at the beginning of the next round.
            Err(StepError::Interrupted) => {
                if let Some(interrupt) = &self.control.interrupt {
                    interrupt.allow();
                }
                Ok(())
            }
            Err(StepError::Fatal { reason }) => Err(EngineFailure::Computation { reason }),
        }
    }

    /// Ends the youngest job, so that the others can go on.
    fn give_way(&mut self) {
        let Some(id) = self.scheduler.youngest() else { return };
        tracing::warn!("a request was ended: the context memory is full");
        let message = "the worker's context memory is full; try again shortly";
        self.end(id, Cause::Failed(ErrorDetail::new(ErrorCode::AllSlotsBusy, message)));
    }

    /// Chooses the new tokens and sends their text.
    fn hand_out(&mut self, plan: &Plan) {
        for (index, entry) in plan.entries.iter().enumerate() {
            if !entry.work.yields_token() {
                continue;
            }
            let Some(active) = self.jobs.get_mut(&entry.job) else { continue };
            let token = self.backend.choose(index, entry, &mut active.job.sampler);
            let cause = match token {
                None => Some(Cause::Failed(no_token(active.job.sampler.failure()))),
                Some(token) if self.backend.is_end(entry.slot, token) => {
                    Some(Cause::Finished(FinishReason::Stop))
                }
                Some(token) => active.advance(self.backend.piece(entry.slot, token), &self.stats),
            };
            if let Some(cause) = cause {
                self.end(entry.job, cause);
            }
        }
    }

    /// Takes a job out, frees its slot and tells its reader.
    fn end(&mut self, id: JobId, cause: Cause) {
        if let Some(Place::Slot(slot)) = self.scheduler.remove(id) {
            self.backend.release(slot);
        }
        self.stats.set_running(self.scheduler.running_len());
        let Some(active) = self.jobs.remove(&id) else { return };
        self.stats.ended(cause.outcome(), active.times());
        active.tell_end(cause);
    }
}

/// Why no token could be chosen: the request's own constraint, or the model.
fn no_token(failure: Option<&ConstraintError>) -> ErrorDetail {
    failure.cloned().map_or_else(
        || ErrorDetail::new(ErrorCode::WorkerFailed, "the model gave no result"),
        ConstraintError::into_detail,
    )
}

impl Cause {
    /// The word that stands in the metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Stop | FinishReason::ToolCalls) => "stop",
            Self::Finished(FinishReason::Length) => "length",
            Self::Failed(_) => "failed",
            Self::ReaderGone => "cancelled",
        }
    }
}

impl Active {
    /// Takes the bytes of one token in and says whether the job ends with it.
    fn advance(&mut self, bytes: &[u8], stats: &Stats) -> Option<Cause> {
        self.generated += 1;
        if self.first_token_at.is_none() {
            self.first_token_at = Some(Instant::now());
            stats.first_token(self.job.submitted_at.elapsed());
        }
        if let Some(logprobs) = self.job.sampler.take_logprobs() {
            self.logprobs.add(self.job.text.decoded_bytes(), logprobs);
        }
        let mut text = String::new();
        let flow = self.job.text.push(bytes, &mut text);
        if !text.is_empty() {
            let logprobs = self.logprobs.release(&text);
            match self.job.events.try_send(Event::Text { text, logprobs }) {
                Ok(()) => {}
                Err(TrySendError::Closed(_)) => return Some(Cause::ReaderGone),
                // A job without room in its channel is not computed.
                Err(TrySendError::Full(_)) => tracing::error!("text was lost: a channel is full"),
            }
        }
        match flow {
            Flow::Stopped => {
                self.logprobs.forget();
                Some(Cause::Finished(FinishReason::Stop))
            }
            Flow::GoesOn if self.job.sampler.is_complete() => {
                Some(Cause::Finished(FinishReason::Stop))
            }
            Flow::GoesOn if self.generated >= self.job.tokens_max => {
                Some(Cause::Finished(FinishReason::Length))
            }
            Flow::GoesOn => None,
        }
    }

    fn times(&self) -> JobTimes {
        JobTimes {
            prompt_tokens: self.prompt_tokens(),
            generated_tokens: self.generated,
            total: self.job.submitted_at.elapsed(),
            generation: self.first_token_at.map(|at| at.elapsed()).unwrap_or_default(),
        }
    }

    fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.job.prompt.tokens.len()).unwrap_or(u32::MAX)
    }

    fn tell_end(mut self, cause: Cause) {
        let end = match cause {
            Cause::Finished(reason) => self.finished(reason),
            Cause::Failed(detail) => End::Failed(Box::new(detail)),
            Cause::ReaderGone => return,
        };
        if let Err(error) = self.job.events.try_send(Event::End(end)) {
            tracing::debug!(%error, "a reader left before the end");
        }
    }

    fn finished(&mut self, reason: FinishReason) -> End {
        let mut text = String::new();
        // The last of the text can still complete a stop sequence.
        let (reason, logprobs) = match self.job.text.finish(&mut text) {
            Flow::Stopped => (FinishReason::Stop, self.logprobs.release(&text)),
            Flow::GoesOn => (reason, self.logprobs.release_all(&text)),
        };
        let prompt_tokens = self.prompt_tokens();
        let usage = Usage {
            prompt_tokens,
            completion_tokens: self.generated,
            total_tokens: prompt_tokens.saturating_add(self.generated),
        };
        End::Finished { text, logprobs, reason, usage }
    }
}
