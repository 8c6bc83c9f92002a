//! `--estimate`: what a model would take of each device, as it would be run
//! with these settings. Loads no weights and computes nothing.

use rbee_api::model::ModelKind;
use rbee_llama::context_params::{FlashAttention, Pooling};
use rbee_llama::device::DeviceKind;
use rbee_llama::memory_use::DeviceUse;
use serde::Serialize;

use super::LlamaLoader;
use super::plan::{Measured, has_room};
use super::sizing::free_memory_bytes;
use crate::engine::memory::Layout;
use crate::error::LoadFailure;

/// The estimate, as it is printed.
#[derive(Debug, Serialize)]
pub(crate) struct Estimate {
    model: String,
    kind: ModelKind,
    /// Whether every device has room for its part.
    pub(crate) fits: bool,
    slots: u32,
    context_tokens: u32,
    kv_layout: &'static str,
    layers: u32,
    gpu_layers: u32,
    cache_type_k: &'static str,
    cache_type_v: &'static str,
    flash_attention: &'static str,
    threads: u32,
    devices: Vec<DeviceEstimate>,
}

#[derive(Debug, Serialize)]
struct DeviceEstimate {
    name: String,
    description: String,
    weights_bytes: u64,
    kv_bytes: u64,
    compute_bytes: u64,
    /// Conversations that are kept outside the slots, at most.
    store_bytes: u64,
    required_bytes: u64,
    free_bytes: u64,
    total_bytes: u64,
    fits: bool,
}

impl LlamaLoader {
    /// Says what a start with these settings would take.
    ///
    /// # Errors
    /// What a start would fail with before it loads weights.
    pub(crate) fn estimate(&self) -> Result<Estimate, LoadFailure> {
        let spread = self.spread(&mut || true)?;
        let Measured { model, shape, uses } = self.measure(&spread)?;
        let model = model.model();
        let is_generating = shape.pooling.is_none();
        let store_bytes = if is_generating { self.store_bytes_max } else { 0 };
        let devices: Vec<_> =
            uses.into_iter().map(|used| device_estimate(used, store_bytes)).collect();
        Ok(Estimate {
            model: model.description(),
            kind: match shape.pooling {
                None => ModelKind::Generate,
                Some(Pooling::Rank) => ModelKind::Rerank,
                Some(Pooling::None | Pooling::Mean | Pooling::First | Pooling::Last) => {
                    ModelKind::Embed
                }
            },
            fits: devices.iter().all(|device| device.fits),
            slots: shape.slots,
            context_tokens: shape.context_tokens,
            kv_layout: match shape.layout {
                Layout::Split => "split",
                Layout::Unified => "unified",
            },
            layers: model.n_layer().saturating_add(1),
            gpu_layers: spread.layers_on_gpus(model),
            cache_type_k: shape.params.type_k.as_str(),
            cache_type_v: shape.params.type_v.as_str(),
            flash_attention: match shape.params.flash_attention {
                FlashAttention::Auto => "auto",
                FlashAttention::On => "on",
                FlashAttention::Off => "off",
            },
            threads: shape.params.n_threads,
            devices,
        })
    }
}

/// `store_bytes` lie in main memory, of which llama.cpp does not know how much
/// is free.
fn device_estimate(mut used: DeviceUse, store_bytes: u64) -> DeviceEstimate {
    let is_processor = used.device.kind == DeviceKind::Cpu;
    if is_processor && let Some(free) = free_memory_bytes() {
        used.device.memory_free_bytes = free;
    }
    let store_bytes = if is_processor { store_bytes } else { 0 };
    let required_bytes = used.total_bytes().saturating_add(store_bytes);
    let left = used.device.memory_free_bytes.saturating_sub(used.total_bytes());
    DeviceEstimate {
        fits: has_room(&used) && left >= store_bytes,
        name: used.device.name,
        description: used.device.description,
        weights_bytes: used.weights_bytes,
        kv_bytes: used.kv_bytes,
        compute_bytes: used.compute_bytes,
        store_bytes,
        required_bytes,
        free_bytes: used.device.memory_free_bytes,
        total_bytes: used.device.memory_total_bytes,
    }
}
