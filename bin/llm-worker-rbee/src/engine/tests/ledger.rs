//! A backend that really holds tokens, and whose next token follows from all
//! those before it: whatever goes wrong between slots, stored states and
//! guesses shows in a reply, or ends the engine at once. Computes nothing else.

use std::collections::{BTreeMap, HashMap};

use super::super::*;
use super::language::{END, LETTERS, greedy, row, said_plainly, text_of};
use super::{NoTokenizer, PATIENCE};
use crate::engine::backend::{
    Abilities, Backend, Generator, Loaded, Loader, Run, Speculation, StepError, Unusable,
};
use crate::engine::memory::{Layout, MemoryLimits};
use rbee_api::openai::Sampling;
use std::sync::Mutex;
use std::time::Duration;

/// What the backend can do and what fails on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) limits: MemoryLimits,
    pub(super) speculation: Speculation,
    /// Tokens that all slots hold together.
    pub(super) cells: usize,
    /// Where set, steps are interrupted and states cannot be used now and then.
    pub(super) faults: Option<u64>,
    /// What a step takes.
    pub(super) step_time: Duration,
}

impl Terms {
    pub(super) fn of(layout: Layout, slots: u32) -> Self {
        let tile_tokens = if layout == Layout::Split { 64 } else { 1 };
        let limits = MemoryLimits { slots, layout, can_cut: true, store_bytes_max: 0, tile_tokens };
        Self {
            limits,
            speculation: Speculation::Off,
            cells: usize::MAX,
            faults: None,
            step_time: Duration::ZERO,
        }
    }
}

/// What was done, and what is still to be done wrong.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Nothing is computed until this many jobs are in a step.
    pub(super) gathered: usize,
    /// Cuts after a guess that still fail.
    pub(super) cuts_to_fail: u32,
    /// States still to be saved that nobody can use.
    pub(super) saves_to_spoil: u32,
    pub(super) saves: u32,
    pub(super) restores: u32,
    pub(super) tokens_computed: usize,
    /// The tokens of every step.
    pub(super) sizes: Vec<usize>,
    /// The slots of every step.
    pub(super) steps: Vec<Vec<u32>>,
    /// What the slot held when a job was first given one.
    held_at_first: HashMap<String, u32>,
    /// Tokens chosen for each job.
    chosen: HashMap<String, u32>,
    /// How the tokens of each job are drawn.
    sampling: HashMap<String, Sampling>,
}

impl Log {
    /// States that were saved and restored.
    pub(super) fn states_moved(&self) -> (u32, u32) {
        (self.saves, self.restores)
    }
}

#[derive(Debug)]
struct Ledger {
    terms: Terms,
    slots: Vec<Vec<u32>>,
    /// The jobs in the slots.
    jobs: BTreeMap<u32, String>,
    /// Of each run of the last step, its slot and what that holds up to its first output.
    outputs: Vec<(u32, usize)>,
    log: Arc<Mutex<Log>>,
}

impl Ledger {
    /// Whether this is one of the times when something fails.
    fn fails(&mut self) -> bool {
        self.terms.faults.as_mut().is_some_and(|state| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (*state >> 60) < 3
        })
    }

    fn hold(&mut self, slot: u32, tokens: &[u32], len: u32) {
        assert!(self.terms.limits.can_cut || len == 0 || len as usize == tokens.len(), "cut");
        self.slots[slot as usize] = tokens[..len as usize].to_vec();
    }

    fn unusable(&mut self, slot: u32) -> Unusable {
        self.slots[slot as usize].clear();
        Unusable { reason: "told so".to_owned() }
    }
}

impl Loader for Ledger {
    fn load(
        self: Box<Self>,
        _: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure> {
        let Terms { limits, speculation, .. } = self.terms;
        let loaded = Loaded {
            abilities: Abilities::Generates(Arc::new(NoTokenizer)),
            slots: limits.slots,
            context_tokens: 4096,
            device: "none".to_owned(),
            description: "ledger".to_owned(),
            interrupt: None,
            load_time: Duration::ZERO,
        };
        let generator = Generator { backend: self, memory: limits, disk: None, speculation };
        Ok((Core::Generator(generator), loaded))
    }
}

impl Backend for Ledger {
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>, reply_tokens: u32) {
        let job = prompt.text.clone().unwrap();
        let held = &self.slots[slot as usize];
        let mut log = self.log.lock().unwrap();
        assert_eq!(log.chosen.get(&job).copied().unwrap_or_default(), reply_tokens, "{job}");
        let (reply, _) = said_plainly(&prompt.tokens, reply_tokens, &log.sampling[&job]);
        let whole = [prompt.tokens.clone(), reply].concat();
        assert!(held.len() < whole.len() && whole.starts_with(held), "{job} begins with others'");
        log.held_at_first.entry(job.clone()).or_insert(u32::try_from(held.len()).unwrap());
        self.jobs.insert(slot, job);
    }

    fn step(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        let gathered = std::mem::take(&mut self.log.lock().unwrap().gathered);
        if runs.len() < gathered {
            self.log.lock().unwrap().gathered = gathered;
            return Err(StepError::Interrupted);
        }
        if self.fails() {
            return Err(StepError::Interrupted);
        }
        let held: usize = self.slots.iter().map(Vec::len).sum();
        let more: usize = runs.iter().map(|run| run.tokens.len()).sum();
        if held + more > self.terms.cells {
            return Err(StepError::NoRoom);
        }
        std::thread::park_timeout(self.terms.step_time);
        self.outputs.clear();
        for run in runs {
            let held = &mut self.slots[run.slot as usize];
            assert_eq!(held.len(), run.position as usize, "slot {}", run.slot);
            held.extend_from_slice(run.tokens);
            self.outputs.push((run.slot, held.len() + 1 - (run.outputs as usize).max(1)));
        }
        let mut log = self.log.lock().unwrap();
        log.tokens_computed += more;
        log.sizes.push(more);
        log.steps.push(runs.iter().map(|run| run.slot).collect());
        Ok(())
    }

    fn choose(&mut self, run: usize, output: u32, sampler: &mut Sampler) -> Option<u32> {
        let (slot, len) = self.outputs[run];
        let token = sampler.choose(&row(&self.slots[slot as usize][..len + output as usize]))?;
        let chosen = u32::from(token != END);
        let job = self.jobs[&slot].clone();
        *self.log.lock().unwrap().chosen.entry(job).or_default() += chosen;
        Some(token)
    }

    fn is_end(&self, _: u32, token: u32) -> bool {
        token == END
    }

    fn piece(&self, _: u32, token: u32) -> &[u8] {
        LETTERS[token as usize]
    }

    fn cut(&mut self, slot: u32, len: u32) -> Result<(), Unusable> {
        if len > 0 && self.log.lock().unwrap().cuts_to_fail > 0 {
            self.log.lock().unwrap().cuts_to_fail -= 1;
            return Err(self.unusable(slot));
        }
        let tokens = std::mem::take(&mut self.slots[slot as usize]);
        self.hold(slot, &tokens, len);
        Ok(())
    }

    fn copy(&mut self, from: u32, to: u32, len: u32) -> Result<(), Unusable> {
        if self.fails() {
            return Err(self.unusable(to));
        }
        let tokens = self.slots[from as usize].clone();
        self.hold(to, &tokens, len);
        Ok(())
    }

    fn save(&mut self, slot: u32) -> Result<Vec<u8>, Unusable> {
        if self.fails() {
            return Err(Unusable { reason: "told so".to_owned() });
        }
        let mut log = self.log.lock().unwrap();
        log.saves += 1;
        let spoiled = log.saves_to_spoil > 0;
        log.saves_to_spoil = log.saves_to_spoil.saturating_sub(1);
        let tokens = self.slots[slot as usize].iter().flat_map(|token| token.to_le_bytes());
        Ok(tokens.chain(spoiled.then_some(0)).collect())
    }

    fn restore(&mut self, slot: u32, state: &[u8], len: u32) -> Result<(), Unusable> {
        let (tokens, rest) = state.as_chunks();
        if !rest.is_empty() || self.fails() {
            return Err(self.unusable(slot));
        }
        self.log.lock().unwrap().restores += 1;
        let tokens: Vec<u32> = tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        self.hold(slot, &tokens, len);
        Ok(())
    }
}

/// An engine over a ledger.
pub(super) struct Kept {
    pub(super) handle: EngineHandle,
    pub(super) log: Arc<Mutex<Log>>,
    _end: oneshot::Receiver<EngineEnd>,
}

/// One request, and what has to come of it.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) scope: u8,
    pub(super) prompt: Vec<u32>,
    pub(super) tokens_max: u32,
    /// The text that ends the reply.
    pub(super) stop: Option<String>,
    /// Tokens of the reply that were said elsewhere.
    pub(super) said: usize,
    /// How its tokens are drawn.
    pub(super) sampling: Sampling,
}

impl Ask {
    pub(super) fn new(prompt: impl IntoIterator<Item = u32>, tokens_max: u32) -> Self {
        let (prompt, sampling) = (prompt.into_iter().collect(), greedy());
        Self { scope: 0, prompt, tokens_max, stop: None, said: 0, sampling }
    }

    pub(super) fn plain_reply(&self) -> Vec<u32> {
        said_plainly(&self.prompt, self.tokens_max, &self.sampling).0
    }

    /// The text of the reply, and how many tokens it takes to say it.
    pub(super) fn answer(&self) -> (String, usize) {
        let text = text_of(&self.plain_reply());
        let end = self.stop.as_ref().and_then(|stop| Some((text.find(stop)?, stop.len())));
        match end {
            Some((at, len)) => (text.split_at(at).0.to_owned(), at + len),
            None => (text.clone(), text.len()),
        }
    }
}

/// A job that was handed in.
pub(super) struct Asked {
    pub(super) ask: Ask,
    pub(super) events: mpsc::Receiver<Event>,
    job: String,
}

impl Kept {
    pub(super) async fn start(terms: Terms) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let ledger = Ledger {
            terms,
            slots: vec![Vec::new(); terms.limits.slots as usize],
            jobs: BTreeMap::new(),
            outputs: Vec::new(),
            log: Arc::clone(&log),
        };
        let (handle, end) = start(Box::new(ledger), 64).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while handle.loaded().is_none() {
            assert!(Instant::now() < deadline, "it does not load");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Self { handle, log, _end: end }
    }

    pub(super) fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    pub(super) fn submit(&self, ask: &Ask) -> Asked {
        let (events, receiver) = EngineHandle::events();
        let id = self.handle.next_job();
        let name = format!("job {}", id.0);
        let prompt =
            Prompt { tokens: ask.prompt.clone(), text: Some(name.clone()), ..Prompt::default() };
        let said = u32::try_from(ask.said).unwrap().min(ask.tokens_max);
        let (tokens, draws) = said_plainly(&ask.prompt, said, &ask.sampling);
        let chosen = u32::try_from(tokens.len()).unwrap();
        self.log().chosen.insert(name.clone(), chosen);
        self.log().sampling.insert(name.clone(), ask.sampling.clone());
        let mut sampler = Sampler::new(ask.sampling.clone(), 1);
        sampler.accept(&ask.prompt);
        sampler.resume(&tokens, draws).unwrap();
        let earlier = (chosen > 0).then_some(Earlier { tokens, cached_tokens: None });
        let job = Job {
            id,
            prompt: Arc::new(prompt),
            scope: Scope([ask.scope; 32]),
            tokens_max: ask.tokens_max,
            text: TextStream::new(ask.stop.as_slice()),
            sampler,
            earlier,
            deadline: Deadline::after(PATIENCE * 2),
            events,
            request: Arc::new(RequestProgress::new(Instant::now(), 1)),
            _permit: self.handle.try_enter().unwrap(),
        };
        self.handle.submit(job).unwrap();
        Asked { ask: ask.clone(), events: receiver, job: name }
    }

    /// Holds a reply to what a plain loop says, and its usage to what was
    /// computed. Returns the tokens that were cached.
    pub(super) async fn check(&self, mut asked: Asked) -> u32 {
        let mut said = String::new();
        let usage = loop {
            match tokio::time::timeout(PATIENCE, asked.events.recv()).await.expect("no end came") {
                Some(Event::Text { text, .. }) => said.push_str(&text),
                Some(Event::Replayed(text)) => {
                    assert!(asked.ask.said > 0 && said.is_empty(), "nothing was said before");
                    said.push_str(&text);
                }
                Some(Event::End(End::Finished { text, usage, .. })) => {
                    said.push_str(&text);
                    break usage;
                }
                Some(Event::End(End::Failed(detail))) => panic!("{}: {detail:?}", asked.job),
                None => panic!("{} got no end", asked.job),
            }
        };
        let (text, tokens) = asked.ask.answer();
        assert_eq!(said, text, "{}", asked.job);
        let prompt_tokens = u32::try_from(asked.ask.prompt.len()).unwrap();
        let reply_tokens = u32::try_from(tokens).unwrap();
        let cached = usage.prompt_tokens_details.cached_tokens;
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (prompt_tokens, reply_tokens));
        assert_eq!(Some(&cached), self.log().held_at_first.get(&asked.job), "{}", asked.job);
        cached
    }

    pub(super) async fn ask(&self, ask: &Ask) -> u32 {
        self.check(self.submit(ask)).await
    }
}
