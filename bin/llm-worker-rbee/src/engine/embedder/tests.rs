//! The engine thread over a backend that fails as told: each failure ends what
//! it must and nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::engine::backend::{Abilities, Core, Loaded, Loader};
use crate::engine::{EngineEnd, EngineHandle, start};
use crate::error::{EngineFailure, LoadFailure};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one step does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Fine,
    Interrupted,
    Fatal,
    Panic,
}

/// A backend whose results are the lengths of its inputs; after the listed
/// fates, all is fine.
#[derive(Debug)]
struct Doomed(VecDeque<Fate>);

#[derive(Debug)]
struct NoReader;

impl InputReader for NoReader {
    fn text(&self, _: &str) -> Result<Vec<u32>, PromptError> {
        Err(PromptError::Empty)
    }

    fn tokens(&self, _: &[u32]) -> Result<Vec<u32>, PromptError> {
        Err(PromptError::Empty)
    }

    fn pair(&self, _: &str, _: &str) -> Result<Vec<u32>, PromptError> {
        Err(PromptError::Empty)
    }
}

impl Loader for Doomed {
    fn load(
        self: Box<Self>,
        _: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure> {
        let embedding = Embedding {
            kind: ModelKind::Embed,
            dimensions: Dimensions { full: 1, least: None },
            reader: Arc::new(NoReader),
        };
        let loaded = Loaded {
            abilities: Abilities::Embeds(embedding),
            slots: 2,
            context_tokens: 64,
            device: "none".to_owned(),
            description: "doomed".to_owned(),
            interrupt: None,
            load_time: Duration::ZERO,
        };
        Ok((Core::Embedder(self), loaded))
    }
}

impl Backend for Doomed {
    fn limits(&self) -> StepLimits {
        StepLimits { inputs: 2, tokens: 8 }
    }

    fn compute(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
        match self.0.pop_front().unwrap_or(Fate::Fine) {
            Fate::Fine => {}
            Fate::Interrupted => return Err(StepError::Interrupted),
            Fate::Fatal => return Err(StepError::Fatal { reason: "told so".to_owned() }),
            Fate::Panic => panic!("told so"),
        }
        let length = |input: &&[u32]| f32::from(u16::try_from(input.len()).unwrap());
        Ok(inputs.iter().map(|input| vec![length(input)]).collect())
    }
}

struct Running {
    handle: EngineHandle,
    end: oneshot::Receiver<EngineEnd>,
}

type Reply = oneshot::Receiver<Result<Vec<Vec<f32>>, ErrorDetail>>;

impl Running {
    async fn start(fates: &[Fate]) -> Self {
        let doomed = Doomed(fates.iter().copied().collect());
        let (handle, end) = start(Box::new(doomed), 2).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while handle.loaded().is_none() {
            assert!(Instant::now() < deadline, "it does not load");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { handle, end }
    }

    fn submit(&self, lengths: &[usize], budget: Duration) -> Reply {
        let (reply, results) = oneshot::channel();
        let job = Job {
            id: self.handle.next_job(),
            inputs: lengths.iter().map(|length| vec![1; *length]).collect(),
            deadline: Deadline::after(budget),
            reply,
            submitted_at: Instant::now(),
            _permit: self.handle.try_enter().unwrap(),
        };
        self.handle.embed(job).unwrap();
        results
    }
}

/// What came of a job: the first numbers of its results, or the code it failed with, or nothing.
async fn outcome(reply: Reply) -> Result<Vec<f32>, Option<rbee_api::error::ErrorCode>> {
    match tokio::time::timeout(PATIENCE, reply).await.expect("no end came") {
        Ok(Ok(results)) => Ok(results.iter().map(|result| result[0]).collect()),
        Ok(Err(detail)) => Err(Some(detail.code)),
        Err(_) => Err(None),
    }
}

#[tokio::test]
async fn results_come_in_the_order_of_the_inputs_also_over_interrupted_steps() {
    let fates = [Fate::Interrupted, Fate::Fine, Fate::Interrupted];
    let engine = Running::start(&fates).await;
    let lengths = [3, 1, 20, 2, 5, 4, 1];
    let job = engine.submit(&lengths, PATIENCE);
    let other = engine.submit(&[7], PATIENCE);
    assert_eq!(outcome(job).await.unwrap(), [3.0, 1.0, 20.0, 2.0, 5.0, 4.0, 1.0]);
    assert_eq!(outcome(other).await.unwrap(), [7.0]);
}

#[tokio::test]
async fn what_spoils_the_computation_ends_the_engine_and_leaves_nobody_waiting() {
    for fate in [Fate::Fatal, Fate::Panic] {
        let engine = Running::start(&[Fate::Fine, fate]).await;
        let job = engine.submit(&[1; 5], PATIENCE);
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
async fn the_engine_itself_ends_a_job_whose_time_is_over() {
    let engine = Running::start(&[]).await;
    let job = engine.submit(&[1], Duration::ZERO);
    let code = rbee_api::error::ErrorCode::DeadlineExceeded;
    assert_eq!(outcome(job).await, Err(Some(code)));
}

#[tokio::test]
async fn a_stop_ends_the_thread_and_its_jobs() {
    let engine = Running::start(&[Fate::Interrupted; 3]).await;
    engine.handle.stop();
    let end = tokio::time::timeout(PATIENCE, engine.end).await.unwrap().unwrap();
    assert!(end.is_ok());
}
