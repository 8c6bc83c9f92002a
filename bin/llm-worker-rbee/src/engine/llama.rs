//! The llama.cpp engine: carries a planned step out on a context in which
//! every slot is a sequence with memory of its own. Decides nothing about who
//! is computed when, and chooses tokens only through the sampler.

mod calls;
#[cfg(test)]
mod oracle;
mod sizing;
mod tokenizer;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbee_llama::backend::system_info;
use rbee_llama::batch::{Batch, Logits};
use rbee_llama::chat::ChatTemplate;
use rbee_llama::context::{AbortHandle, Context, ContextError, DecodeError};
use rbee_llama::context_params::{ContextParams, FlashAttention, KvType};
use rbee_llama::device::{DeviceKind, devices};
use rbee_llama::model::{LoadError, Model, ModelParams};
use rbee_llama::vocab::Token;

use super::backend::{Backend, Interrupt, Loaded, Loader, Prompt, StepError};
use super::runner::STEP_TOKENS;
use crate::error::{LoadFailure, chain};
use crate::sampler::Sampler;
use crate::scheduler::{Entry, Work};
use crate::threads::compute_threads;
use sizing::{Sizes, Wishes};
use tokenizer::LlamaTokenizer;

/// How to start the llama.cpp engine; `None` leaves a size to be worked out.
#[derive(Debug)]
pub(crate) struct LlamaLoader {
    pub(crate) path: PathBuf,
    pub(crate) slots: Option<u32>,
    pub(crate) context_tokens: Option<u32>,
    pub(crate) threads: Option<u32>,
}

impl Loader for LlamaLoader {
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Box<dyn Backend>, Loaded), LoadFailure> {
        let go_on = |share: f32| {
            if progress(share) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let model = Model::load(&self.path, &ModelParams::default(), go_on)?;
        if !model.has_decoder() || model.vocab().is_empty() {
            let reason = "it does not generate text".to_owned();
            return Err(LoadFailure::Invalid { reason });
        }
        let template = ChatTemplate::from_model(&model, None)
            .map_err(|error| LoadFailure::Invalid { reason: error.to_string() })?;
        let wishes = Wishes { slots: self.slots, context_tokens: self.context_tokens };
        let sizes = Sizes::for_model(&model, wishes);
        let threads = self.threads.unwrap_or_else(compute_threads);
        let context = Context::new(Arc::clone(&model), &context_params(sizes, threads))?;
        let loaded = Loaded {
            slots: sizes.slots,
            context_tokens: context.n_ctx_seq().min(sizes.context_tokens),
            device: device_name(),
            description: model.description(),
            interrupt: interrupt_of(&model, &context),
            tokenizer: Arc::new(LlamaTokenizer::new(Arc::clone(&model), template)),
            load_time: Duration::ZERO,
        };
        tracing::info!(threads, device = loaded.device, system = system_info(), "model loaded");
        Ok((Box::new(LlamaBackend::new(context, sizes.slots)), loaded))
    }
}

/// The KV memory is split by slot: on a processor, attention over a memory that
/// all share visits everybody's tokens and skips the others' one by one.
fn context_params(sizes: Sizes, threads: u32) -> ContextParams {
    ContextParams {
        n_ctx: sizes.slots.saturating_mul(sizes.context_tokens),
        n_batch: STEP_TOKENS,
        n_ubatch: STEP_TOKENS,
        n_seq_max: sizes.slots,
        n_outputs_max: sizes.slots,
        n_threads: threads,
        n_threads_batch: threads,
        kv_unified: false,
        flash_attention: FlashAttention::Auto,
        type_k: KvType::F16,
        type_v: KvType::F16,
        swa_full: false,
        embeddings: false,
    }
}

/// A state of fixed size cannot be cut back to where an interrupted step began.
fn interrupt_of(model: &Model, context: &Context) -> Option<Arc<dyn Interrupt>> {
    let can_be_cut = !model.has_recurrent_state();
    can_be_cut.then(|| Arc::new(context.abort_handle()) as Arc<dyn Interrupt>)
}

impl Interrupt for AbortHandle {
    fn interrupt(&self) {
        self.abort();
    }

    fn allow(&self) {
        self.allow();
    }
}

fn device_name() -> String {
    let on_gpu = |kind| matches!(kind, DeviceKind::Gpu | DeviceKind::IntegratedGpu);
    let gpu = devices().into_iter().find(|device| on_gpu(device.kind));
    gpu.map_or_else(|| "cpu".to_owned(), |device| device.name.to_lowercase())
}

impl From<LoadError> for LoadFailure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::NotFound { .. } | LoadError::Unreadable { .. } => {
                Self::Unreadable { reason: chain(&error) }
            }
            LoadError::Invalid { .. } => Self::Invalid { reason: error.to_string() },
            LoadError::Aborted => Self::Stopped,
        }
    }
}

impl From<ContextError> for LoadFailure {
    fn from(error: ContextError) -> Self {
        match error {
            ContextError::EncoderDecoder => Self::Invalid { reason: error.to_string() },
            ContextError::Params(_) | ContextError::Refused { .. } => {
                Self::Resources { reason: chain(&error) }
            }
        }
    }
}

/// What a slot holds.
#[derive(Debug)]
struct Sequence {
    prompt: Arc<Prompt>,
    /// Tokens that the context holds of it.
    len: u32,
    /// The token chosen last, which the context does not hold yet.
    last: Token,
}

/// Runs steps on a context.
#[derive(Debug)]
struct LlamaBackend {
    context: Context,
    batch: Batch,
    sequences: Vec<Option<Sequence>>,
    /// The row of the last batch in which each entry ends.
    rows: Vec<usize>,
}

impl LlamaBackend {
    fn new(context: Context, slots: u32) -> Self {
        let batch = Batch::with_capacity(context.n_batch());
        Self { context, batch, sequences: (0..slots).map(|_| None).collect(), rows: Vec::new() }
    }

    /// Writes the entries into the batch.
    fn fill_batch(&mut self, entries: &[Entry]) -> Result<(), StepError> {
        self.batch.clear();
        self.rows.clear();
        for entry in entries {
            let place = self.sequences.get(entry.slot as usize).and_then(Option::as_ref);
            let sequence = place.ok_or_else(|| fatal("a slot without a job was planned"))?;
            let row = match entry.work {
                Work::Decode => {
                    self.batch.push(sequence.last, sequence.len, entry.slot, Logits::Want)
                }
                Work::Prefill { from, len, completes } => {
                    push_prompt(&mut self.batch, sequence, entry.slot, from, len, completes)
                }
            };
            self.rows.push(row.map_err(|error| fatal(error.to_string()))?);
        }
        Ok(())
    }

    fn sequence_mut(&mut self, slot: u32) -> Option<&mut Sequence> {
        self.sequences.get_mut(slot as usize)?.as_mut()
    }

    /// Forgets what an interrupted step has left behind.
    fn roll_back(&mut self, entries: &[Entry]) -> Result<(), StepError> {
        for entry in entries {
            let len = self.sequence_mut(entry.slot).map_or(0, |sequence| sequence.len);
            self.context.seq_rm(entry.slot, len..).map_err(|error| fatal(error.to_string()))?;
        }
        Ok(())
    }
}

/// Adds a part of a prompt; wants logits after its last token if it is complete.
fn push_prompt(
    batch: &mut Batch,
    sequence: &Sequence,
    slot: u32,
    from: u32,
    len: u32,
    completes: bool,
) -> Result<usize, rbee_llama::batch::BatchFull> {
    let mut row = 0;
    let last = from + len - 1;
    let tokens = sequence.prompt.tokens.iter().skip(from as usize).take(len as usize);
    for (position, token) in (from..).zip(tokens) {
        let logits = if completes && position == last { Logits::Want } else { Logits::Skip };
        row = batch.push(Token(*token), position, slot, logits)?;
    }
    Ok(row)
}

fn fatal(reason: impl Into<String>) -> StepError {
    StepError::Fatal { reason: reason.into() }
}

impl Backend for LlamaBackend {
    fn begin(&mut self, slot: u32, prompt: &Arc<Prompt>) {
        if let Some(place) = self.sequences.get_mut(slot as usize) {
            *place = Some(Sequence { prompt: Arc::clone(prompt), len: 0, last: Token(0) });
        }
    }

    fn step(&mut self, entries: &[Entry]) -> Result<(), StepError> {
        self.fill_batch(entries)?;
        match self.context.decode(&self.batch) {
            Ok(()) => {
                for entry in entries {
                    if let Some(sequence) = self.sequence_mut(entry.slot) {
                        sequence.len += entry.work.tokens();
                    }
                }
                Ok(())
            }
            Err(DecodeError::NoRoom) => Err(StepError::NoRoom),
            Err(DecodeError::Aborted) => {
                self.roll_back(entries)?;
                Err(StepError::Interrupted)
            }
            Err(error @ (DecodeError::Invalid(_) | DecodeError::Fatal { .. })) => {
                Err(fatal(chain(&error)))
            }
        }
    }

    fn choose(&mut self, index: usize, entry: &Entry, sampler: &mut Sampler) -> Option<u32> {
        let row = *self.rows.get(index)?;
        let logits = match self.context.logits(row) {
            Ok(logits) => logits,
            Err(error) => {
                tracing::error!(%error, "a step left no logits");
                return None;
            }
        };
        let token = sampler.choose(logits)?;
        self.sequence_mut(entry.slot)?.last = Token(token);
        Some(token)
    }

    fn is_end(&self, _: u32, token: u32) -> bool {
        self.context.model().vocab().is_eog(Token(token))
    }

    fn piece(&self, slot: u32, token: u32) -> &[u8] {
        let sequence = self.sequences.get(slot as usize).and_then(Option::as_ref);
        let visible = sequence.map(|sequence| sequence.prompt.visible.as_slice());
        if let Some((_, text)) = visible.and_then(|list| list.iter().find(|(id, _)| *id == token)) {
            return text;
        }
        self.context.model().vocab().piece_bytes(Token(token))
    }

    fn release(&mut self, slot: u32) {
        if let Some(place) = self.sequences.get_mut(slot as usize) {
            *place = None;
        }
        if let Err(error) = self.context.seq_rm(slot, ..) {
            tracing::error!(%error, "a slot could not be emptied");
        }
    }
}
