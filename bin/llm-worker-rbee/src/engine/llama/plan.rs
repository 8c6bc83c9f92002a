//! Over which devices a model is spread, and how large it is run: decided from
//! the command line, the file's header and the memory that is free. Loads no
//! weights.

use rbee_llama::context_params::{ContextParams, Pooling, attends_rows};
use rbee_llama::device::{Device, DeviceKind, devices};
use rbee_llama::memory_use::{DeviceUse, MeasuredModel};
use rbee_llama::model::Model;
use rbee_llama::model_params::ModelParams;

use super::attention::{Attention, Facts};
use super::sizing::{self, Sizes, free_memory_bytes};
use super::{LlamaLoader, context_params};
use crate::config::placement::{GpuLayers, Placement};
use crate::engine::embedder;
use crate::engine::memory::Layout;
use crate::error::LoadFailure;
use crate::threads::compute_threads;

/// What is left free of a GPU: drivers, displays and other programs take some
/// after it was asked, and without it a computation would end the process.
const GPU_RESERVE_BYTES: u64 = 512 << 20;
/// What the processor is called among devices.
const CPU: &str = "cpu";

/// Over which devices the layers are spread.
#[derive(Debug, Clone)]
pub(super) struct Spread {
    /// Those that may hold layers; empty for the processor alone.
    gpus: Vec<Device>,
    /// Layers on GPUs, the output counted as one more; `None` for all.
    gpu_layers: Option<u32>,
    /// Main memory that was free before the load.
    host_free_bytes: Option<u64>,
}

impl Spread {
    /// The devices that compute, for listings.
    pub(super) fn device(&self) -> String {
        if self.gpus.is_empty() || self.gpu_layers == Some(0) {
            return CPU.to_owned();
        }
        let names: Vec<_> = self.gpus.iter().map(|gpu| gpu.name.to_lowercase()).collect();
        names.join(",")
    }

    /// Says whether layers on GPUs were asked for and there is no GPU for them.
    pub(super) fn lacks_gpus(&self, placement: &Placement) -> bool {
        let are_wanted = matches!(placement.gpu_layers, GpuLayers::All | GpuLayers::Count(1..));
        let may_be_used = placement.gpus.as_ref().is_none_or(|gpus| !gpus.0.is_empty());
        are_wanted && may_be_used && self.gpus.is_empty()
    }

    pub(super) fn model_params(&self, placement: &Placement) -> ModelParams {
        ModelParams {
            n_gpu_layers: self.gpu_layers,
            devices: placement.gpus.as_ref().map(|gpus| gpus.0.clone()),
            load_mode: placement.load_mode,
            lock_memory: placement.lock_memory,
        }
    }

    /// How many layers of a model are on GPUs, the output counted as one more.
    pub(super) fn layers_on_gpus(&self, model: &Model) -> u32 {
        let all = layers(model);
        if self.gpus.is_empty() { 0 } else { self.gpu_layers.unwrap_or(all).min(all) }
    }

    /// What is left beside the weights of the memory that the context is spread
    /// over: that of the GPUs, where they hold all layers.
    fn free_beside_weights(&self, model: &Model) -> Option<u64> {
        let on_gpus = self.layers_on_gpus(model);
        let gpus = self.gpus.iter().map(|gpu| gpu.memory_free_bytes);
        let gpus = gpus.fold(0, u64::saturating_add);
        let free = match on_gpus {
            0 => self.host_free_bytes?,
            some if some == layers(model) => gpus,
            _ => gpus.saturating_add(self.host_free_bytes?),
        };
        Some(free.saturating_sub(model.size_bytes()))
    }
}

fn layers(model: &Model) -> u32 {
    model.n_layer().saturating_add(1)
}

/// How a model is run.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) slots: u32,
    /// Tokens of context that each slot has.
    pub(crate) context_tokens: u32,
    pub(crate) layout: Layout,
    /// `None` for a model that generates text.
    pub(crate) pooling: Option<Pooling>,
    pub(crate) params: ContextParams,
}

/// A model as it would be loaded.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) model: MeasuredModel,
    pub(super) shape: Shape,
    pub(super) uses: Vec<DeviceUse>,
}

impl LlamaLoader {
    /// Decides where the layers go. Where that has to be found out, it asks
    /// `go_on` before each look at the file.
    ///
    /// # Errors
    /// A GPU was named that is not there, the file cannot be used, or `go_on`
    /// said no.
    pub(super) fn spread(&self, go_on: &mut dyn FnMut() -> bool) -> Result<Spread, LoadFailure> {
        let gpus = usable_gpus(devices(), &self.placement)?;
        let mut spread = Spread { gpus, gpu_layers: None, host_free_bytes: free_memory_bytes() };
        match self.placement.gpu_layers {
            GpuLayers::All => {}
            GpuLayers::Count(count) => spread.gpu_layers = Some(count),
            GpuLayers::Auto if spread.gpus.is_empty() => {}
            GpuLayers::Auto => spread.gpu_layers = self.layers_that_fit(&spread, go_on)?,
        }
        Ok(spread)
    }

    /// Finds the most layers that fit; `None` for all.
    fn layers_that_fit(
        &self,
        spread: &Spread,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<u32>, LoadFailure> {
        let mut fits_with = |layers| {
            if !go_on() {
                return Err(LoadFailure::Stopped);
            }
            match self.measure(&Spread { gpu_layers: layers, ..spread.clone() }) {
                Ok(measured) => {
                    let all = self::layers(measured.model.model());
                    Ok((gpus_have_room(&measured.uses), all))
                }
                // What no GPU can hold at all; a search ends with none of them.
                Err(LoadFailure::Resources { .. }) => Ok((false, 0)),
                Err(failure) => Err(failure),
            }
        };
        let (all_fit, layers) = fits_with(None)?;
        if all_fit {
            return Ok(None);
        }
        let (mut fitting, mut too_many) = (0, layers);
        while too_many - fitting > 1 {
            let middle = fitting.midpoint(too_many);
            if fits_with(Some(middle))?.0 {
                fitting = middle;
            } else {
                too_many = middle;
            }
        }
        Ok(Some(fitting))
    }

    /// Says what the model would take, spread like this.
    ///
    /// # Errors
    /// As a load.
    pub(super) fn measure(&self, spread: &Spread) -> Result<Measured, LoadFailure> {
        let model = MeasuredModel::load(&self.path, &spread.model_params(&self.placement))?;
        let shape = self.shape(model.model(), spread)?;
        let uses = model.measure(&shape.params)?;
        Ok(Measured { model, shape, uses })
    }

    /// Decides how large the model is run.
    ///
    /// # Errors
    /// It neither generates text nor embeds or ranks.
    pub(super) fn shape(&self, model: &Model, spread: &Spread) -> Result<Shape, LoadFailure> {
        let threads = self.threads.unwrap_or_else(compute_threads);
        if let Some(pooling) = embedder::llama::pooling_of(model) {
            let (slots, context_tokens) =
                embedder::llama::sizes(model, self.slots, self.context_tokens);
            let sizes = Sizes { slots, context_tokens };
            let params =
                embedder::llama::context_params(model, pooling, sizes, threads, &self.placement);
            let (layout, pooling) = (Layout::Unified, Some(pooling));
            return Ok(Shape { slots, context_tokens, layout, pooling, params });
        }
        if !model.has_decoder() || model.vocab().is_empty() {
            let reason = "it does not generate text".to_owned();
            return Err(LoadFailure::Invalid { reason });
        }
        let wishes = sizing::Wishes { slots: self.slots, context_tokens: self.context_tokens };
        let types = (self.placement.type_k, self.placement.type_v);
        let sizes = Sizes::for_model(model, wishes, types, spread.free_beside_weights(model));
        // On a processor, attention over a memory that all share visits
        // everybody's tokens and skips the others' one by one; on a GPU, tokens
        // that are shared are worth more.
        let on_gpus = spread.layers_on_gpus(model) == layers(model);
        let suits = if on_gpus { Layout::Unified } else { Layout::Split };
        let layout = self.layout.unwrap_or(suits);
        let Sizes { slots, context_tokens } = sizes;
        let attention = self.attention(model, spread, sizes, layout);
        let params = context_params(sizes, threads, layout, &self.placement, attention);
        if spread.layers_on_gpus(model) > 0 {
            gpus_take_pieces(&spread.gpus, model, &params)?;
        }
        Ok(Shape { slots, context_tokens, layout, pooling: None, params })
    }

    fn attention(&self, model: &Model, spread: &Spread, sizes: Sizes, layout: Layout) -> Attention {
        let types = (self.placement.type_k, self.placement.type_v);
        let cells = u64::from(sizes.context_tokens);
        let slots = u64::from(sizes.slots);
        let kv_bytes = sizing::kv_bytes_per_token(model, types).unwrap_or(0);
        Attention::choose(Facts {
            wish: self.placement.flash_attention,
            on_processor: spread.layers_on_gpus(model) == 0,
            attends_rows: attends_rows(self.placement.type_k, self.placement.type_v),
            type_v: self.placement.type_v,
            cells_seen: cells_seen(sizes, layout),
            heads: sizing::heads(model),
            model_bytes: kv_bytes
                .saturating_mul(cells)
                .saturating_mul(slots)
                .saturating_add(model.size_bytes()),
        })
    }
}

/// Tokens that one token can see at most.
fn cells_seen(sizes: Sizes, layout: Layout) -> u64 {
    let cells = u64::from(sizes.context_tokens);
    match layout {
        Layout::Split => cells,
        Layout::Unified => cells.saturating_mul(u64::from(sizes.slots)),
    }
}

/// The GPUs that may hold layers: those named, else all, without the ones that
/// share main memory where there are others.
fn usable_gpus(devices: Vec<Device>, placement: &Placement) -> Result<Vec<Device>, LoadFailure> {
    let gpus: Vec<Device> = devices.into_iter().filter(|device| device.kind.is_gpu()).collect();
    if let Some(named) = &placement.gpus {
        let find = |name: &String| {
            let found = gpus.iter().find(|gpu| gpu.name == *name).cloned();
            found.ok_or_else(|| no_such_gpu(name, &gpus))
        };
        return named.0.iter().map(find).collect();
    }
    let has_own_memory = |gpu: &Device| gpu.kind == DeviceKind::Gpu;
    let any = gpus.iter().any(has_own_memory);
    Ok(gpus.into_iter().filter(|gpu| !any || has_own_memory(gpu)).collect())
}

/// Checks that the keys and the values of a layer are no larger in one piece
/// than the GPUs can compute with.
fn gpus_take_pieces(
    gpus: &[Device],
    model: &Model,
    params: &ContextParams,
) -> Result<(), LoadFailure> {
    let Some((keys, values)) = sizing::kv_numbers(model) else { return Ok(()) };
    let pieces = [(params.type_k, keys), (params.type_v, values)];
    for gpu in gpus {
        for (kind, numbers) in pieces {
            if !gpu.takes(kind, numbers.saturating_mul(u64::from(params.n_ctx))) {
                let (name, tokens) = (&gpu.name, params.n_ctx);
                let reason = format!(
                    "{name} cannot hold the keys of {tokens} tokens in one piece; use fewer slots, a shorter context or --gpu-layers 0"
                );
                return Err(LoadFailure::Resources { reason });
            }
        }
    }
    Ok(())
}

fn no_such_gpu(name: &str, gpus: &[Device]) -> LoadFailure {
    let names: Vec<_> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
    let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    LoadFailure::NoSuchDevice { name: name.to_owned(), there }
}

/// Whether all GPUs have room for what they would hold.
fn gpus_have_room(uses: &[DeviceUse]) -> bool {
    uses.iter().filter(|used| used.device.kind.is_gpu()).all(has_room)
}

/// Whether a device has room for what it would hold. One that does not say how
/// much memory it has is taken to.
pub(super) fn has_room(used: &DeviceUse) -> bool {
    let Device { kind, memory_total_bytes, memory_free_bytes, .. } = used.device;
    let reserve = if kind.is_gpu() { GPU_RESERVE_BYTES } else { 0 };
    memory_total_bytes == 0 || used.total_bytes().saturating_add(reserve) <= memory_free_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::placement::Gpus;

    const GIB: u64 = 1 << 30;

    fn device(name: &str, kind: DeviceKind) -> Device {
        Device {
            name: name.to_owned(),
            description: String::new(),
            kind,
            memory_total_bytes: 8 * GIB,
            memory_free_bytes: 6 * GIB,
        }
    }

    fn names(devices: &[Device]) -> Vec<&str> {
        devices.iter().map(|device| device.name.as_str()).collect()
    }

    #[test]
    fn gpus_with_memory_of_their_own_come_before_those_without() {
        let placement = Placement::default();
        let integrated = device("Vulkan1", DeviceKind::IntegratedGpu);
        let all = vec![
            device("Vulkan0", DeviceKind::Gpu),
            integrated.clone(),
            device("CPU", DeviceKind::Cpu),
        ];
        assert_eq!(names(&usable_gpus(all.clone(), &placement).unwrap()), ["Vulkan0"]);
        assert_eq!(names(&usable_gpus(vec![integrated], &placement).unwrap()), ["Vulkan1"]);
        let named = |names: &[&str]| Placement {
            gpus: Some(Gpus(names.iter().map(|name| (*name).to_owned()).collect())),
            ..Placement::default()
        };
        assert_eq!(names(&usable_gpus(all.clone(), &named(&["Vulkan1"])).unwrap()), ["Vulkan1"]);
        assert!(usable_gpus(all.clone(), &named(&[])).unwrap().is_empty());
        for wrong in ["CPU", "CUDA0"] {
            let refused = usable_gpus(all.clone(), &named(&[wrong])).unwrap_err().to_string();
            assert!(refused.contains(wrong) && refused.contains("Vulkan0, Vulkan1"), "{refused}");
        }
    }

    #[test]
    fn a_gpu_keeps_some_of_its_memory_and_the_processor_none() {
        let of = |kind, bytes| DeviceUse {
            device: device("x", kind),
            weights_bytes: bytes,
            kv_bytes: 0,
            compute_bytes: 0,
        };
        assert!(has_room(&of(DeviceKind::Gpu, 6 * GIB - GPU_RESERVE_BYTES)));
        assert!(!has_room(&of(DeviceKind::Gpu, 6 * GIB - GPU_RESERVE_BYTES + 1)));
        assert!(has_room(&of(DeviceKind::Cpu, 6 * GIB)));
        assert!(!has_room(&of(DeviceKind::Cpu, 6 * GIB + 1)));
        let mut silent = of(DeviceKind::Gpu, u64::MAX);
        silent.device.memory_total_bytes = 0;
        assert!(has_room(&silent));
        let uses = [of(DeviceKind::Cpu, 9 * GIB), of(DeviceKind::Gpu, GIB)];
        assert!(gpus_have_room(&uses));
    }

    #[test]
    fn listings_name_the_gpus_in_use() {
        let gpus = vec![device("CUDA0", DeviceKind::Gpu), device("CUDA1", DeviceKind::Gpu)];
        let spread = Spread { gpus, gpu_layers: None, host_free_bytes: None };
        assert_eq!(spread.device(), "cuda0,cuda1");
        assert_eq!(Spread { gpu_layers: Some(0), ..spread.clone() }.device(), "cpu");
        assert_eq!(Spread { gpus: Vec::new(), ..spread }.device(), "cpu");
    }
}
