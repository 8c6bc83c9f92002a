//! The stand-in engine for tests: deterministic, no model, the same scheduler,
//! slots, stop sequences and character handling as the real one. Repeats the
//! last user message, or the result of a tool after it, or does what a script at
//! its beginning says. Compiled into the real worker, reachable only by
//! `--engine echo`.

mod script;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rbee_api::openai::Role;
use rbee_llama::chat::ChatTemplate;
use tokio::time::Instant;

use super::backend::{
    Backend, Conversation, Loaded, Loader, Prepared, Prompt, PromptError, StepError, Tokenizer,
};
use super::template::render;
use crate::error::LoadFailure;
use crate::guide::Guide;
use crate::sampler::Sampler;
use crate::scheduler::{Entry, Work};
use script::Script;

/// Ids that a prompt of token ids may hold.
const VOCABULARY: usize = 32_768;
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
/// The token that ends a reply; all others are positions in the reply.
const END: u32 = u32::MAX;

/// How to start the echo engine.
#[derive(Debug)]
pub(crate) struct EchoLoader {
    pub(crate) slots: u32,
    pub(crate) context_tokens: u32,
    /// Set when a script asks that SIGTERM be ignored from then on.
    pub(crate) ignore_sigterm: Arc<AtomicBool>,
}

impl Loader for EchoLoader {
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Box<dyn Backend>, Loaded), LoadFailure> {
        if !progress(0.0) {
            return Err(LoadFailure::Stopped);
        }
        let template = ChatTemplate::from_source(TEMPLATE)
            .map_err(|error| LoadFailure::Invalid { reason: error.to_string() })?;
        let loaded = Loaded {
            tokenizer: Arc::new(EchoTokenizer { template }),
            slots: self.slots,
            context_tokens: self.context_tokens,
            device: "cpu".to_owned(),
            description: "echo".to_owned(),
            interrupt: None,
            load_time: Duration::ZERO,
        };
        let slots = (0..self.slots).map(|_| None).collect();
        Ok((Box::new(EchoBackend { slots, ignore_sigterm: self.ignore_sigterm }), loaded))
    }
}

/// Counts words. Conversations that ask for tools or thinking are told how
/// their replies are read; all others are all content.
#[derive(Debug)]
struct EchoTokenizer {
    template: ChatTemplate,
}

impl EchoTokenizer {
    fn prompt(words: usize, text: String) -> Result<Prompt, PromptError> {
        Script::parse(&text)?;
        let words = u32::try_from(words.max(1)).unwrap_or(u32::MAX);
        Ok(Prompt { tokens: (0..words).collect(), text: Some(text), ..Prompt::default() })
    }
}

impl Tokenizer for EchoTokenizer {
    fn chat(&self, conversation: &Conversation) -> Result<Prepared, PromptError> {
        let Conversation { messages, tools, thinking } = conversation;
        let words = messages.iter().map(|m| m.content.split_whitespace().count()).sum();
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
        Self::prompt(text.split_whitespace().count(), text.to_owned())
    }

    fn tokens(&self, tokens: &[u32]) -> Result<Prompt, PromptError> {
        for (position, token) in tokens.iter().copied().enumerate() {
            if token as usize >= VOCABULARY {
                let vocabulary = VOCABULARY;
                return Err(PromptError::UnknownToken { token, position, vocabulary });
            }
        }
        let words: Vec<String> = tokens.iter().map(|token| format!("t{token}")).collect();
        Self::prompt(words.len(), words.join(" "))
    }

    fn spelling(&self, token: u32) -> Vec<u8> {
        format!("t{token}").into_bytes()
    }

    fn guide(&self) -> Option<&Guide> {
        None
    }
}

/// One running reply.
#[derive(Debug)]
struct Reply {
    script: Script,
    /// Position of the next token.
    next: u32,
}

/// Plays scripts.
#[derive(Debug)]
struct EchoBackend {
    slots: Vec<Option<Reply>>,
    ignore_sigterm: Arc<AtomicBool>,
}

impl EchoBackend {
    fn reply(&self, slot: u32) -> Option<&Reply> {
        self.slots.get(slot as usize)?.as_ref()
    }
}

impl Backend for EchoBackend {
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>) {
        // The tokenizer has parsed it already, so a script that is wrong cannot be here.
        let script = Script::parse(prompt.text.as_deref().unwrap_or_default()).unwrap_or_default();
        if script.ignore_sigterm {
            self.ignore_sigterm.store(true, Ordering::Relaxed);
        }
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Reply { script, next: 0 });
        }
    }

    fn step(&mut self, entries: &[Entry]) -> Result<(), StepError> {
        let started = Instant::now();
        let mut delay = Duration::ZERO;
        for entry in entries.iter().filter(|entry| entry.work.yields_token()) {
            let Some(reply) = self.reply(entry.slot) else { continue };
            let token = Some(reply.next + 1);
            if reply.script.die_at == token {
                std::process::abort();
            }
            if reply.script.hang_at == token {
                hang();
            }
            if entry.work == Work::Decode {
                delay = delay.max(reply.script.delay);
            }
        }
        wait_until(started + delay);
        Ok(())
    }

    fn choose(&mut self, _: usize, entry: &Entry, _: &mut Sampler) -> Option<u32> {
        let reply = self.slots.get_mut(entry.slot as usize)?.as_mut()?;
        let token = reply.next;
        reply.next += 1;
        Some(if token < reply.script.tokens { token } else { END })
    }

    fn is_end(&self, _: u32, token: u32) -> bool {
        token == END
    }

    fn piece(&self, slot: u32, token: u32) -> &[u8] {
        self.reply(slot).map_or(&[], |reply| reply.script.piece(token))
    }

    fn release(&mut self, slot: u32) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = None;
        }
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Stands for the time that a real engine computes.
fn wait_until(end: Instant) {
    loop {
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return;
        }
        std::thread::park_timeout(rest);
    }
}
