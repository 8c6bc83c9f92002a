//! The engine thread over a backend that fails as told: each failure ends what
//! it must and nothing else.

mod held;
mod language;
mod ledger;
mod resumed;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use rbee_api::openai::Sampling;

use super::backend::{
    Abilities, Backend, Conversation, Generator, Interrupt, Prepared, PromptError, Run,
    Speculation, StepError, Tokenizer, Unusable,
};
use super::memory::{Layout, MemoryLimits};
use super::*;
use crate::guide::Guide;

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(10);
const REPLY_TOKENS: u32 = 3;

/// What one step does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Fine,
    NoRoom,
    Interrupted,
    Fatal,
    Panic,
}

/// A backend that says `x` for every token; after the listed fates, all is fine.
#[derive(Debug)]
struct Doomed {
    /// Nothing is computed until this many jobs are in the batch.
    gathered: usize,
    fates: VecDeque<Fate>,
    interrupt: Arc<CountingInterrupt>,
}

#[derive(Debug, Default)]
struct CountingInterrupt {
    allowed: Mutex<u32>,
}

impl Interrupt for CountingInterrupt {
    fn interrupt(&self) {}

    fn allow(&self) {
        *self.allowed.lock().unwrap() += 1;
    }
}

#[derive(Debug)]
struct NoTokenizer;

impl Tokenizer for NoTokenizer {
    fn chat(&self, _: &Conversation) -> Result<Prepared, PromptError> {
        Err(PromptError::Empty)
    }

    fn text(&self, _: &str) -> Result<Prompt, PromptError> {
        Err(PromptError::Empty)
    }

    fn tokens(&self, _: &[u32]) -> Result<Prompt, PromptError> {
        Err(PromptError::Empty)
    }

    fn spelling(&self, _: u32) -> Vec<u8> {
        Vec::new()
    }

    fn guide(&self) -> Option<&Guide> {
        None
    }
}

impl Loader for Doomed {
    fn load(
        self: Box<Self>,
        _: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure> {
        let loaded = Loaded {
            abilities: Abilities::Generates(Arc::new(NoTokenizer)),
            slots: 2,
            context_tokens: 64,
            device: "none".to_owned(),
            description: "doomed".to_owned(),
            interrupt: Some(Arc::clone(&self.interrupt) as Arc<dyn Interrupt>),
            load_time: Duration::ZERO,
        };
        let memory = MemoryLimits {
            slots: 2,
            layout: Layout::Unified,
            can_cut: true,
            store_bytes_max: 0,
            tile_tokens: 1,
        };
        let speculation = Speculation::Off;
        let generator = Generator { backend: self, memory, disk: None, speculation };
        Ok((Core::Generator(generator), loaded))
    }
}

impl Backend for Doomed {
    fn begin(&mut self, _: u32, _: &Arc<Prompt>, _: u32) {}

    fn step(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        if runs.len() < self.gathered {
            return Err(StepError::Interrupted);
        }
        self.gathered = 0;
        match self.fates.pop_front().unwrap_or(Fate::Fine) {
            Fate::Fine => Ok(()),
            Fate::NoRoom => Err(StepError::NoRoom),
            Fate::Interrupted => Err(StepError::Interrupted),
            Fate::Fatal => Err(StepError::Fatal { reason: "told so".to_owned() }),
            Fate::Panic => panic!("told so"),
        }
    }

    fn choose(&mut self, _: usize, _: u32, _: &mut Sampler) -> Option<u32> {
        Some(7)
    }

    fn is_end(&self, _: u32, _: u32) -> bool {
        false
    }

    fn piece(&self, _: u32, _: u32) -> &[u8] {
        b"x"
    }

    fn cut(&mut self, _: u32, _: u32) -> Result<(), Unusable> {
        Ok(())
    }

    fn copy(&mut self, _: u32, _: u32, _: u32) -> Result<(), Unusable> {
        Ok(())
    }

    fn save(&mut self, _: u32) -> Result<Vec<u8>, Unusable> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _: u32, _: &[u8], _: u32) -> Result<(), Unusable> {
        Ok(())
    }
}

struct Running {
    handle: EngineHandle,
    end: oneshot::Receiver<EngineEnd>,
    interrupt: Arc<CountingInterrupt>,
}

impl Running {
    async fn start(gathered: usize, fates: &[Fate]) -> Self {
        let interrupt = Arc::new(CountingInterrupt::default());
        let doomed = Doomed {
            gathered,
            fates: fates.iter().copied().collect(),
            interrupt: Arc::clone(&interrupt),
        };
        let (handle, end) = start(Box::new(doomed), 2).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while handle.loaded().is_none() {
            assert!(Instant::now() < deadline, "it does not load");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { handle, end, interrupt }
    }

    fn submit(&self, tokens_max: u32, budget: Duration) -> mpsc::Receiver<Event> {
        let (events, receiver) = EngineHandle::events();
        let prompt = Prompt { tokens: vec![1, 2], ..Prompt::default() };
        let job = Job {
            id: self.handle.next_job(),
            prompt: Arc::new(prompt),
            scope: Scope([0; 32]),
            tokens_max,
            text: TextStream::new(&[]),
            sampler: Sampler::new(Sampling::default(), 1),
            earlier: None,
            deadline: Deadline::after(budget),
            events,
            request: Arc::new(RequestProgress::new(Instant::now(), 1)),
            _permit: self.handle.try_enter().unwrap(),
        };
        self.handle.submit(job).unwrap();
        receiver
    }
}

/// What came of a job: its text, or the code it failed with, or nothing.
async fn outcome(mut events: mpsc::Receiver<Event>) -> Result<String, Option<ErrorCode>> {
    let mut reply = String::new();
    loop {
        match tokio::time::timeout(PATIENCE, events.recv()).await.expect("no end came") {
            Some(Event::Text { text, .. }) => reply.push_str(&text),
            Some(Event::Replayed(text)) => panic!("nothing was said before: {text}"),
            Some(Event::End(End::Finished { text, .. })) => return Ok(reply + &text),
            Some(Event::End(End::Failed(detail))) => return Err(Some(detail.code)),
            None => return Err(None),
        }
    }
}

#[tokio::test]
async fn when_memory_is_full_the_youngest_waits_and_everybody_finishes() {
    let engine = Running::start(2, &[Fate::NoRoom]).await;
    let older = engine.submit(REPLY_TOKENS, PATIENCE);
    let younger = engine.submit(REPLY_TOKENS, PATIENCE);
    assert_eq!(outcome(younger).await.unwrap(), "xxx");
    assert_eq!(outcome(older).await.unwrap(), "xxx");
}

#[tokio::test]
async fn a_request_for_which_memory_never_suffices_is_refused() {
    let engine = Running::start(0, &[Fate::NoRoom, Fate::NoRoom]).await;
    let job = engine.submit(REPLY_TOKENS, PATIENCE);
    assert_eq!(outcome(job).await, Err(Some(ErrorCode::ContextLengthExceeded)));
    let next = engine.submit(REPLY_TOKENS, PATIENCE);
    assert_eq!(outcome(next).await, Err(Some(ErrorCode::ContextLengthExceeded)));
    let last = engine.submit(REPLY_TOKENS, PATIENCE);
    assert_eq!(outcome(last).await.unwrap(), "xxx");
}

#[tokio::test]
async fn an_interrupted_step_is_computed_again() {
    let engine = Running::start(0, &[Fate::Interrupted, Fate::Fine, Fate::Interrupted]).await;
    let job = engine.submit(REPLY_TOKENS, PATIENCE);
    assert_eq!(outcome(job).await.unwrap(), "xxx");
    assert_eq!(*engine.interrupt.allowed.lock().unwrap(), 2);
}

#[tokio::test]
async fn what_spoils_the_computation_ends_the_engine_and_leaves_nobody_waiting() {
    for fate in [Fate::Fatal, Fate::Panic] {
        let engine = Running::start(0, &[Fate::Fine, fate]).await;
        let job = engine.submit(REPLY_TOKENS, PATIENCE);
        assert_eq!(outcome(job).await, Err(None), "{fate:?}");
        let end = tokio::time::timeout(PATIENCE, engine.end).await.unwrap().unwrap();
        assert!(
            matches!(
                (fate, &end),
                (Fate::Fatal, Err(EngineFailure::Computation { .. }))
                    | (Fate::Panic, Err(EngineFailure::Panicked))
            ),
            "{fate:?}: {end:?}"
        );
    }
}

#[tokio::test]
async fn a_stop_ends_the_thread_and_its_jobs() {
    let engine = Running::start(9, &[]).await;
    let job = engine.submit(1_000_000, PATIENCE);
    engine.handle.stop();
    assert_eq!(outcome(job).await, Err(None));
    let end = tokio::time::timeout(PATIENCE, engine.end).await.unwrap().unwrap();
    assert!(end.is_ok());
}

#[tokio::test]
async fn the_engine_itself_ends_a_job_whose_time_is_over() {
    let engine = Running::start(0, &[]).await;
    let job = engine.submit(1_000_000, Duration::ZERO);
    assert_eq!(outcome(job).await, Err(Some(ErrorCode::DeadlineExceeded)));
}
