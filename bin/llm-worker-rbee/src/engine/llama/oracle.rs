//! Holds the whole engine (queue, scheduler, batches, slots, sampler) to a plain
//! loop over one llama.cpp context, token for token, on a real model.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_api::openai::Sampling;
use rbee_llama::batch::{Batch, Logits};
use rbee_llama::context::Context;
use rbee_llama::model::{Model, ModelParams};
use rbee_llama::vocab::Token;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{LlamaLoader, STEP_TOKENS, Sizes, context_params};
use crate::engine::backend::{Backend, Conversation, Loaded, Loader, Prompt, StepError};
use crate::engine::{End, EngineHandle, Event, Job, start};
use crate::error::LoadFailure;
use crate::sampler::Sampler;
use crate::scheduler::{Entry, JobId};
use crate::text::TextStream;
use crate::threads::compute_threads;

/// Tokens that each reply is compared over.
const REPLY_TOKENS: u32 = 48;
/// Where the two best logits are nearer than this, the order in which a batch
/// is summed may decide which one wins.
const GAP_THAT_DECIDES: f32 = 0.05;
const SIZES: Sizes = Sizes { slots: 8, context_tokens: 4096 };

const QUESTIONS: [&str; 9] = [
    "What is the capital of France?",
    "Write a short poem about bees.",
    "Explain in two sentences why the sky is blue.",
    "List three fruits and their colours.",
    "Translate 'good morning' into Spanish.",
    "What is 12 times 12?",
    "Who wrote Romeo and Juliet, and when?",
    "\u{1f41d} Was bedeutet \u{6c49}\u{5b57}?",
    "def fibonacci(n):",
];

fn model_path() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "a test may be given another model")]
    let given: Option<OsString> = std::env::var_os("RBEE_TEST_MODEL");
    let usual = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../target/rbee-test/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    );
    let path = given.map_or_else(|| PathBuf::from(usual), PathBuf::from);
    assert!(
        path.is_file(),
        "{} is missing; `make test` fetches it, or set RBEE_TEST_MODEL",
        path.display()
    );
    path
}

/// The model for the plain loop, loaded once.
fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    let load = || {
        let go_on = |_| std::ops::ControlFlow::Continue(());
        Model::load(&model_path(), &ModelParams::default(), go_on).unwrap()
    };
    Arc::clone(MODEL.get_or_init(load))
}

/// The tokens of a reply; beside each, how much better it was than the second best.
type Reply = Vec<(u32, f32)>;

/// What the plain loop answers.
fn plain_loop(prompt: &[u32], reply_tokens: u32) -> Reply {
    let sizes = Sizes { slots: 1, ..SIZES };
    let params = context_params(sizes, compute_threads());
    let mut context = Context::new(model(), &params).unwrap();
    let mut batch = Batch::with_capacity(STEP_TOKENS as usize);
    let mut reply = Reply::new();
    let mut pending = prompt.to_vec();
    let mut position = 0;
    while reply.len() < reply_tokens as usize {
        let mut row = 0;
        for piece in pending.chunks(STEP_TOKENS as usize) {
            batch.clear();
            for (index, token) in piece.iter().enumerate() {
                let last = index + 1 == piece.len();
                let logits = if last { Logits::Want } else { Logits::Skip };
                row = batch.push(Token(*token), position, 0, logits).unwrap();
                position += 1;
            }
            context.decode(&batch).unwrap();
        }
        let (token, gap) = best(context.logits(row).unwrap());
        if context.model().vocab().is_eog(Token(token)) {
            break;
        }
        reply.push((token, gap));
        pending = vec![token];
    }
    reply
}

/// The most likely token and its lead over the second.
fn best(logits: &[f32]) -> (u32, f32) {
    let mut ranked: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    (ranked[0].1, ranked[0].0 - ranked[1].0)
}

/// The tokens that the engine chose, by prompt.
type Chosen = Arc<Mutex<HashMap<Vec<u32>, Vec<u32>>>>;

/// Loads the real engine and writes down what it chooses.
struct Spy {
    loader: LlamaLoader,
    chosen: Chosen,
}

struct SpyBackend {
    backend: Box<dyn Backend>,
    prompts: HashMap<u32, Arc<Prompt>>,
    chosen: Chosen,
}

impl Loader for Spy {
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Box<dyn Backend>, Loaded), LoadFailure> {
        let (backend, loaded) = Box::new(self.loader).load(progress)?;
        let spy = SpyBackend { backend, prompts: HashMap::new(), chosen: self.chosen };
        Ok((Box::new(spy), loaded))
    }
}

impl Backend for SpyBackend {
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>) {
        self.prompts.insert(slot, Arc::clone(prompt));
        self.backend.begin(slot, prompt);
    }

    fn step(&mut self, entries: &[Entry]) -> Result<(), StepError> {
        self.backend.step(entries)
    }

    fn choose(&mut self, index: usize, entry: &Entry, sampler: &mut Sampler) -> Option<u32> {
        let token = self.backend.choose(index, entry, sampler)?;
        if !self.backend.is_end(entry.slot, token) {
            let prompt = self.prompts[&entry.slot].tokens.clone();
            self.chosen.lock().unwrap().entry(prompt).or_default().push(token);
        }
        Some(token)
    }

    fn is_end(&self, slot: u32, token: u32) -> bool {
        self.backend.is_end(slot, token)
    }

    fn piece(&self, slot: u32, token: u32) -> &[u8] {
        self.backend.piece(slot, token)
    }

    fn release(&mut self, slot: u32) {
        self.backend.release(slot);
    }
}

/// Two engines at once on few cores would mostly wait for each other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The engine under test.
struct Engine {
    _alone: tokio::sync::MutexGuard<'static, ()>,
    handle: EngineHandle,
    chosen: Chosen,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

impl Engine {
    async fn start() -> Self {
        let alone = ONE_AT_A_TIME.lock().await;
        let chosen = Chosen::default();
        let loader = LlamaLoader {
            path: model_path(),
            slots: Some(SIZES.slots),
            context_tokens: Some(SIZES.context_tokens),
            threads: None,
        };
        let spy = Spy { loader, chosen: Arc::clone(&chosen) };
        let (handle, _) = start(Box::new(spy), 64).unwrap();
        let engine = Self { _alone: alone, handle, chosen };
        engine.until("the model is loaded", |engine| engine.handle.loaded().is_some()).await;
        engine
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "timed out: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn prompt(&self, question: &str) -> Prompt {
        let conversation = Conversation::of_user(question);
        self.handle.loaded().unwrap().tokenizer.chat(&conversation).unwrap().prompt
    }

    fn submit(&self, prompt: Prompt) -> (JobId, mpsc::Receiver<Event>) {
        let (events, receiver) = EngineHandle::events();
        let id = self.handle.next_job();
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let job = Job {
            id,
            tokens_max: REPLY_TOKENS,
            text: TextStream::new(&[]),
            sampler: Sampler::new(sampling, 0),
            deadline: Deadline::after(Duration::from_secs(60)),
            events,
            submitted_at: Instant::now(),
            _permit: self.handle.try_enter().unwrap(),
            prompt: Arc::new(prompt),
        };
        self.handle.submit(job).unwrap();
        (id, receiver)
    }

    /// Runs one prompt to its end and returns its tokens.
    async fn reply(&self, prompt: Prompt) -> Vec<u32> {
        let tokens = prompt.tokens.clone();
        let (_, mut events) = self.submit(prompt);
        let mut text = String::new();
        loop {
            match events.recv().await.unwrap() {
                Event::Text { text: more, .. } => text.push_str(&more),
                Event::End(End::Finished { text: more, usage, .. }) => {
                    text.push_str(&more);
                    let reply = self.chosen.lock().unwrap().remove(&tokens).unwrap_or_default();
                    assert_eq!(usage.completion_tokens as usize, reply.len());
                    assert_eq!(text, self.text_of(&reply), "text and tokens differ");
                    return reply;
                }
                Event::End(End::Failed(detail)) => panic!("{detail}"),
            }
        }
    }

    fn text_of(&self, tokens: &[u32]) -> String {
        let model = model();
        let pieces = tokens.iter().map(|token| model.vocab().piece_bytes(Token(*token)).to_vec());
        String::from_utf8_lossy(&pieces.collect::<Vec<_>>().concat()).into_owned()
    }
}

/// The first difference must stand where the two best tokens were as good as equal.
fn assert_same_but_for_ties(question: &str, got: &[u32], expected: &Reply) {
    let tokens: Vec<u32> = expected.iter().map(|(token, _)| *token).collect();
    let differs = (0..got.len().max(tokens.len())).find(|i| got.get(*i) != tokens.get(*i));
    if let Some(index) = differs {
        let gap = expected.get(index).map_or(f32::INFINITY, |(_, gap)| *gap);
        assert!(
            gap < GAP_THAT_DECIDES,
            "{question}: differs at {index} where the gap is {gap}\n{got:?}\n{tokens:?}"
        );
    }
}

#[tokio::test]
async fn one_stream_says_token_for_token_what_a_plain_loop_says() {
    let engine = Engine::start().await;
    let mut lengths = 0;
    for question in QUESTIONS {
        let prompt = engine.prompt(question);
        let expected = plain_loop(&prompt.tokens, REPLY_TOKENS);
        let tokens: Vec<u32> = expected.iter().map(|(token, _)| *token).collect();
        assert_eq!(engine.reply(prompt).await, tokens, "{question}");
        lengths += tokens.len();
    }
    assert!(lengths > 100, "the replies are too short to say anything: {lengths}");
    assert_eq!(engine.handle.snapshot().batch_requests_max, 1);
}

#[tokio::test]
async fn eight_streams_at_once_say_what_each_says_alone() {
    let engine = Engine::start().await;
    let questions = QUESTIONS.get(..8).unwrap();
    let alone: Vec<Reply> = questions
        .iter()
        .map(|question| plain_loop(&engine.prompt(question).tokens, REPLY_TOKENS))
        .collect();
    let together = questions.iter().map(|question| engine.reply(engine.prompt(question)));
    let together = futures_util::future::join_all(together).await;
    for ((question, got), expected) in questions.iter().zip(together).zip(&alone) {
        assert_same_but_for_ties(question, &got, expected);
    }
    assert_eq!(engine.handle.snapshot().batch_requests_max, 8);
}

#[tokio::test]
async fn a_prompt_longer_than_a_step_is_understood_as_a_whole() {
    let engine = Engine::start().await;
    let story = "The bee Maja lives in a hive by the river. ".repeat(120);
    let prompt = engine.prompt(&format!("{story}\nWhat is the name of the bee?"));
    assert!(prompt.tokens.len() > 2 * STEP_TOKENS as usize, "{}", prompt.tokens.len());
    let expected = plain_loop(&prompt.tokens, REPLY_TOKENS);
    let got = engine.reply(prompt).await;
    assert_same_but_for_ties("the long prompt", &got, &expected);
}

#[tokio::test]
async fn a_long_prompt_that_is_abandoned_is_broken_off_and_leaves_no_trace() {
    let engine = Engine::start().await;
    let story = "The bee Maja lives in a hive by the river. ".repeat(330);
    let prompt = engine.prompt(&story);
    let steps_of_prompt = prompt.tokens.len().div_ceil(STEP_TOKENS as usize) as u64;
    assert!(steps_of_prompt >= 6, "{steps_of_prompt}");
    let (job, mut events) = engine.submit(prompt);
    engine.until("a step is computed", |engine| engine.handle.snapshot().stepping).await;
    events.close();
    engine.handle.abandon(job);
    engine.until("the job is gone", |engine| engine.handle.snapshot().requests_inside == 0).await;
    let steps = engine.handle.snapshot().engine_steps;
    assert!(steps < steps_of_prompt, "{steps} of {steps_of_prompt} steps were computed");
    let question = engine.prompt(QUESTIONS[0]);
    let expected = plain_loop(&question.tokens, REPLY_TOKENS);
    let tokens: Vec<u32> = expected.iter().map(|(token, _)| *token).collect();
    assert_eq!(engine.reply(question).await, tokens);
}

#[tokio::test]
async fn a_chat_prompt_begins_with_one_begin_token() {
    let engine = Engine::start().await;
    let marker = engine.handle.loaded().unwrap().tokenizer.text("<|im_start|>").unwrap();
    let prompt = engine.prompt("hello");
    assert_eq!(prompt.tokens.first(), marker.tokens.first());
    assert_ne!(prompt.tokens.get(1), marker.tokens.first());
}
