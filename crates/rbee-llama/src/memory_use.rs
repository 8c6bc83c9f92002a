//! How much memory a model and its context take, device by device: of one that
//! runs, and of one that is only measured. Chooses nothing.
#![expect(unsafe_code, reason = "reads a llama_context")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::context::{Context, ContextError};
use crate::context_params::ContextParams;
use crate::device::{Device, DeviceKind, describe, devices};
use crate::ffi::{self, MemoryPart, ShimString};
use crate::model::{LoadError, Model, Weights};
use crate::model_params::ModelParams;

/// Most buffer types that can come up: a few for each of 16 devices.
const PARTS_MAX: usize = 256;

/// What a model and its context take of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceUse {
    /// The device, with its memory as it is now.
    pub device: Device,
    /// Weights, in bytes. Those of a mapped file count too.
    pub weights_bytes: u64,
    /// What the context remembers: the KV cache or a state of fixed size.
    pub kv_bytes: u64,
    /// Intermediate results and outputs.
    pub compute_bytes: u64,
}

impl DeviceUse {
    /// All of it, in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_bytes).saturating_add(self.compute_bytes)
    }
}

impl Context {
    /// Says what the model and this context take of each device, the processor
    /// first and always there. The bytes are those of llama.cpp's buffers;
    /// beside them a process takes some for code, vocabulary and bookkeeping.
    ///
    /// # Errors
    /// llama.cpp gives no answer.
    pub fn memory_use(&self) -> Result<Vec<DeviceUse>, ContextError> {
        let mut parts = vec![MemoryPart::default(); PARTS_MAX];
        let mut error = ShimString::null();
        // SAFETY: the context is valid, and there is room for that many parts.
        let count = unsafe {
            ffi::rbee_memory_use(
                self.raw().as_ptr(),
                parts.as_mut_ptr(),
                i32::try_from(PARTS_MAX).unwrap_or(i32::MAX),
                error.as_out(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            return Err(ContextError::Refused { reason: error.reason() });
        };
        parts.truncate(count);
        let mut uses = Vec::new();
        let processor = devices().into_iter().find(|device| device.kind == DeviceKind::Cpu);
        let processor = processor.ok_or_else(|| ContextError::Refused {
            reason: "there is no processor to compute on".to_owned(),
        })?;
        uses.push(unused(processor));
        for part in &parts {
            add(&mut uses, part);
        }
        Ok(uses)
    }
}

fn unused(device: Device) -> DeviceUse {
    DeviceUse { device, weights_bytes: 0, kv_bytes: 0, compute_bytes: 0 }
}

fn add(uses: &mut Vec<DeviceUse>, part: &MemoryPart) {
    let device = (!part.device.is_null()).then(|| describe(part.device));
    let known = uses.iter_mut().find(|known| match &device {
        Some(device) => known.device.name == device.name,
        None => known.device.kind == DeviceKind::Cpu,
    });
    let entry = match (known, device) {
        (Some(entry), _) => entry,
        (None, Some(device)) => {
            uses.push(unused(device));
            match uses.last_mut() {
                Some(entry) => entry,
                None => return,
            }
        }
        (None, None) => return,
    };
    entry.weights_bytes += part.weights as u64;
    entry.kv_bytes += part.context as u64;
    entry.compute_bytes += part.compute as u64;
}

/// A model without its weights: knows everything that its file says, and where
/// all would lie. Takes a fraction of the time and memory of a load.
#[derive(Debug)]
pub struct MeasuredModel(Arc<Model>);

impl MeasuredModel {
    /// Reads the header and the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load(path: &Path, params: &ModelParams) -> Result<Self, LoadError> {
        let go_on = |_share| ControlFlow::Continue(());
        let model = Model::load_with(path, params, Weights::Measured, go_on)?;
        Ok(Self(Arc::new(model)))
    }

    /// What the file says. Nothing can be computed with a mere reference: a
    /// context needs to own a part of the model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.0
    }

    /// Says what the model and a context made with `params` would take of each
    /// device.
    ///
    /// # Errors
    /// A context could not be made with these parameters.
    pub fn measure(&self, params: &ContextParams) -> Result<Vec<DeviceUse>, ContextError> {
        Context::new(Arc::clone(&self.0), params)?.memory_use()
    }
}
