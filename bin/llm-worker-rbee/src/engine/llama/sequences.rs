//! Carries steps out on a llama.cpp context in which every slot is a sequence:
//! computes, cuts, copies, saves and restores. Decides nothing about who is
//! computed when, and chooses tokens only through the sampler.

use std::sync::Arc;

use rbee_llama::batch::{Batch, Logits};
use rbee_llama::context::{Context, DecodeError, NoOutput};
use rbee_llama::vocab::Token;

use crate::engine::backend::{Backend, Prompt, Run, StepError, Unusable};
use crate::engine::memory::Layout;
use crate::error::chain;
use crate::sampler::Sampler;

/// Runs steps on a context.
#[derive(Debug)]
pub(super) struct LlamaBackend {
    context: Context,
    layout: Layout,
    /// What runs in each slot.
    prompts: Vec<Option<Arc<Prompt>>>,
    batch: Batch,
    /// Where each run of the last step left its first output.
    outputs: Vec<Output>,
    /// Logits of the prompts of a step that has streams as well.
    prompt_logits: Vec<f32>,
}

/// Where logits stand.
#[derive(Debug, Clone, Copy)]
enum Output {
    /// The row of the last batch.
    Row(usize),
    /// Counted in numbers from the beginning of `prompt_logits`.
    Kept(usize),
}

impl LlamaBackend {
    pub(super) fn new(context: Context, layout: Layout) -> Self {
        let batch = Batch::with_capacity(context.n_batch());
        let prompts = (0..context.n_seq_max()).map(|_| None).collect();
        Self { context, layout, prompts, batch, outputs: Vec::new(), prompt_logits: Vec::new() }
    }

    /// Computes runs in one batch and returns the rows of their first outputs.
    fn decode<'a>(
        &mut self,
        runs: impl Iterator<Item = &'a Run<'a>>,
    ) -> Result<Vec<usize>, StepError> {
        let mut first_outputs = Vec::with_capacity(runs.size_hint().0);
        self.batch.clear();
        for run in runs {
            let silent = run.tokens.len().saturating_sub(run.outputs as usize);
            first_outputs.push(self.batch.len() + silent);
            for ((index, token), position) in run.tokens.iter().enumerate().zip(run.position..) {
                let logits = if index < silent { Logits::Skip } else { Logits::Want };
                let pushed = self.batch.push(Token(*token), position, run.slot, logits);
                pushed.map_err(|error| fatal(error.to_string()))?;
            }
        }
        match self.context.decode(&self.batch) {
            Ok(()) => Ok(first_outputs),
            Err(DecodeError::NoRoom) => Err(StepError::NoRoom),
            Err(DecodeError::Aborted) => Err(StepError::Interrupted),
            Err(error @ (DecodeError::Invalid(_) | DecodeError::Fatal { .. })) => {
                Err(fatal(chain(&error)))
            }
        }
    }

    /// Computes the prompts of a step and then its streams. In one batch of a
    /// split memory llama.cpp would take the same number of tokens from each,
    /// which tears the prompts' tiles apart.
    fn decode_apart(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        let (prompts, streams): (Vec<_>, Vec<_>) =
            runs.iter().enumerate().partition(|(_, run)| run.tokens.len() > run.outputs as usize);
        self.prompt_logits.clear();
        let mut outputs = Vec::with_capacity(runs.len());
        if !prompts.is_empty() {
            let rows = self.decode(prompts.iter().map(|(_, run)| *run))?;
            for ((index, run), row) in prompts.into_iter().zip(rows) {
                outputs.push((index, Output::Kept(self.prompt_logits.len())));
                if run.outputs > 0 {
                    let logits = self.context.logits(row).unwrap_or_default();
                    self.prompt_logits.extend_from_slice(logits);
                }
            }
        }
        if !streams.is_empty() {
            let rows = self.decode(streams.iter().map(|(_, run)| *run))?;
            let rows = streams.iter().zip(rows);
            outputs.extend(rows.map(|((index, _), row)| (*index, Output::Row(row))));
        }
        outputs.sort_unstable_by_key(|(index, _)| *index);
        self.outputs.clear();
        self.outputs.extend(outputs.into_iter().map(|(_, output)| output));
        Ok(())
    }

    fn decode_together(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        let rows = self.decode(runs.iter())?;
        self.outputs.clear();
        self.outputs.extend(rows.into_iter().map(Output::Row));
        Ok(())
    }

    /// Forgets what an interrupted step has left behind.
    fn roll_back(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        for run in runs {
            let removed = self.context.seq_rm(run.slot, run.position..);
            removed.map_err(|error| fatal(error.to_string()))?;
        }
        Ok(())
    }

    fn empty(&mut self, slot: u32) -> Result<(), Unusable> {
        self.context.seq_rm(slot, ..).map_err(unusable)
    }

    /// Whether attention finds all it reaches for after the first `len` tokens:
    /// a window that moves on forgets what lies behind it.
    fn reaches_back(&self, slot: u32, len: u32) -> bool {
        let window = self.context.model().n_swa();
        let needed = if window == 0 { 0 } else { len.saturating_sub(window) };
        let remembered = self.context.seq_pos_min(slot);
        let last = self.context.seq_pos_max(slot);
        remembered.is_some_and(|first| first <= needed) && last.is_some_and(|last| last + 1 == len)
    }

    /// Cuts a slot that holds at least `len` tokens, more than none.
    fn cut_to(&mut self, slot: u32, len: u32) -> Result<(), Unusable> {
        let cut = self.context.seq_rm(slot, len..).map_err(unusable);
        if cut.is_ok() && self.reaches_back(slot, len) {
            return Ok(());
        }
        self.empty(slot)?;
        cut.and_then(|()| Err(unusable("its attention no longer reaches back so far")))
    }
}

fn fatal(reason: impl Into<String>) -> StepError {
    StepError::Fatal { reason: reason.into() }
}

fn unusable(reason: impl ToString) -> Unusable {
    Unusable { reason: reason.to_string() }
}

impl Backend for LlamaBackend {
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>, _: u32) {
        if let Some(place) = self.prompts.get_mut(slot as usize) {
            *place = Some(Arc::clone(prompt));
        }
    }

    fn step(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        let outcome = match self.layout {
            Layout::Split => self.decode_apart(runs),
            Layout::Unified => self.decode_together(runs),
        };
        if matches!(outcome, Err(StepError::NoRoom | StepError::Interrupted)) {
            self.roll_back(runs)?;
        }
        outcome
    }

    fn choose(&mut self, run: usize, output: u32, sampler: &mut Sampler) -> Option<u32> {
        let logits = match *self.outputs.get(run)? {
            Output::Row(row) => self.context.logits(row + output as usize),
            Output::Kept(from) => {
                let vocabulary = self.context.model().vocab().len();
                let none = NoOutput { index: run };
                self.prompt_logits.get(from..from + vocabulary).ok_or(none)
            }
        };
        match logits {
            Ok(logits) => sampler.choose(logits),
            Err(error) => {
                tracing::error!(%error, "a step left no logits");
                None
            }
        }
    }

    fn is_end(&self, _: u32, token: u32) -> bool {
        self.context.model().vocab().is_eog(Token(token))
    }

    fn piece(&self, slot: u32, token: u32) -> &[u8] {
        let prompt = self.prompts.get(slot as usize).and_then(Option::as_ref);
        let visible = prompt.map(|prompt| prompt.visible.as_slice());
        if let Some((_, text)) = visible.and_then(|list| list.iter().find(|(id, _)| *id == token)) {
            return text;
        }
        self.context.model().vocab().piece_bytes(Token(token))
    }

    fn cut(&mut self, slot: u32, len: u32) -> Result<(), Unusable> {
        if len == 0 { self.empty(slot) } else { self.cut_to(slot, len) }
    }

    /// A unified memory shares the tokens. Between memories of their own the
    /// state is copied: llama.cpp's own copy moves all that a slot could hold.
    fn copy(&mut self, from: u32, to: u32, len: u32) -> Result<(), Unusable> {
        match self.layout {
            Layout::Unified => {
                self.context.seq_cp(from, to, ..len).map_err(unusable)?;
                self.cut_to(to, len)
            }
            Layout::Split => {
                let state = self.save(from)?;
                self.restore(to, &state, len)
            }
        }
    }

    fn save(&mut self, slot: u32) -> Result<Vec<u8>, Unusable> {
        self.context.seq_state(slot).map_err(unusable)
    }

    fn restore(&mut self, slot: u32, state: &[u8], len: u32) -> Result<(), Unusable> {
        if let Err(error) = self.context.set_seq_state(slot, state) {
            self.empty(slot)?;
            return Err(unusable(error));
        }
        self.cut_to(slot, len)
    }
}
