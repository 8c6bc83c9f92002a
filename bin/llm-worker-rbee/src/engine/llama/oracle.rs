//! Holds the whole engine (queue, scheduler, batches, slots, sampler) to a plain
//! loop over one llama.cpp context, token for token, on a real model.

mod alone;
mod history;
mod resumed;
mod shared;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_api::openai::Sampling;
use rbee_llama::batch::{Batch, Logits};
use rbee_llama::context::Context;
use rbee_llama::context_params::{ContextParams, FlashAttention};
use rbee_llama::model::Model;
use rbee_llama::model_params::ModelParams;
use rbee_llama::vocab::Token;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::history::History;
use super::attention::Attention;
use super::{LlamaLoader, STEP_TOKENS, Sizes, context_params};
use crate::config::placement::Placement;
use crate::engine::backend::{
    Backend, Conversation, Core, Loaded, Loader, Prompt, Run, Speculation, StepError, Tokenizer,
    Unusable,
};
use crate::engine::memory::{Layout, Scope};
use crate::engine::request::RequestProgress;
use crate::engine::{Earlier, End, EngineEnd, EngineHandle, Event, Job, start};
use crate::error::LoadFailure;
use crate::sampler::Sampler;
use crate::scheduler::JobId;
use crate::text::TextStream;
use crate::threads::compute_threads;

/// Tokens that each reply is compared over.
const REPLY_TOKENS: u32 = 48;
/// The model's name; no request is checked against it here.
const NAME: &str = "oracle";
/// Where the two best logits are nearer than this, the order in which a batch
/// is summed may decide which one wins.
const GAP_THAT_DECIDES: f32 = 0.05;
/// The same where the tokens of all slots lie in one memory, as on a GPU: a slot's own are summed in the order in which
/// they lie among those of others, and up to 0.22 was seen.
const GAP_THAT_DECIDES_UNIFIED: f32 = 0.6;
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

/// Context as a worker on a processor has it.
fn alone(sizes: Sizes) -> ContextParams {
    let attention = Attention { flash: FlashAttention::Auto, piece_tokens: STEP_TOKENS };
    context_params(sizes, compute_threads(), Layout::Split, &Placement::default(), attention)
}

/// What the plain loop answers.
fn plain_loop(prompt: &[u32], reply_tokens: u32) -> Reply {
    plain_loop_in_pieces(prompt, &[prompt.len()], reply_tokens)
}

/// What the plain loop answers that computes the prompt in these pieces, which changes its logits.
fn plain_loop_in_pieces(prompt: &[u32], pieces: &[usize], reply_tokens: u32) -> Reply {
    let sizes = Sizes { slots: 1, ..SIZES };
    let params = alone(sizes);
    let mut context = Context::new(model(), &params).unwrap();
    let mut batch = Batch::with_capacity(STEP_TOKENS as usize);
    let mut reply = Reply::new();
    let mut rest = prompt;
    let mut pending = Vec::new();
    let mut position = 0;
    for (index, piece) in pieces.iter().enumerate() {
        let (now, later) = rest.split_at(*piece);
        rest = later;
        if index + 1 == pieces.len() {
            pending = now.to_vec();
        } else {
            compute(&mut context, &mut batch, now, position);
            position += u32::try_from(now.len()).unwrap();
        }
    }
    assert!(rest.is_empty() && !pending.is_empty(), "pieces {pieces:?} of {}", prompt.len());
    while reply.len() < reply_tokens as usize {
        let row = compute(&mut context, &mut batch, &pending, position);
        position += u32::try_from(pending.len()).unwrap();
        let (token, gap) = best(context.logits(row).unwrap());
        if context.model().vocab().is_eog(Token(token)) {
            break;
        }
        reply.push((token, gap));
        pending = vec![token];
    }
    reply
}

/// Computes tokens from a position on and returns the row of the last.
fn compute(context: &mut Context, batch: &mut Batch, tokens: &[u32], mut position: u32) -> usize {
    let mut row = 0;
    for piece in tokens.chunks(STEP_TOKENS as usize) {
        batch.clear();
        for (index, token) in piece.iter().enumerate() {
            let last = index + 1 == piece.len();
            let logits = if last { Logits::Want } else { Logits::Skip };
            row = batch.push(Token(*token), position, 0, logits).unwrap();
            position += 1;
        }
        context.decode(batch).unwrap();
    }
    row
}

/// The most likely token and its lead over the second.
fn best(logits: &[f32]) -> (u32, f32) {
    let mut ranked: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    (ranked[0].1, ranked[0].0 - ranked[1].0)
}

/// The tokens that the engine chose, by prompt.
type Chosen = Arc<Mutex<HashMap<Vec<u32>, Vec<u32>>>>;
/// In which pieces the engine has computed prompts and replies, by prompt.
type Pieces = Arc<Mutex<HashMap<Vec<u32>, Vec<usize>>>>;
/// What was in the slots of a prompt when a token was last chosen for it in each, by prompt.
type Histories = Arc<Mutex<HashMap<Vec<u32>, Vec<History>>>>;

/// Loads the real engine and writes down what it chooses.
struct Spy {
    loader: LlamaLoader,
    chosen: Chosen,
    pieces: Pieces,
    histories: Histories,
}

struct SpyBackend {
    backend: Box<dyn Backend>,
    prompts: HashMap<u32, Arc<Prompt>>,
    slots_of_runs: Vec<u32>,
    slots: HashMap<u32, History>,
    chosen: Chosen,
    pieces: Pieces,
    histories: Histories,
}

impl Loader for Spy {
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure> {
        let Self { loader, chosen, pieces, histories } = *self;
        let (engine, loaded) = Box::new(loader).load(progress)?;
        let Core::Generator(mut generator) = engine else { panic!("a text model") };
        generator.backend = Box::new(SpyBackend {
            backend: generator.backend,
            prompts: HashMap::new(),
            slots_of_runs: Vec::new(),
            slots: HashMap::new(),
            chosen,
            pieces,
            histories,
        });
        Ok((Core::Generator(generator), loaded))
    }
}

impl Backend for SpyBackend {
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>, reply_tokens: u32) {
        self.prompts.insert(slot, Arc::clone(prompt));
        let mut histories = self.histories.lock().unwrap();
        histories.entry(prompt.tokens.clone()).or_default().push(History::default());
        self.backend.begin(slot, prompt, reply_tokens);
    }

    fn step(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        self.slots_of_runs = runs.iter().map(|run| run.slot).collect();
        for run in runs {
            let prompt = &self.prompts[&run.slot].tokens;
            let mut pieces = self.pieces.lock().unwrap();
            pieces.entry(prompt.clone()).or_default().push(run.tokens.len());
            self.slots.entry(run.slot).or_default().push(run);
        }
        self.backend.step(runs)
    }

    fn choose(&mut self, run: usize, output: u32, sampler: &mut Sampler) -> Option<u32> {
        let token = self.backend.choose(run, output, sampler)?;
        let slot = self.slots_of_runs[run];
        if !self.backend.is_end(slot, token) {
            let prompt = self.prompts[&slot].tokens.clone();
            let history = self.slots[&slot].clone();
            let mut histories = self.histories.lock().unwrap();
            *histories.get_mut(&prompt).unwrap().last_mut().unwrap() = history;
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

    fn cut(&mut self, slot: u32, len: u32) -> Result<(), Unusable> {
        self.slots.entry(slot).or_default().cut(len);
        self.backend.cut(slot, len)
    }

    fn copy(&mut self, from: u32, to: u32, len: u32) -> Result<(), Unusable> {
        self.slots.insert(to, self.slots[&from].first(len));
        self.backend.copy(from, to, len)
    }

    fn save(&mut self, slot: u32) -> Result<Vec<u8>, Unusable> {
        let state = self.backend.save(slot)?;
        self.slots[&slot].clone().keep(&state);
        Ok(state)
    }

    fn restore(&mut self, slot: u32, state: &[u8], len: u32) -> Result<(), Unusable> {
        self.slots.insert(slot, History::kept(state, len));
        self.backend.restore(slot, state, len)
    }
}

/// Two engines at once on few cores would mostly wait for each other.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The engine under test.
struct Engine {
    _alone: tokio::sync::MutexGuard<'static, ()>,
    handle: EngineHandle,
    ended: Option<oneshot::Receiver<EngineEnd>>,
    chosen: Chosen,
    pieces: Pieces,
    histories: Histories,
    gap_that_decides: f32,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

impl Engine {
    /// Starts an engine that computes every token for itself.
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut LlamaLoader)) -> Self {
        let alone = ONE_AT_A_TIME.lock().await;
        let (chosen, pieces) = (Chosen::default(), Pieces::default());
        let histories = Histories::default();
        let mut loader = LlamaLoader {
            path: model_path(),
            slots: Some(SIZES.slots),
            context_tokens: Some(SIZES.context_tokens),
            threads: None,
            placement: Placement::default(),
            layout: Some(Layout::Split),
            store_bytes_max: 0,
            disk: None,
            speculation: Speculation::Off,
        };
        change(&mut loader);
        let gap_that_decides = match loader.layout {
            Some(Layout::Unified) => GAP_THAT_DECIDES_UNIFIED,
            Some(Layout::Split) | None => GAP_THAT_DECIDES,
        };
        let spy = Spy {
            loader,
            chosen: Arc::clone(&chosen),
            pieces: Arc::clone(&pieces),
            histories: Arc::clone(&histories),
        };
        let (handle, ended) = start(Box::new(spy), 64).unwrap();
        let engine = Self {
            _alone: alone,
            handle,
            ended: Some(ended),
            chosen,
            pieces,
            histories,
            gap_that_decides,
        };
        engine.until("the model is loaded", |engine| engine.handle.loaded().is_some()).await;
        engine
    }

    /// Ends as a worker does that is told to.
    async fn keep_and_end(mut self) {
        self.handle.keep_and_stop(Instant::now() + Duration::from_secs(30));
        self.ended.take().unwrap().await.unwrap().unwrap();
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < deadline, "timed out: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn prompt(&self, question: &str) -> Prompt {
        self.tokenizer().chat(&Conversation::of_user(question)).unwrap().prompt
    }

    fn tokenizer(&self) -> &dyn Tokenizer {
        let loaded = self.handle.loaded().unwrap();
        loaded.generates(&NAME.parse().unwrap()).unwrap().as_ref()
    }

    fn submit(
        &self,
        prompt: Prompt,
        scope: Scope,
        earlier: Option<Earlier>,
    ) -> (JobId, mpsc::Receiver<Event>) {
        let (events, receiver) = EngineHandle::events();
        let id = self.handle.next_job();
        let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
        let job = Job {
            id,
            scope,
            tokens_max: REPLY_TOKENS,
            text: TextStream::new(&[]),
            sampler: Sampler::new(sampling, 0),
            earlier,
            deadline: Deadline::after(Duration::from_secs(60)),
            events,
            request: Arc::new(RequestProgress::new(Instant::now(), 1)),
            _permit: self.handle.try_enter().unwrap(),
            prompt: Arc::new(prompt),
        };
        self.handle.submit(job).unwrap();
        (id, receiver)
    }

    /// Runs one prompt that shares nothing to its end and returns its tokens.
    async fn reply(&self, prompt: Prompt) -> Vec<u32> {
        let alone = self.handle.next_job().0;
        let mut scope = Scope([1; 32]);
        scope.0.iter_mut().zip(alone.to_le_bytes()).for_each(|(to, from)| *to = from);
        let (tokens, cached) = self.reply_in(scope, prompt).await;
        assert_eq!(cached, 0, "a scope of its own shares tokens");
        tokens
    }

    /// Runs one prompt to its end; returns its tokens and how many of the
    /// prompt's were not computed.
    async fn reply_in(&self, scope: Scope, prompt: Prompt) -> (Vec<u32>, u32) {
        let tokens = prompt.tokens.clone();
        let (_, mut events) = self.submit(prompt, scope, None);
        let mut text = String::new();
        loop {
            match events.recv().await.unwrap() {
                Event::Text { text: more, .. } => text.push_str(&more),
                Event::Replayed(text) => panic!("nothing was said before: {text}"),
                Event::End(End::Finished { text: more, usage, .. }) => {
                    text.push_str(&more);
                    let reply = self.chosen.lock().unwrap().remove(&tokens).unwrap_or_default();
                    assert_eq!(usage.completion_tokens as usize, reply.len());
                    assert_eq!(text, self.text_of(&reply), "text and tokens differ");
                    return (reply, usage.prompt_tokens_details.cached_tokens);
                }
                Event::End(End::Failed(detail)) => panic!("{detail}"),
            }
        }
    }

    /// What a plain loop says that computes a prompt in the pieces in which the engine did, alone.
    fn alone_in_the_same_pieces(&self, prompt: &[u32]) -> Reply {
        let pieces = self.pieces_of(prompt, prompt.len());
        plain_loop_in_pieces(prompt, &pieces, REPLY_TOKENS)
    }

    /// A reply must be that of a plain loop which takes the steps alone in which prompt and reply were computed, shared with
    /// others or not, but for ties.
    fn assert_is_of_its_steps(&self, question: &str, prompt: &[u32], reply: &[u32]) {
        let histories = self.histories.lock().unwrap().remove(prompt).unwrap();
        let compared: BTreeSet<usize> = histories
            .iter()
            .flat_map(|history| {
                history.assert_says(question, (prompt, reply), self.gap_that_decides)
            })
            .collect();
        assert_eq!(compared.len(), reply.len(), "{question}: not all tokens were compared");
    }

    /// In which pieces the first `len` tokens of a prompt and its reply were computed.
    fn pieces_of(&self, prompt: &[u32], len: usize) -> Vec<usize> {
        let mut pieces = self.pieces.lock().unwrap().remove(prompt).unwrap();
        let mut computed = 0;
        pieces.retain(|piece| {
            let is_of_it = computed < len;
            computed += piece;
            is_of_it
        });
        pieces
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
