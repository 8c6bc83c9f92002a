//! The llama.cpp engine: carries a planned step out on a context in which
//! every slot is a sequence with memory of its own. Decides nothing about who
//! is computed when, and chooses tokens only through the sampler.

mod calls;
#[cfg(test)]
mod oracle;
mod sequences;
mod sizing;
mod tokenizer;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rbee_llama::backend::{BUILD, system_info};
use rbee_llama::chat::ChatTemplate;
use rbee_llama::context::{AbortHandle, Context, ContextError};
use rbee_llama::context_params::{ContextParams, FlashAttention, KvType};
use rbee_llama::device::{DeviceKind, devices};
use rbee_llama::model::{LoadError, Model, ModelParams};

use super::backend::{Abilities, Core, Generator, Interrupt, Loaded, Loader, Speculation};
use super::disk::{Disk, DiskConfig, FileMark, Subject};
use super::embedder;
use super::memory::{Layout, MemoryLimits};
use super::pace::DRAFT_MAX;
use super::runner::STEP_TOKENS;
use crate::error::{LoadFailure, chain};
use crate::threads::compute_threads;
use sequences::LlamaBackend;
use sizing::{Sizes, Wishes};
use tokenizer::LlamaTokenizer;

/// What the processor is called among devices.
const CPU: &str = "cpu";

/// How to start the llama.cpp engine; `None` leaves a size to be worked out.
#[derive(Debug)]
pub(crate) struct LlamaLoader {
    pub(crate) path: PathBuf,
    pub(crate) slots: Option<u32>,
    pub(crate) context_tokens: Option<u32>,
    pub(crate) threads: Option<u32>,
    /// How slots lie in the context; `None` for what suits the device.
    pub(crate) layout: Option<Layout>,
    /// Most bytes of states outside the context.
    pub(crate) store_bytes_max: u64,
    /// Where states outlive the worker.
    pub(crate) disk: Option<DiskConfig>,
    /// Counts only for models whose state can be cut back.
    pub(crate) speculation: Speculation,
}

impl Loader for LlamaLoader {
    fn load(
        self: Box<Self>,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Core, Loaded), LoadFailure> {
        let go_on = |share: f32| {
            if progress(share) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        // Before it is loaded, so that a file which is replaced meanwhile shows.
        let file = FileMark::of(&self.path).ok();
        let model = Model::load(&self.path, &ModelParams::default(), go_on)?;
        if let Some(pooling) = embedder::llama::pooling_of(&model) {
            let threads = self.threads.unwrap_or_else(compute_threads);
            let (slots, context_tokens) = (self.slots, self.context_tokens);
            let wishes =
                embedder::llama::Wishes { slots, context_tokens, threads, device: device_name() };
            return embedder::llama::start(&model, pooling, wishes);
        }
        if !model.has_decoder() || model.vocab().is_empty() {
            let reason = "it does not generate text".to_owned();
            return Err(LoadFailure::Invalid { reason });
        }
        let template = ChatTemplate::from_model(&model, None)
            .map_err(|error| LoadFailure::Invalid { reason: error.to_string() })?;
        let wishes = Wishes { slots: self.slots, context_tokens: self.context_tokens };
        let sizes = Sizes::for_model(&model, wishes);
        let threads = self.threads.unwrap_or_else(compute_threads);
        let device = device_name();
        let layout = self.layout.unwrap_or_else(|| layout_for(&device));
        let params = context_params(sizes, threads, layout);
        let context = Context::new(Arc::clone(&model), &params)?;
        let can_cut = !model.has_recurrent_state();
        let memory = MemoryLimits {
            slots: sizes.slots,
            layout,
            can_cut,
            store_bytes_max: self.store_bytes_max,
        };
        let loaded = Loaded {
            slots: sizes.slots,
            context_tokens: context.n_ctx_seq().min(sizes.context_tokens),
            device,
            description: model.description(),
            // A state of fixed size cannot be cut back to where a step began.
            interrupt: can_cut.then(|| Arc::new(context.abort_handle()) as Arc<dyn Interrupt>),
            abilities: Abilities::Generates(Arc::new(LlamaTokenizer::new(
                Arc::clone(&model),
                template,
            ))),
            load_time: Duration::ZERO,
        };
        tracing::info!(
            threads,
            device = loaded.device,
            ?layout,
            system = system_info(),
            "model loaded"
        );
        let disk = self.disk.and_then(|config| {
            let form = form_of_states(&params, &loaded.device);
            Disk::start(config, Subject { file: Some(file?), form })
        });
        let speculation = if can_cut { self.speculation } else { Speculation::Off };
        let backend = Box::new(LlamaBackend::new(context, layout));
        Ok((Core::Generator(Generator { backend, memory, disk, speculation }), loaded))
    }
}

/// On a processor, attention over a memory that all share visits everybody's
/// tokens and skips the others' one by one; on a GPU, tokens that are shared
/// are worth more.
fn layout_for(device: &str) -> Layout {
    if device == CPU { Layout::Split } else { Layout::Unified }
}

fn context_params(sizes: Sizes, threads: u32, layout: Layout) -> ContextParams {
    ContextParams {
        n_ctx: sizes.slots.saturating_mul(sizes.context_tokens),
        n_batch: STEP_TOKENS,
        n_ubatch: STEP_TOKENS,
        n_seq_max: sizes.slots,
        n_outputs_max: sizes.slots + DRAFT_MAX,
        n_threads: threads,
        n_threads_batch: threads,
        kv_unified: layout == Layout::Unified,
        flash_attention: FlashAttention::Auto,
        type_k: KvType::F16,
        type_v: KvType::F16,
        swa_full: false,
        embeddings: false,
        pooling: None,
    }
}

/// All that decides how llama.cpp writes a state down, and may change between
/// builds, machines and settings.
fn form_of_states(params: &ContextParams, device: &str) -> String {
    let ContextParams { kv_unified, flash_attention, type_k, type_v, swa_full, .. } = params;
    format!(
        "llama.cpp {BUILD} {} on {device}, unified {kv_unified}, {flash_attention:?}, {type_k:?}, \
         {type_v:?}, whole windows {swa_full}",
        system_info()
    )
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
    gpu.map_or_else(|| CPU.to_owned(), |device| device.name.to_lowercase())
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
