//! The engine thread's loop: take jobs in, have the scheduler decide a step,
//! have the backend compute it, hand the new text out. Chooses nothing itself
//! and never waits for a reader.

mod active;
mod inbox;
mod keeping;
mod replay;
mod slots;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::FinishReason;
use tokio::time::Instant;

use super::backend::{Backend, Generator, Interrupt, Run, Speculation, StepError};
use super::disk::Disk;
use super::memory::Memory;
use super::pace::{DRAFT_MAX, Pace};
use super::stats::{Stats, StepFigures};
use super::{Command, EngineEnd};
use crate::error::EngineFailure;
use crate::scheduler::{Entry, JobId, Limits, Place, Reader, Scheduler, Work};
use active::{Active, Cause, Delta, no_token};

/// Tokens in one step: what llama.cpp computes in one piece, so that a longer
/// step would only make a cancelled prompt take longer to notice it.
pub(super) const STEP_TOKENS: u32 = 512;

/// What reaches the engine thread from outside.
pub(super) struct Control {
    pub(super) inbox: Receiver<Command>,
    pub(super) stopping: Arc<AtomicBool>,
    /// Until when states may still be written to disk after a stop.
    pub(super) keep_until: Arc<OnceLock<Instant>>,
    pub(super) interrupt: Option<Arc<dyn Interrupt>>,
}

/// The state of the engine thread.
pub(super) struct Runner {
    backend: Box<dyn Backend>,
    scheduler: Scheduler,
    memory: Memory,
    /// Where states outlive the worker.
    disk: Option<Box<Disk>>,
    /// Since when nothing has been asked of the engine.
    idle_since: Instant,
    speculation: Speculation,
    pace: Pace,
    jobs: HashMap<JobId, Active>,
    control: Control,
    stats: Arc<Stats>,
    /// Whether a job had to give way since the last one ended: as long as
    /// nobody leaves, there is no room for it.
    is_full: bool,
    /// Steps that the busy slots have had a gap between them.
    steps_with_gap: u32,
    /// Reused between steps.
    entries: Vec<Entry>,
    ending: Vec<JobId>,
    /// The tokens of the step, and where each entry's stand.
    tokens: Vec<u32>,
    spans: Vec<Span>,
}

/// The tokens of one entry.
#[derive(Debug)]
struct Span {
    /// Tokens that the slot holds before them.
    position: u32,
    /// Where they stand among those of the step.
    range: Range<usize>,
}

impl Runner {
    pub(super) fn new(generator: Generator, control: Control, stats: Arc<Stats>) -> Self {
        let Generator { backend, memory, disk, speculation } = generator;
        let limits = Limits { slots: memory.slots, step_tokens: STEP_TOKENS };
        let mut memory = Memory::new(memory);
        memory.set_disk(disk.is_some());
        Self {
            backend,
            scheduler: Scheduler::new(limits),
            memory,
            disk,
            idle_since: Instant::now(),
            speculation,
            pace: Pace::new(),
            jobs: HashMap::new(),
            control,
            stats,
            is_full: false,
            steps_with_gap: 0,
            entries: Vec::new(),
            ending: Vec::new(),
            tokens: Vec::new(),
            spans: Vec::new(),
        }
    }

    /// Runs until told to stop, or until nothing more can be computed. Jobs
    /// that are inside then are dropped; their readers see the channel close.
    pub(super) fn run(mut self) -> EngineEnd {
        loop {
            self.stats.set_memory(&self.memory);
            self.take_commands();
            self.take_news();
            if self.control.stopping.load(Ordering::Relaxed) {
                self.keep_all();
                return Ok(());
            }
            let began = Instant::now();
            self.end_expired(began);
            self.end_abandoned();
            self.watch_readers();
            self.give_slots();
            self.end_reads();
            self.close_gap();
            self.hurry_replays();
            self.draft();
            self.plan(began);
            self.stats.set_running(self.scheduler.running_len());
            if !self.entries.is_empty() {
                self.step(began)?;
            }
        }
    }

    fn end_expired(&mut self, now: Instant) {
        let mut ending = std::mem::take(&mut self.ending);
        self.scheduler.expired(now, &mut ending);
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

    /// Guesses on for a stream that is alone: beside others, the processor has
    /// enough to do with what is certain.
    fn draft(&mut self) {
        let pace = match self.speculation {
            Speculation::Off => return,
            Speculation::Auto => Some(&self.pace),
            Speculation::Always => None,
        };
        let Some(slot) = self.scheduler.lone_stream() else { return };
        let active = self.scheduler.job_in(slot).and_then(|id| self.jobs.get_mut(&id));
        let Some(active) = active.filter(|active| !active.retraces()) else { return };
        // The token after the guessed ones is one of the reply too.
        let room = active.tokens_left().saturating_sub(1).min(DRAFT_MAX);
        let forced = active.job.sampler.forced_tokens();
        let len = if forced.is_empty() {
            active.drafts.guess(&active.tokens, room, pace)
        } else {
            active.drafts.expect(&forced, room, pace)
        };
        self.scheduler.set_draft(slot, len);
    }

    fn plan(&mut self, now: Instant) {
        let (streams, prompts) = self.scheduler.load();
        let budget = self.pace.budget(streams, prompts, now);
        self.scheduler.plan(budget, &mut self.entries);
    }

    fn step(&mut self, began: Instant) -> EngineEnd {
        let entries = std::mem::take(&mut self.entries);
        self.gather(&entries);
        let runs = runs(&entries, &self.spans, &self.tokens);
        let sole = match entries.as_slice() {
            [entry] => Some(entry.job),
            _ => None,
        };
        self.stats.step_begins(sole);
        let computing = Instant::now();
        let outcome = self.backend.step(&runs);
        let took = computing.elapsed();
        drop(runs);
        let figures = StepFigures::of(&entries, took);
        self.stats.step_ended(figures);
        let outcome = match outcome {
            Ok(()) => {
                self.pace.observe(figures.stream_tokens, figures.prompt_tokens, took);
                self.scheduler.commit(&entries);
                self.hand_out(&entries);
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
        };
        self.entries = entries;
        self.stats.step_overhead(began.elapsed().saturating_sub(took));
        outcome
    }

    /// Lays the tokens of the step out one after the other.
    fn gather(&mut self, entries: &[Entry]) {
        self.tokens.clear();
        self.spans.clear();
        for entry in entries {
            let begin = self.tokens.len();
            let mut position = 0;
            if let Some(active) = self.jobs.get(&entry.job) {
                match entry.work {
                    Work::Prefill { from, len, .. } => {
                        position = from;
                        let part = active.tokens.iter().skip(from as usize).take(len as usize);
                        self.tokens.extend(part);
                    }
                    Work::Decode { draft } => {
                        position = active.tokens_held();
                        self.tokens.extend(active.next_token());
                        self.tokens.extend(active.drafts.draft().iter().take(draft as usize));
                    }
                }
            }
            self.spans.push(Span { position, range: begin..self.tokens.len() });
        }
    }

    /// Chooses the new tokens and sends their text.
    fn hand_out(&mut self, entries: &[Entry]) {
        for (run, entry) in entries.iter().enumerate() {
            let cause = match entry.work {
                Work::Prefill { completes, .. } => {
                    let range = self.spans.get(run).map(|span| span.range.clone());
                    let tokens = range.and_then(|range| self.tokens.get(range));
                    self.memory.prefilled(entry.slot, tokens.unwrap_or_default());
                    if completes { self.hand_out_run(run, entry) } else { None }
                }
                Work::Decode { .. } => self.hand_out_run(run, entry),
            };
            if let Some(cause) = cause {
                self.end(entry.job, cause);
            }
        }
    }

    /// Chooses as many tokens as the guesses were right, and one more.
    fn hand_out_run(&mut self, run: usize, entry: &Entry) -> Option<Cause> {
        if self.retrace(entry) {
            return None;
        }
        let active = self.jobs.get_mut(&entry.job)?;
        let position = active.tokens.len();
        let mut delta = Delta::default();
        let mut cause = None;
        let mut hits = 0;
        let guesses = entry.work.guesses();
        for output in 0..entry.work.outputs() {
            let Some(token) = self.backend.choose(run, output, &mut active.job.sampler) else {
                cause = Some(Cause::Failed(no_token(active.job.sampler.failure())));
                break;
            };
            if self.backend.is_end(entry.slot, token) {
                cause = Some(Cause::Finished(FinishReason::Stop));
                break;
            }
            active.tokens.push(token);
            cause = active.advance(self.backend.piece(entry.slot, token), &mut delta, &self.stats);
            let guessed = output < guesses && active.drafts.draft().get(hits) == Some(&token);
            hits += usize::from(guessed);
            if cause.is_some() || !guessed {
                break;
            }
        }
        let cause = active.send(delta).or(cause);
        if let Work::Decode { .. } = entry.work {
            // The last token before, and the guesses that were right.
            let held = position.saturating_sub(1)..position + hits;
            self.memory.extend(entry.slot, active.tokens.get(held).unwrap_or_default());
            if guesses > 0 {
                active.drafts.learn(hits);
                self.stats.drafted(guesses, hits);
                let len = u32::try_from(position + hits).unwrap_or(u32::MAX);
                if let Err(error) = self.backend.cut(entry.slot, len) {
                    tracing::error!(%error, "a guess could not be taken back");
                    self.memory.forget(entry.slot);
                    let message = "the worker lost the state of this request";
                    return Some(Cause::Failed(ErrorDetail::new(ErrorCode::WorkerFailed, message)));
                }
            }
        }
        cause
    }

    /// Takes a job out, frees its slot and tells its reader. What the slot
    /// holds stays for others to go on from.
    fn end(&mut self, id: JobId, cause: Cause) {
        if let Some(Place::Slot(slot)) = self.scheduler.remove(id) {
            self.memory.end(slot);
            self.is_full = false;
        }
        self.stats.set_running(self.scheduler.running_len());
        self.idle_since = Instant::now();
        let Some(active) = self.jobs.remove(&id) else { return };
        self.stats.job_ended(active.times());
        if let Some((outcome, took)) = active.job.request.ended(cause.outcome()) {
            self.stats.request_ended(outcome, took);
        }
        active.tell_end(cause);
    }
}

/// The runs of a step, one for each entry.
fn runs<'a>(entries: &[Entry], spans: &[Span], tokens: &'a [u32]) -> Vec<Run<'a>> {
    let runs = entries.iter().zip(spans).map(|(entry, span)| Run {
        slot: entry.slot,
        position: span.position,
        tokens: tokens.get(span.range.clone()).unwrap_or_default(),
        outputs: entry.work.outputs(),
    });
    runs.collect()
}
