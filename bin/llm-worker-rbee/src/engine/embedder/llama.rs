//! Embeddings and scores by llama.cpp. Every step begins with an empty memory.
//! A model that reads its inputs whole gets each step in one piece; one that
//! reads from left to right and is asked about the last token alone gets the
//! rest first, without any output, which saves it the logits of every token.

mod reader;

use std::sync::Arc;
use std::time::Duration;

use rbee_api::model::ModelKind;
use rbee_llama::batch::{Batch, BatchFull, Logits};
use rbee_llama::context::{Context, DecodeError};
use rbee_llama::context_params::{ContextParams, Pooling};
use rbee_llama::model::Model;
use rbee_llama::vocab::Token;

use super::{Backend, Dimensions, Embedding, StepLimits};
use crate::config::placement::Placement;
use crate::engine::backend::{Abilities, Core, Interrupt, Loaded, StepError};
use crate::engine::llama::{Shape, Sizes, log_memory};
use crate::engine::runner::STEP_TOKENS;
use crate::error::{LoadFailure, chain};
use reader::LlamaReader;

/// Requests served at once where nobody says: short inputs of this many just fill a step.
const SLOTS_DEFAULT: u32 = 64;
/// Context where nobody says. A model that reads inputs whole needs memory for
/// every token of the longest one at once.
const CONTEXT_TOKENS_DEFAULT: u32 = 2048;

/// How a model pools its tokens, if it is one that gives a result for each
/// input and not text: its file names a pooling, or says that attention looks
/// ahead, which no model can write with. Such an encoder without a pooling has
/// its tokens averaged, as its kind is trained for.
pub(crate) fn pooling_of(model: &Model) -> Option<Pooling> {
    let architecture = model.meta("general.architecture")?;
    let meta = |key: &str| model.meta(&format!("{architecture}.{key}"));
    let pooling = meta("pooling_type").and_then(|text| text.parse().ok());
    match pooling.map(Pooling::from_number) {
        Some(Some(pooling)) if pooling != Pooling::None => Some(pooling),
        _ if meta("attention.causal").as_deref() == Some("false") => Some(Pooling::Mean),
        _ => None,
    }
}

/// Requests served at once, and the context of each.
pub(crate) fn sizes(model: &Model, slots: Option<u32>, context_tokens: Option<u32>) -> (u32, u32) {
    // Beyond the trained length some models have no positions at all.
    let trained = model.n_ctx_train().max(1);
    let context_tokens = context_tokens.unwrap_or(CONTEXT_TOKENS_DEFAULT).min(trained);
    (slots.unwrap_or(SLOTS_DEFAULT), context_tokens)
}

/// Prepares a loaded model that pools.
///
/// # Errors
/// Its context cannot be made.
pub(crate) fn start(
    model: &Arc<Model>,
    pooling: Pooling,
    shape: &Shape,
    device: String,
) -> Result<(Core, Loaded), LoadFailure> {
    let Shape { slots, context_tokens, params, .. } = shape;
    let (slots, context_tokens) = (*slots, *context_tokens);
    let reads = Reads::of(model, pooling);
    let context = Context::new(Arc::clone(model), params)?;
    log_memory(&context);
    if reads == Reads::LeftToRight && !context.is_causal() {
        let reason = "its attention looks ahead although its file does not say so".to_owned();
        return Err(LoadFailure::Invalid { reason });
    }
    let kind = if pooling == Pooling::Rank { ModelKind::Rerank } else { ModelKind::Embed };
    let names = ["general.name", "general.basename", "general.finetune"]
        .map(|key| model.meta(key).unwrap_or_default());
    let embedding = Embedding {
        kind,
        dimensions: Dimensions::of_model(model.n_embd(), names.iter().map(String::as_str)),
        reader: Arc::new(LlamaReader::new(Arc::clone(model))),
    };
    let loaded = Loaded {
        slots,
        context_tokens,
        device,
        description: model.description(),
        interrupt: Some(Arc::new(context.abort_handle()) as Arc<dyn Interrupt>),
        abilities: Abilities::Embeds(embedding),
        load_time: Duration::ZERO,
    };
    let limits = StepLimits { inputs: slots, tokens: STEP_TOKENS };
    let batch = Batch::with_capacity(context.n_batch());
    Ok((Core::Embedder(Box::new(LlamaEmbedder { context, batch, reads, limits })), loaded))
}

/// How a model has to be given its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// All of an input in one piece.
    Whole,
    /// In pieces of any size; the last token tells all.
    LeftToRight,
}

impl Reads {
    fn of(model: &Model, pooling: Pooling) -> Self {
        let architecture = model.meta("general.architecture").unwrap_or_default();
        let causal = model.meta(&format!("{architecture}.attention.causal"));
        match pooling {
            Pooling::Last | Pooling::Rank if causal.as_deref() != Some("false") => {
                Self::LeftToRight
            }
            Pooling::None | Pooling::Mean | Pooling::First | Pooling::Last | Pooling::Rank => {
                Self::Whole
            }
        }
    }
}

/// All sequences share one memory, because only then is a batch of inputs of
/// different lengths computed together.
pub(crate) fn context_params(
    model: &Model,
    pooling: Pooling,
    Sizes { slots, context_tokens }: Sizes,
    threads: u32,
    placement: &Placement,
) -> ContextParams {
    let reads = Reads::of(model, pooling);
    let longest = context_tokens.max(STEP_TOKENS);
    let piece = match reads {
        Reads::Whole => longest.next_multiple_of(slots),
        Reads::LeftToRight => STEP_TOKENS,
    };
    ContextParams {
        n_ctx: longest.max(piece),
        n_batch: piece,
        n_ubatch: piece,
        n_seq_max: slots,
        n_outputs_max: slots,
        n_threads: threads,
        n_threads_batch: threads,
        kv_unified: true,
        flash_attention: placement.flash_attention,
        type_k: placement.type_k,
        type_v: placement.type_v,
        swa_full: false,
        embeddings: reads == Reads::Whole,
        pooling: Some(pooling),
    }
}

/// Computes steps on a context.
#[derive(Debug)]
struct LlamaEmbedder {
    context: Context,
    batch: Batch,
    reads: Reads,
    limits: StepLimits,
}

impl Backend for LlamaEmbedder {
    fn limits(&self) -> StepLimits {
        self.limits
    }

    fn compute(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
        let outcome = match self.reads {
            Reads::Whole => self.compute_whole(inputs),
            Reads::LeftToRight => self.compute_in_pieces(inputs),
        };
        self.forget(inputs.len())?;
        outcome
    }
}

impl LlamaEmbedder {
    fn compute_whole(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
        self.batch.clear();
        for (sequence, input) in (0..).zip(inputs) {
            for (position, token) in (0..).zip(*input) {
                let row = self.batch.push(Token(*token), position, sequence, Logits::Want);
                row.map_err(too_much)?;
            }
        }
        self.decode()?;
        self.results(inputs.len())
    }

    fn compute_in_pieces(&mut self, inputs: &[&[u32]]) -> Result<Vec<Vec<f32>>, StepError> {
        self.context.set_embeddings(false);
        self.batch.clear();
        for (sequence, input) in (0..).zip(inputs) {
            let before_last = input.len().saturating_sub(1);
            for (position, token) in (0..).zip(input.iter().take(before_last)) {
                if self.batch.len() == self.batch.capacity() {
                    self.decode()?;
                    self.batch.clear();
                }
                let row = self.batch.push(Token(*token), position, sequence, Logits::Skip);
                row.map_err(too_much)?;
            }
        }
        if !self.batch.is_empty() {
            self.decode()?;
        }
        self.context.set_embeddings(true);
        self.batch.clear();
        for (sequence, input) in (0..).zip(inputs) {
            let position = u32::try_from(input.len()).unwrap_or(u32::MAX).saturating_sub(1);
            let token = input.last().copied().unwrap_or_default();
            let row = self.batch.push(Token(token), position, sequence, Logits::Want);
            row.map_err(too_much)?;
        }
        self.decode()?;
        self.results(inputs.len())
    }

    fn decode(&mut self) -> Result<(), StepError> {
        self.context.decode(&self.batch).map_err(|error| match error {
            DecodeError::NoRoom => StepError::NoRoom,
            DecodeError::Aborted => StepError::Interrupted,
            error @ (DecodeError::Invalid(_) | DecodeError::Fatal { .. }) => fatal(chain(&error)),
        })
    }

    fn results(&self, inputs: usize) -> Result<Vec<Vec<f32>>, StepError> {
        (0_u32..)
            .take(inputs)
            .map(|sequence| self.context.embedding_of_sequence(sequence).map(<[f32]>::to_vec))
            .collect::<Result<_, _>>()
            .map_err(|error| fatal(error.to_string()))
    }

    fn forget(&mut self, inputs: usize) -> Result<(), StepError> {
        (0_u32..).take(inputs).try_for_each(|sequence| {
            self.context.seq_rm(sequence, ..).map_err(|error| fatal(error.to_string()))
        })
    }
}

/// The planner and the check of every input against the context prevent it.
fn too_much(error: BatchFull) -> StepError {
    fatal(error.to_string())
}

fn fatal(reason: impl Into<String>) -> StepError {
    StepError::Fatal { reason: reason.into() }
}
