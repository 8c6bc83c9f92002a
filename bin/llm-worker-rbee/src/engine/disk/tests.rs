//! The engine beside a disk that the test plays: whoever waits for it waits
//! alone.

use std::sync::atomic::AtomicBool;

use deadline_propagation::Deadline;
use rbee_api::openai::{Sampling, Usage};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::engine::backend::{Core, Loaded, Loader, Prompt};
use crate::engine::echo::EchoLoader;
use crate::engine::request::RequestProgress;
use crate::engine::{End, EngineEnd, EngineHandle, Event, Job, start};
use crate::error::LoadFailure;
use crate::sampler::Sampler;
use crate::text::TextStream;

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);
const SCOPE: Scope = Scope([0; 32]);

/// Loads the echo engine with a disk of the test's.
struct Played {
    echo: EchoLoader,
    disk: Box<Disk>,
}

impl Loader for Played {
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure> {
        let (core, loaded) = Box::new(self.echo).load(progress)?;
        let Core::Generator(mut generator) = core else { panic!("a text model") };
        generator.disk = Some(self.disk);
        Ok((Core::Generator(generator), loaded))
    }
}

struct Engine {
    handle: EngineHandle,
    end: oneshot::Receiver<EngineEnd>,
    side: ThreadSide,
}

impl Engine {
    async fn start() -> Self {
        let (disk, side) = Disk::with_side();
        let echo = EchoLoader {
            load_time: Duration::ZERO,
            slots: 2,
            context_tokens: 4096,
            store_bytes_max: 0,
            disk: None,
            ignore_sigterm: Arc::new(AtomicBool::new(false)),
        };
        let loader = Played { echo, disk: Box::new(disk) };
        let (handle, end) = start(Box::new(loader), 2).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while handle.loaded().is_none() {
            assert!(Instant::now() < deadline, "it does not load");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { handle, end, side }
    }

    fn ask(&self, first: u32) -> mpsc::Receiver<Event> {
        let (events, receiver) = EngineHandle::events();
        let prompt = Prompt {
            tokens: tokens(first),
            text: Some("[[tokens=3]]".to_owned()),
            ..Prompt::default()
        };
        let job = Job {
            id: self.handle.next_job(),
            prompt: Arc::new(prompt),
            scope: SCOPE,
            tokens_max: 3,
            text: TextStream::new(&[]),
            sampler: Sampler::new(Sampling::default(), 1),
            earlier: None,
            deadline: Deadline::after(PATIENCE),
            events,
            request: Arc::new(RequestProgress::new(Instant::now(), 1)),
            _permit: self.handle.try_enter().unwrap(),
        };
        self.handle.submit(job).unwrap();
        receiver
    }

    fn find(&self, first: u32) -> KeptId {
        let tokens = tokens(first);
        let id = KeptId::of(SCOPE, &tokens);
        self.side.inbox.push(News::Found(Kept { id, scope: SCOPE, tokens }));
        self.side.inbox.push(News::Listed);
        id
    }
}

fn tokens(first: u32) -> Vec<u32> {
    (first..first + 100).collect()
}

fn state(first: u32) -> Vec<u8> {
    tokens(first).iter().flat_map(|token| token.to_le_bytes()).collect()
}

async fn usage(mut events: mpsc::Receiver<Event>) -> Usage {
    loop {
        match tokio::time::timeout(PATIENCE, events.recv()).await.expect("no end came") {
            Some(Event::Text { .. }) => {}
            Some(Event::End(End::Finished { usage, .. })) => return usage,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn while_one_waits_for_the_disk_others_are_computed() {
    let engine = Engine::start().await;
    let id = engine.find(1000);
    let mut waiting = engine.ask(1000);
    assert_eq!(engine.side.to_read.recv_timeout(PATIENCE), Ok(id));
    for _ in 0..3 {
        usage(engine.ask(5000)).await;
    }
    assert!(waiting.try_recv().is_err(), "it did not wait");
    engine.side.inbox.push(News::Read { id, state: Some(state(1000)) });
    assert_eq!(usage(waiting).await.prompt_tokens_details.cached_tokens, 99);
}

#[tokio::test]
async fn a_state_that_is_not_to_be_had_is_computed_and_asked_for_once() {
    let engine = Engine::start().await;
    let id = engine.find(1000);
    let waiting = engine.ask(1000);
    assert_eq!(engine.side.to_read.recv_timeout(PATIENCE), Ok(id));
    engine.side.inbox.push(News::Read { id, state: None });
    assert_eq!(usage(waiting).await.prompt_tokens_details.cached_tokens, 0);
    assert!(engine.side.to_read.try_recv().is_err());
}

#[tokio::test]
async fn who_leaves_while_waiting_leaves_nothing_behind() {
    let engine = Engine::start().await;
    let id = engine.find(1000);
    drop(engine.ask(1000));
    let other = engine.ask(1000);
    assert_eq!(engine.side.to_read.recv_timeout(PATIENCE), Ok(id));
    drop(other);
    let deadline = Instant::now() + PATIENCE;
    while engine.handle.snapshot().requests_inside > 0 {
        assert!(Instant::now() < deadline, "somebody stays");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    engine.side.inbox.push(News::Read { id, state: Some(state(1000)) });
    // What nobody took may have to be read again.
    let mut again = std::pin::pin!(usage(engine.ask(1000)));
    let usage = loop {
        if let Ok(id) = engine.side.to_read.try_recv() {
            engine.side.inbox.push(News::Read { id, state: Some(state(1000)) });
        }
        if let Ok(usage) = tokio::time::timeout(Duration::from_millis(2), &mut again).await {
            break usage;
        }
    };
    assert_eq!(usage.prompt_tokens_details.cached_tokens, 99);
}

#[tokio::test]
async fn a_disk_that_has_ended_delays_nobody() {
    let Engine { handle, side, end } = Engine::start().await;
    let (_, other) = Disk::with_side();
    let engine = Engine { handle, end, side: other };
    let tokens = tokens(1000);
    let id = KeptId::of(SCOPE, &tokens);
    side.inbox.push(News::Found(Kept { id, scope: SCOPE, tokens }));
    drop(side);
    assert_eq!(usage(engine.ask(1000)).await.prompt_tokens_details.cached_tokens, 0);
}

#[tokio::test]
async fn a_stop_writes_what_is_held_one_after_the_other() {
    let engine = Engine::start().await;
    usage(engine.ask(1000)).await;
    usage(engine.ask(5000)).await;
    engine.handle.keep_and_stop(Instant::now() + PATIENCE);
    for first in [5000, 1000] {
        let write = engine.side.to_write.recv_timeout(PATIENCE).unwrap();
        assert!(write.tokens.starts_with(&tokens(first)), "{:?}", write.tokens);
        assert!(write.state.starts_with(&state(first)));
        assert!(engine.side.to_write.try_recv().is_err(), "two at once");
        let outcome = WriteOutcome::Done { gone: Vec::new() };
        engine.side.inbox.push(News::Written { id: write.id, outcome });
    }
    engine.end.await.unwrap().unwrap();
    assert!(engine.side.to_write.try_recv().is_err());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_disk_that_hangs_or_fails() {
    let engine = Engine::start().await;
    usage(engine.ask(1000)).await;
    let until = Instant::now() + Duration::from_millis(200);
    engine.handle.keep_and_stop(until);
    tokio::time::timeout(PATIENCE, engine.end).await.unwrap().unwrap().unwrap();
    assert!(Instant::now() >= until);

    let engine = Engine::start().await;
    usage(engine.ask(1000)).await;
    usage(engine.ask(5000)).await;
    engine.handle.keep_and_stop(Instant::now() + 100 * PATIENCE);
    let write = engine.side.to_write.recv_timeout(PATIENCE).unwrap();
    engine.side.inbox.push(News::Written { id: write.id, outcome: WriteOutcome::Failed });
    tokio::time::timeout(PATIENCE, engine.end).await.unwrap().unwrap().unwrap();
}
