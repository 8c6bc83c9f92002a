//! The stand-in engine for tests: deterministic, no model, the same scheduler,
//! slots, stop sequences and character handling as the real one. Repeats the
//! last user message, or the result of a tool after it, or does what a script at
//! its beginning says. Compiled into the real worker, reachable only by
//! `--engine echo`.

mod script;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rbee_api::openai::Role;
use rbee_llama::chat::ChatTemplate;
use tokio::time::Instant;

use super::backend::{
    Abilities, Backend, Conversation, Core, Generator, Loaded, Loader, Prepared, Prompt,
    PromptError, Run, Speculation, StepError, Tokenizer, Unusable,
};
use super::disk::{Disk, DiskConfig, Subject};
use super::memory::{Layout, MemoryLimits};
use super::template::render;
use crate::error::LoadFailure;
use crate::guide::Guide;
use crate::sampler::Sampler;
use script::Script;

/// Ids that a prompt of token ids may hold: each is said as a word.
pub(super) const VOCABULARY: usize = 32_768;
/// A template whose model thinks before it answers, and calls tools in the form
/// of models that were trained for none.
const TEMPLATE: &str = r"
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.reasoning_content %}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
{%- endif %}
{{- message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}";
/// Time between two steps of a pretended load.
const LOAD_STEP: Duration = Duration::from_millis(10);
/// The token that ends a reply; all others are positions in the reply, or drawn
/// pieces of it.
const END: u32 = u32::MAX;

/// How to start the echo engine.
#[derive(Debug)]
pub(crate) struct EchoLoader {
    pub(crate) slots: u32,
    pub(crate) context_tokens: u32,
    /// Most bytes of states outside the slots.
    pub(crate) store_bytes_max: u64,
    /// Time that it pretends to load for.
    pub(crate) load_time: Duration,
    /// Where states outlive the worker.
    pub(crate) disk: Option<DiskConfig>,
    /// Set when a script asks that SIGTERM be ignored from then on.
    pub(crate) ignore_sigterm: Arc<AtomicBool>,
}

impl Loader for EchoLoader {
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure> {
        pretend_to_load(self.load_time, progress)?;
        let template = ChatTemplate::from_source(TEMPLATE)
            .map_err(|error| LoadFailure::Invalid { reason: error.to_string() })?;
        let loaded = Loaded {
            abilities: Abilities::Generates(Arc::new(EchoTokenizer { template })),
            slots: self.slots,
            context_tokens: self.context_tokens,
            device: "cpu".to_owned(),
            description: "echo".to_owned(),
            interrupt: None,
            load_time: Duration::ZERO,
        };
        let backend = EchoBackend {
            slots: (0..self.slots).map(|_| Slot::default()).collect(),
            slots_of_runs: Vec::new(),
            ignore_sigterm: self.ignore_sigterm,
        };
        let memory = MemoryLimits {
            slots: self.slots,
            layout: Layout::Split,
            can_cut: true,
            store_bytes_max: self.store_bytes_max,
            tile_tokens: 1,
        };
        let speculation = Speculation::Off;
        let subject = Subject { file: None, form: "tokens".to_owned() };
        let disk = self.disk.and_then(|config| Disk::start(config, subject));
        let generator = Generator { backend: Box::new(backend), memory, disk, speculation };
        Ok((Core::Generator(generator), loaded))
    }
}

/// Lets time go by in small steps, as a model comes in by its tensors.
fn pretend_to_load(
    time: Duration,
    progress: &mut dyn FnMut(f32) -> bool,
) -> Result<(), LoadFailure> {
    let started = Instant::now();
    loop {
        let done = started.elapsed();
        let share = if done < time { done.as_secs_f32() / time.as_secs_f32() } else { 1.0 };
        if !progress(share) {
            return Err(LoadFailure::Stopped);
        }
        if done >= time {
            return Ok(());
        }
        wait_until(started + time.min(done + LOAD_STEP));
    }
}

/// Makes a token of each word. Conversations that ask for tools or thinking are
/// told how their replies are read; all others are all content.
#[derive(Debug)]
struct EchoTokenizer {
    template: ChatTemplate,
}

impl EchoTokenizer {
    fn prompt<'a>(
        words: impl Iterator<Item = &'a str>,
        text: String,
    ) -> Result<Prompt, PromptError> {
        Script::parse(&text)?;
        let mut tokens: Vec<u32> = words.map(token_of).collect();
        if tokens.is_empty() {
            tokens.push(token_of(""));
        }
        Ok(Prompt { tokens, text: Some(text), ..Prompt::default() })
    }
}

/// The same for the same word; hardly ever the same for two.
fn token_of(word: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    word.hash(&mut hasher);
    let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

impl Tokenizer for EchoTokenizer {
    fn chat(&self, conversation: &Conversation) -> Result<Prepared, PromptError> {
        let Conversation { messages, tools, thinking } = conversation;
        let words = messages.iter().flat_map(|message| message.content.split_whitespace());
        let said = |role: Role| messages.iter().rposition(|message| message.role == role);
        // The result of a call is what the conversation is about then.
        let last = said(Role::Tool).max(said(Role::User)).and_then(|at| messages.get(at));
        let text = last.map(|message| message.content.clone()).unwrap_or_default();
        let mut prepared = Prepared::from(Self::prompt(words, text)?);
        if !tools.tools.is_empty() || thinking.enabled == Some(true) {
            prepared.format = render(&self.template, conversation)?.reply;
        }
        Ok(prepared)
    }

    fn text(&self, text: &str) -> Result<Prompt, PromptError> {
        Self::prompt(text.split_whitespace(), text.to_owned())
    }

    fn tokens(&self, tokens: &[u32]) -> Result<Prompt, PromptError> {
        for (position, token) in tokens.iter().copied().enumerate() {
            if token as usize >= VOCABULARY {
                let vocabulary = VOCABULARY;
                return Err(PromptError::UnknownToken { token, position, vocabulary });
            }
        }
        let words: Vec<String> = tokens.iter().map(|token| format!("t{token}")).collect();
        Self::prompt(words.iter().map(String::as_str), words.join(" "))
    }

    fn spelling(&self, token: u32) -> Vec<u8> {
        format!("t{token}").into_bytes()
    }

    fn guide(&self) -> Option<&Guide> {
        None
    }
}

/// One slot: what it holds and the reply that is running there.
#[derive(Debug, Default)]
struct Slot {
    tokens: Vec<u32>,
    /// The prompt that must stand at their beginning.
    prompt: Vec<u32>,
    script: Script,
    /// Position of the next token of the reply.
    next: u32,
}

impl Slot {
    /// The tokens of its own job's reply that it holds; `None` where it holds
    /// anything but the prompt and tokens chosen of that reply.
    fn reply_held(&self) -> Option<u32> {
        let reply = self.tokens.strip_prefix(self.prompt.as_slice())?;
        let len = u32::try_from(reply.len()).ok().filter(|len| *len <= self.next)?;
        (self.script.draws || reply.iter().copied().eq(0..len)).then_some(len)
    }
}

/// Plays scripts, and holds the worker to what it says a slot holds.
#[derive(Debug)]
struct EchoBackend {
    slots: Vec<Slot>,
    /// The slot of each run of the last step.
    slots_of_runs: Vec<u32>,
    ignore_sigterm: Arc<AtomicBool>,
}

impl EchoBackend {
    fn slot_mut(&mut self, slot: u32) -> Result<&mut Slot, Unusable> {
        let unknown = || Unusable { reason: format!("there is no slot {slot}") };
        self.slots.get_mut(slot as usize).ok_or_else(unknown)
    }

    fn hold(&mut self, slot: u32, tokens: Option<&[u32]>) -> Result<(), Unusable> {
        let held = self.slot_mut(slot)?;
        held.tokens.clear();
        let fewer = || Unusable { reason: "there are fewer tokens than that".to_owned() };
        held.tokens.extend_from_slice(tokens.ok_or_else(fewer)?);
        Ok(())
    }
}

impl Backend for EchoBackend {
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>, reply_tokens: u32) {
        // The tokenizer has parsed it already, so a script that is wrong cannot be here.
        let script = Script::parse(prompt.text.as_deref().unwrap_or_default()).unwrap_or_default();
        if script.ignore_sigterm {
            self.ignore_sigterm.store(true, Ordering::Relaxed);
        }
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.script = script;
            place.prompt.clone_from(&prompt.tokens);
            place.next = reply_tokens;
        }
    }

    fn step(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        let started = Instant::now();
        let mut delay = Duration::ZERO;
        self.slots_of_runs.clear();
        for run in runs {
            self.slots_of_runs.push(run.slot);
            let Some(slot) = self.slots.get_mut(run.slot as usize) else { continue };
            if slot.tokens.len() != run.position as usize {
                let reason = format!(
                    "slot {} holds {} tokens and not {}",
                    run.slot,
                    slot.tokens.len(),
                    run.position
                );
                return Err(StepError::Fatal { reason });
            }
            slot.tokens.extend_from_slice(run.tokens);
            if run.outputs == 0 {
                continue;
            }
            let Some(held) = slot.reply_held() else {
                let reason = format!("slot {} holds somebody else's tokens", run.slot);
                return Err(StepError::Fatal { reason });
            };
            let token = Some(held + 1);
            if slot.script.die_at == token {
                std::process::abort();
            }
            if slot.script.hang_at == token {
                hang();
            }
            if held > 0 {
                delay = delay.max(slot.script.delay);
            }
        }
        wait_until(started + delay);
        Ok(())
    }

    fn choose(&mut self, run: usize, _: u32, sampler: &mut Sampler) -> Option<u32> {
        let slot = *self.slots_of_runs.get(run)?;
        let slot = self.slots.get_mut(slot as usize)?;
        let token = slot.next;
        if slot.reply_held() != Some(token) {
            tracing::error!("a token is to be chosen that was chosen before");
            return None;
        }
        slot.next += 1;
        if token >= slot.script.tokens {
            return Some(END);
        }
        if !slot.script.draws {
            return Some(token);
        }
        let pieces = slot.script.pieces();
        let drawn = sampler.choose(&vec![0.0; pieces])?;
        if token == 0 && slot.script.fail_first == Some(drawn + 1) {
            return None;
        }
        // The first piece would come without its space.
        Some(drawn.saturating_add(u32::try_from(pieces).unwrap_or(u32::MAX)))
    }

    fn is_end(&self, _: u32, token: u32) -> bool {
        token == END
    }

    fn piece(&self, slot: u32, token: u32) -> &[u8] {
        self.slots.get(slot as usize).map_or(&[], |slot| slot.script.piece(token))
    }

    fn cut(&mut self, slot: u32, len: u32) -> Result<(), Unusable> {
        let tokens = std::mem::take(&mut self.slot_mut(slot)?.tokens);
        self.hold(slot, tokens.get(..len as usize))
    }

    fn copy(&mut self, from: u32, to: u32, len: u32) -> Result<(), Unusable> {
        let tokens = self.slot_mut(from)?.tokens.clone();
        self.hold(to, tokens.get(..len as usize))
    }

    fn save(&mut self, slot: u32) -> Result<Vec<u8>, Unusable> {
        let tokens = &self.slot_mut(slot)?.tokens;
        Ok(tokens.iter().flat_map(|token| token.to_le_bytes()).collect())
    }

    fn restore(&mut self, slot: u32, state: &[u8], len: u32) -> Result<(), Unusable> {
        let (tokens, _) = state.as_chunks();
        let tokens: Vec<u32> = tokens.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        self.hold(slot, tokens.get(..len as usize))
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Stands for the time that a real engine computes.
pub(super) fn wait_until(end: Instant) {
    loop {
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return;
        }
        std::thread::park_timeout(rest);
    }
}
