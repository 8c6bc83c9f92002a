//! The engine as the rest of the worker sees it: a job goes in, text comes
//! out, figures can be read at any time. Owns the engine thread, the bound on
//! how many jobs are inside, and the way in and out of it; never touches a
//! model itself.

pub(crate) mod backend;
pub(crate) mod disk;
mod drafts;
pub(crate) mod echo;
pub(crate) mod embedder;
mod event;
pub(crate) mod llama;
pub(crate) mod memory;
mod pace;
pub(crate) mod request;
mod runner;
mod stats;
mod template;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use deadline_propagation::Deadline;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::ApiError;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::engine::backend::{Core, Loaded, Loader, Prompt};
pub(crate) use crate::engine::event::{Earlier, End, Event, Trace};
use crate::engine::memory::Scope;
use crate::engine::request::RequestProgress;
use crate::engine::runner::{Control, Runner};
pub(crate) use crate::engine::stats::{Snapshot, Stats};
use crate::error::{EngineFailure, LoadFailure};
use crate::sampler::Sampler;
use crate::scheduler::JobId;
use crate::text::TextStream;

/// Most requests that one worker decodes together: what llama.cpp's batches of
/// 512 tokens leave room for beside prompts.
pub(crate) const SLOTS_MAX: u32 = 256;

/// Events that a job may be ahead of its reader. Two seconds at the pace of a
/// fast stream; a reader further behind pauses its job.
const EVENTS_AHEAD_MAX: usize = 64;

/// One reply on its way through the engine.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) prompt: Arc<Prompt>,
    /// Whose prompts it may share tokens with.
    pub(crate) scope: Scope,
    /// Most tokens to generate; at least one.
    pub(crate) tokens_max: u32,
    pub(crate) text: TextStream,
    pub(crate) sampler: Sampler,
    /// Where the reply began elsewhere, or may go on there.
    pub(crate) earlier: Option<Earlier>,
    pub(crate) deadline: Deadline,
    pub(crate) events: mpsc::Sender<Event>,
    /// The request that it is a choice of.
    pub(crate) request: Arc<RequestProgress>,
    /// Held until the job has ended, so that the engine is never over-full.
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// What the engine thread is told.
enum Command {
    Submit(Box<Job>),
    /// As `Submit`, for a model that gives one result for each input.
    Embed(Box<embedder::Job>),
    /// Wakes the thread up to see that it is to stop.
    Stop,
}

/// How the engine thread ended.
pub(crate) type EngineEnd = Result<(), EngineFailure>;

/// The way into the engine.
#[derive(Debug)]
pub(crate) struct EngineHandle {
    commands: SyncSender<Command>,
    loaded: Arc<OnceLock<Loaded>>,
    inside: Arc<Semaphore>,
    queue_max: u32,
    stopping: Arc<AtomicBool>,
    keep_until: Arc<OnceLock<Instant>>,
    stats: Arc<Stats>,
    jobs_total: AtomicU64,
}

impl EngineHandle {
    /// Returns what is known once the model is loaded.
    pub(crate) fn loaded(&self) -> Option<&Loaded> {
        self.loaded.get()
    }

    /// Returns the present figures without waiting for the engine.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let slots = self.loaded.get().map_or(0, |loaded| loaded.slots);
        let inside = (slots + self.queue_max)
            .saturating_sub(u32::try_from(self.inside.available_permits()).unwrap_or(u32::MAX));
        self.stats.snapshot(slots, if slots == 0 { 0 } else { inside })
    }

    /// Reserves a place in the engine.
    ///
    /// # Errors
    /// `all_slots_busy` when all slots are taken and the queue is full.
    pub(crate) fn try_enter(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        self.reserve(1)
    }

    /// Reserves a place for each choice of a request, or none.
    ///
    /// # Errors
    /// `all_slots_busy` when there are fewer places now, `validation_failed`
    /// when there never are so many.
    pub(crate) fn try_enter_many(
        &self,
        choices: u32,
    ) -> Result<Vec<OwnedSemaphorePermit>, ApiError> {
        let places = self.places();
        if choices > places {
            let message = format!(
                "n is {choices}, but this worker takes at most {places} choices at once, \
                 those that wait included; ask for fewer, or in several requests"
            );
            return Err(ErrorDetail::new(ErrorCode::ValidationFailed, message)
                .with_param("n")
                .with_details(json!({"places": places, "places_wanted": choices}))
                .into());
        }
        let mut all = self.reserve(choices)?;
        let mut permits: Vec<_> = (1..choices).filter_map(|_| all.split(1)).collect();
        permits.push(all);
        Ok(permits)
    }

    fn reserve(&self, wanted: u32) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.inside).try_acquire_many_owned(wanted).map_err(|_| {
            let places = self.places();
            let free = u32::try_from(self.inside.available_permits()).unwrap_or(u32::MAX);
            // Some may have become free since.
            let free = free.min(wanted.saturating_sub(1));
            let message = match free {
                0 => "every slot is taken and the queue is full; try again shortly".to_owned(),
                free => format!(
                    "slots and queue have room for {free} of the {wanted} choices that n asks \
                     for; try again shortly, or ask for fewer"
                ),
            };
            ErrorDetail::new(ErrorCode::AllSlotsBusy, message)
                .with_details(json!({
                    "places": places, "places_free": free, "places_wanted": wanted,
                }))
                .into()
        })
    }

    /// Jobs that can be inside: as many as there are slots, and those that wait.
    fn places(&self) -> u32 {
        self.loaded.get().map_or(0, |loaded| loaded.slots.saturating_add(self.queue_max))
    }

    /// Makes the channel over which a job will tell its reader.
    pub(crate) fn events() -> (mpsc::Sender<Event>, mpsc::Receiver<Event>) {
        mpsc::channel(EVENTS_AHEAD_MAX)
    }

    /// Makes the id of a new job, counted from 1.
    pub(crate) fn next_job(&self) -> JobId {
        JobId(self.jobs_total.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Says that nobody reads a job any more, after its channel was closed: a
    /// step that is computed for it alone is broken off. One that carries
    /// others goes on, and the job ends with it.
    pub(crate) fn abandon(&self, job: JobId) {
        if self.stats.is_sole(job) {
            self.interrupt();
        }
    }

    fn interrupt(&self) {
        if let Some(interrupt) = self.loaded().and_then(|loaded| loaded.interrupt.as_ref()) {
            interrupt.interrupt();
        }
    }

    /// Hands a job over. Dropping the receiver of its events cancels it.
    ///
    /// # Errors
    /// `worker_failed` when the engine has ended.
    pub(crate) fn submit(&self, job: Job) -> Result<(), ApiError> {
        self.send(Command::Submit(Box::new(job)))
    }

    /// Hands over a job for embeddings or scores. Dropping the receiver of its
    /// reply cancels it.
    ///
    /// # Errors
    /// `worker_failed` when the engine has ended.
    pub(crate) fn embed(&self, job: embedder::Job) -> Result<(), ApiError> {
        self.send(Command::Embed(Box::new(job)))
    }

    fn send(&self, job: Command) -> Result<(), ApiError> {
        // The permit in the job guarantees that the channel has room.
        self.commands.try_send(job).map_err(|error| {
            tracing::error!(%error, "the engine takes no jobs");
            ApiError::new(ErrorCode::WorkerFailed, "the engine of this worker has ended")
        })
    }

    /// As `stop`, but what conversations left is written to disk first, if that
    /// is on, as long as there is time.
    pub(crate) fn keep_and_stop(&self, until: Instant) {
        if self.keep_until.set(until).is_err() {
            tracing::debug!("the engine is being stopped already");
        }
        self.stop();
    }

    /// Tells the engine to end all jobs and itself, in the middle of loading too.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.interrupt();
        if self.commands.try_send(Command::Stop).is_err() {
            tracing::debug!("the engine has ended or has commands to read");
        }
    }
}

/// Starts the engine thread. The receiver gets one value: how the thread ended.
///
/// # Errors
/// Fails if the operating system gives no thread.
pub(crate) fn start(
    loader: Box<dyn Loader>,
    queue_max: u32,
) -> Result<(EngineHandle, oneshot::Receiver<EngineEnd>), std::io::Error> {
    let (commands, inbox) = sync_channel((SLOTS_MAX + queue_max + 1) as usize);
    let handle = EngineHandle {
        commands,
        loaded: Arc::new(OnceLock::new()),
        inside: Arc::new(Semaphore::new(0)),
        queue_max,
        stopping: Arc::new(AtomicBool::new(false)),
        keep_until: Arc::new(OnceLock::new()),
        stats: Arc::new(Stats::new()),
        jobs_total: AtomicU64::new(0),
    };
    let thread = EngineThread {
        inbox,
        loaded: Arc::clone(&handle.loaded),
        inside: Arc::clone(&handle.inside),
        queue_max,
        stopping: Arc::clone(&handle.stopping),
        keep_until: Arc::clone(&handle.keep_until),
        stats: Arc::clone(&handle.stats),
    };
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        // A panic drops every job with its channel, so no reader is left waiting.
        let outcome = catch_unwind(AssertUnwindSafe(|| thread.run(loader)));
        if ended.send(outcome.unwrap_or(Err(EngineFailure::Panicked))).is_err() {
            tracing::debug!("nobody waits for the engine any more");
        }
    })?;
    Ok((handle, end))
}

/// What the engine thread holds before it has a model.
struct EngineThread {
    inbox: Receiver<Command>,
    loaded: Arc<OnceLock<Loaded>>,
    inside: Arc<Semaphore>,
    queue_max: u32,
    stopping: Arc<AtomicBool>,
    keep_until: Arc<OnceLock<Instant>>,
    stats: Arc<Stats>,
}

impl EngineThread {
    fn run(self, loader: Box<dyn Loader>) -> EngineEnd {
        let started = Instant::now();
        let mut progress = |share: f32| {
            self.stats.set_load_progress(share);
            !self.stopping.load(Ordering::Relaxed)
        };
        let (engine, mut loaded) = match loader.load(&mut progress) {
            Ok(loaded) => loaded,
            Err(LoadFailure::Stopped) => return Ok(()),
            Err(failure) => return Err(failure.into()),
        };
        loaded.load_time = started.elapsed();
        self.stats.set_load_progress(1.0);
        tracing::info!(
            model = %loaded.description,
            slots = loaded.slots,
            context_tokens = loaded.context_tokens,
            duration_ms = loaded.load_time.as_millis(),
            "model loaded"
        );
        let slots = loaded.slots;
        let interrupt = loaded.interrupt.clone();
        self.inside.add_permits((slots + self.queue_max) as usize);
        if self.loaded.set(loaded).is_err() {
            tracing::error!("the model was loaded twice");
        }
        let control = Control {
            inbox: self.inbox,
            stopping: self.stopping,
            keep_until: self.keep_until,
            interrupt,
        };
        match engine {
            Core::Generator(generator) => Runner::new(generator, control, self.stats).run(),
            Core::Embedder(backend) => {
                embedder::runner::Runner::new(backend, slots, control, self.stats).run()
            }
        }
    }
}

#[cfg(test)]
mod tests;
