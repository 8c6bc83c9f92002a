//! The llama.cpp engine: carries a planned step out on a context in which
//! every slot is a sequence with memory of its own. Decides nothing about who
//! is computed when, and chooses tokens only through the sampler.

mod attention;
mod calls;
mod estimate;
#[cfg(test)]
mod oracle;
mod plan;
mod sequences;
mod sizing;
mod template_watch;
mod tokenizer;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use attention::{Attention, tile_tokens};
use rbee_llama::backend::{BUILD, system_info};
use rbee_llama::chat::ChatTemplate;
use rbee_llama::context::{AbortHandle, Context, ContextError};
use rbee_llama::context_params::ContextParams;
use rbee_llama::model::{LoadError, Model};

use super::backend::{Abilities, Core, Generator, Interrupt, Loaded, Loader, Speculation};
use super::disk::{Disk, DiskConfig, FileMark, Subject};
use super::embedder;
use super::memory::{Layout, MemoryLimits};
use super::pace::DRAFT_MAX;
use super::runner::STEP_TOKENS;
use crate::config::placement::Placement;
use crate::error::{LoadFailure, chain};
pub(crate) use plan::Shape;
use sequences::LlamaBackend;
pub(crate) use sizing::Sizes;
use template_watch::TemplateWatch;
use tokenizer::LlamaTokenizer;

/// How to start the llama.cpp engine; `None` leaves a size to be worked out.
#[derive(Debug)]
pub(crate) struct LlamaLoader {
    pub(crate) path: PathBuf,
    pub(crate) slots: Option<u32>,
    pub(crate) context_tokens: Option<u32>,
    pub(crate) threads: Option<u32>,
    /// On which devices it lies, and in which form.
    pub(crate) placement: Placement,
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
        let spread = self.spread(&mut || progress(0.0))?;
        let go_on = |share: f32| {
            if progress(share) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        // Before it is loaded, so that a file which is replaced meanwhile shows.
        let file = FileMark::of(&self.path).ok();
        let model = Model::load(&self.path, &spread.model_params(&self.placement), go_on)?;
        let shape = self.shape(&model, &spread)?;
        let (layers, device) = (spread.layers_on_gpus(&model), spread.device());
        if spread.lacks_gpus(&self.placement) {
            tracing::warn!(
                "worker.gpu_layers asks for layers on a GPU and there is none that this program can use; all are \
                 computed on the processor"
            );
        }
        tracing::info!(threads = shape.params.n_threads, device, gpu_layers = layers,
            layout = ?shape.layout, system = system_info(), "weights loaded");
        match shape.pooling {
            Some(pooling) => embedder::llama::start(&model, pooling, &shape, device),
            None => self.generator(&model, &shape, device, file),
        }
    }
}

impl LlamaLoader {
    /// Prepares a loaded model that generates text.
    fn generator(
        &self,
        model: &Arc<Model>,
        shape: &Shape,
        device: String,
        file: Option<FileMark>,
    ) -> Result<(Core, Loaded), LoadFailure> {
        let watch = TemplateWatch::start()
            .map_err(|error| LoadFailure::Resources { reason: error.to_string() })?;
        let rendering = watch.begin();
        let template = ChatTemplate::from_model(model, None)
            .map_err(|error| LoadFailure::Invalid { reason: error.to_string() })?;
        drop(rendering);
        let context = Context::new(Arc::clone(model), &shape.params)?;
        log_memory(&context);
        let can_cut = !model.has_recurrent_state();
        let memory = MemoryLimits {
            slots: shape.slots,
            layout: shape.layout,
            can_cut,
            store_bytes_max: self.store_bytes_max,
            tile_tokens: tile_tokens(shape.params.flash_attention, shape.layout),
        };
        let loaded = Loaded {
            slots: shape.slots,
            context_tokens: context.n_ctx_seq().min(shape.context_tokens),
            device,
            description: model.description(),
            // A state of fixed size cannot be cut back to where a step began.
            interrupt: can_cut.then(|| Arc::new(context.abort_handle()) as Arc<dyn Interrupt>),
            abilities: Abilities::Generates(Arc::new(LlamaTokenizer::new(
                Arc::clone(model),
                template,
                watch,
            ))),
            load_time: Duration::ZERO,
        };
        let disk = self.disk.clone().and_then(|config| {
            let form = form_of_states(&shape.params, &loaded.device);
            Disk::start(config, Subject { file: Some(file?), form })
        });
        let speculation = if can_cut { self.speculation } else { Speculation::Off };
        let backend = Box::new(LlamaBackend::new(context, shape.layout));
        Ok((Core::Generator(Generator { backend, memory, disk, speculation }), loaded))
    }
}

/// Writes down what was really taken of each device.
pub(super) fn log_memory(context: &Context) {
    for used in context.memory_use().into_iter().flatten() {
        let (weights_bytes, kv_bytes) = (used.weights_bytes, used.kv_bytes);
        let (device, compute_bytes) = (used.device.name, used.compute_bytes);
        tracing::info!(device, weights_bytes, kv_bytes, compute_bytes, "memory taken");
    }
}

fn context_params(
    sizes: Sizes,
    threads: u32,
    layout: Layout,
    placement: &Placement,
    attention: Attention,
) -> ContextParams {
    ContextParams {
        n_ctx: sizes.slots.saturating_mul(sizes.context_tokens),
        n_batch: STEP_TOKENS,
        n_ubatch: attention.piece_tokens,
        n_seq_max: sizes.slots,
        n_outputs_max: sizes.slots + DRAFT_MAX,
        n_threads: threads,
        n_threads_batch: threads,
        kv_unified: layout == Layout::Unified,
        flash_attention: attention.flash,
        type_k: placement.type_k,
        type_v: placement.type_v,
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

impl From<LoadError> for LoadFailure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::NotFound { .. } | LoadError::Unreadable { .. } => {
                Self::Unreadable { reason: chain(&error) }
            }
            LoadError::Invalid { .. } => Self::Invalid { reason: error.to_string() },
            LoadError::NoSuchDevice { name, gpus } => {
                Self::NoSuchDevice { name, there: gpus.join(", ") }
            }
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
