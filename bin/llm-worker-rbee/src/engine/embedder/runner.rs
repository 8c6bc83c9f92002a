//! The loop of the engine thread for models that give one result for each
//! input: take requests in, have `turns` decide a step, have the backend compute
//! it, hand out what is complete. Looks at deadlines and gone clients before
//! every step.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rbee_api::error::{ErrorCode, ErrorDetail};
use tokio::time::Instant;

use super::turns::{Entry, Turns};
use super::{Backend, Job};
use crate::engine::backend::StepError;
use crate::engine::runner::Control;
use crate::engine::stats::{JobTimes, Outcome, Stats, StepFigures};
use crate::engine::{Command, EngineEnd};
use crate::error::EngineFailure;
use crate::scheduler::JobId;

/// A request inside the engine.
struct Active {
    job: Job,
    /// One result for each input; empty until it is computed.
    results: Vec<Vec<f32>>,
}

/// Why a request ends.
enum Cause {
    Complete,
    Failed(ErrorDetail),
    ReaderGone,
}

/// The state of the engine thread.
pub(in crate::engine) struct Runner {
    backend: Box<dyn Backend>,
    turns: Turns,
    jobs: HashMap<JobId, Active>,
    control: Control,
    stats: Arc<Stats>,
    /// Reused between steps.
    entries: Vec<Entry>,
}

impl Runner {
    pub(in crate::engine) fn new(
        backend: Box<dyn Backend>,
        slots: u32,
        control: Control,
        stats: Arc<Stats>,
    ) -> Self {
        let turns = Turns::new(slots, backend.limits());
        Self { backend, turns, jobs: HashMap::new(), control, stats, entries: Vec::new() }
    }

    /// Runs until told to stop, or until nothing more can be computed. Requests
    /// that are inside then are dropped; their readers see the channel close.
    pub(in crate::engine) fn run(mut self) -> EngineEnd {
        loop {
            self.take_commands();
            if self.control.stopping.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.end_expired();
            self.end_abandoned();
            self.admit();
            let mut entries = std::mem::take(&mut self.entries);
            self.turns.plan(&mut entries);
            let outcome = if entries.is_empty() { Ok(()) } else { self.step(&entries) };
            self.entries = entries;
            self.stats.set_running(self.turns.running_len());
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
        }
        while let Ok(command) = self.control.inbox.try_recv() {
            self.take(command);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Embed(job) => {
                let length = |input: &Vec<u32>| u32::try_from(input.len()).unwrap_or(u32::MAX);
                let lengths: Vec<u32> = job.inputs.iter().map(length).collect();
                let results = vec![Vec::new(); lengths.len()];
                self.turns.add(job.id, lengths, job.deadline.instant());
                self.jobs.insert(job.id, Active { job: *job, results });
            }
            Command::Submit(job) => {
                // Nobody gets a job to generate past the model's kind.
                tracing::error!(job = job.id.0, "a job to generate reached an embedding model");
            }
            // What it is for is in `stopping`.
            Command::Stop => {}
        }
    }

    fn end_expired(&mut self) {
        let mut ending = Vec::new();
        self.turns.expired(Instant::now(), &mut ending);
        for id in ending {
            let message = "the time for this request is over";
            let detail = ErrorDetail::new(ErrorCode::DeadlineExceeded, message);
            self.end(id, Cause::Failed(detail));
        }
    }

    fn end_abandoned(&mut self) {
        let abandoned = self.jobs.iter().filter(|(_, active)| active.job.reply.is_closed());
        let ending: Vec<JobId> = abandoned.map(|(id, _)| *id).collect();
        for id in ending {
            self.end(id, Cause::ReaderGone);
        }
    }

    fn admit(&mut self) {
        let mut admitted = Vec::new();
        self.turns.admit(&mut admitted);
        for active in admitted.iter().filter_map(|id| self.jobs.get(id)) {
            self.stats.admitted(active.job.submitted_at.elapsed());
        }
        self.stats.set_running(self.turns.running_len());
    }

    fn step(&mut self, entries: &[Entry]) -> EngineEnd {
        let (requests, sole) = requests_of(entries);
        let inputs: Vec<&[u32]> =
            entries.iter().map(|entry| input_of(&self.jobs, *entry)).collect();
        let tokens = inputs.iter().map(|input| input.len()).sum::<usize>();
        self.stats.step_begins(sole);
        let computing = Instant::now();
        let outcome = self.backend.compute(&inputs);
        self.stats.step_ended(StepFigures {
            requests: u32::try_from(requests).unwrap_or(u32::MAX),
            stream_tokens: 0,
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            took: computing.elapsed(),
        });
        match outcome {
            Ok(results) => {
                self.keep(entries, results);
                Ok(())
            }
            // Whoever wanted it is found at the beginning of the next round.
            Err(StepError::Interrupted) => {
                if let Some(interrupt) = &self.control.interrupt {
                    interrupt.allow();
                }
                Ok(())
            }
            // The memory is empty before every step, so the next would not fit either.
            Err(error @ (StepError::NoRoom | StepError::Fatal { .. })) => {
                Err(EngineFailure::Computation { reason: error.to_string() })
            }
        }
    }

    /// Puts results where they belong and ends the requests that are complete.
    fn keep(&mut self, entries: &[Entry], results: Vec<Vec<f32>>) {
        self.stats.inputs_computed(entries.len());
        for (entry, result) in entries.iter().zip(results) {
            let place = self.jobs.get_mut(&entry.job);
            if let Some(place) = place.and_then(|active| active.results.get_mut(entry.input)) {
                *place = result;
            }
        }
        let mut complete = Vec::new();
        self.turns.commit(&mut complete);
        for id in complete {
            self.end(id, Cause::Complete);
        }
    }

    /// Takes a request out and tells its reader.
    fn end(&mut self, id: JobId, cause: Cause) {
        self.turns.remove(id);
        self.stats.set_running(self.turns.running_len());
        let Some(active) = self.jobs.remove(&id) else { return };
        self.stats.job_ended(active.times());
        self.stats.request_ended(cause.outcome(), active.job.submitted_at.elapsed());
        let Active { job, results } = active;
        let reply = match cause {
            Cause::Complete => Ok(results),
            Cause::Failed(detail) => Err(detail),
            Cause::ReaderGone => return,
        };
        if job.reply.send(reply).is_err() {
            tracing::debug!("a reader left before the end");
        }
    }
}

fn input_of(jobs: &HashMap<JobId, Active>, entry: Entry) -> &[u32] {
    let active = jobs.get(&entry.job);
    active.and_then(|active| active.job.inputs.get(entry.input)).map_or(&[], Vec::as_slice)
}

/// How many requests share a step, and which one has it for itself.
fn requests_of(entries: &[Entry]) -> (usize, Option<JobId>) {
    let mut jobs: Vec<JobId> = entries.iter().map(|entry| entry.job).collect();
    jobs.sort_unstable();
    jobs.dedup();
    match jobs.as_slice() {
        [sole] => (1, Some(*sole)),
        many => (many.len(), None),
    }
}

impl Cause {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Complete => Outcome::Embedded,
            Self::Failed(_) => Outcome::Failed,
            Self::ReaderGone => Outcome::Cancelled,
        }
    }
}

impl Active {
    fn times(&self) -> JobTimes {
        let tokens = self.job.inputs.iter().map(Vec::len).sum::<usize>();
        JobTimes {
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            cached_tokens: 0,
            generated_tokens: 0,
            generation: std::time::Duration::ZERO,
        }
    }
}
