//! Carries steps out on a llama.cpp context in which every slot is a sequence:
//! computes, cuts, copies, saves and restores. Decides nothing about who is
//! computed when, and chooses tokens only through the sampler.

use std::sync::Arc;

use rbee_llama::batch::{Batch, Logits};
use rbee_llama::context::{Context, DecodeError};
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
    batch: Batch,
    /// The row of the last batch in which each run's first output stands.
    first_outputs: Vec<usize>,
}

impl LlamaBackend {
    pub(super) fn new(context: Context, layout: Layout) -> Self {
        let batch = Batch::with_capacity(context.n_batch());
        Self { context, layout, batch, first_outputs: Vec::new() }
    }

    /// Writes the runs into the batch.
    fn fill_batch(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        self.batch.clear();
        self.first_outputs.clear();
        for run in runs {
            let silent = run.tokens.len().saturating_sub(run.outputs as usize);
            self.first_outputs.push(self.batch.len() + silent);
            for ((index, token), position) in run.tokens.iter().enumerate().zip(run.position..) {
                let logits = if index < silent { Logits::Skip } else { Logits::Want };
                let pushed = self.batch.push(Token(*token), position, run.slot, logits);
                pushed.map_err(|error| fatal(error.to_string()))?;
            }
        }
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
    fn begin(&mut self, _: u32, _: &Arc<Prompt>, _: u32) {}

    fn step(&mut self, runs: &[Run<'_>]) -> Result<(), StepError> {
        self.fill_batch(runs)?;
        match self.context.decode(&self.batch) {
            Ok(()) => Ok(()),
            Err(DecodeError::NoRoom) => Err(StepError::NoRoom),
            Err(DecodeError::Aborted) => {
                self.roll_back(runs)?;
                Err(StepError::Interrupted)
            }
            Err(error @ (DecodeError::Invalid(_) | DecodeError::Fatal { .. })) => {
                Err(fatal(chain(&error)))
            }
        }
    }

    fn choose(&mut self, run: usize, output: u32, sampler: &mut Sampler) -> Option<u32> {
        let row = *self.first_outputs.get(run)? + output as usize;
        match self.context.logits(row) {
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

    fn piece(&self, _: u32, token: u32) -> &[u8] {
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
