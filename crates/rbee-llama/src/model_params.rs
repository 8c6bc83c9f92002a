//! How a model is to be loaded: the parameters and their form in llama.cpp.
//! Loads nothing.
#![expect(unsafe_code, reason = "asks llama.cpp for its defaults and its devices")]

use std::ffi::CString;

use llama_cpp_sys_2 as sys;

use crate::device::{DeviceKind, devices};
use crate::model::LoadError;

/// How to load a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelParams {
    /// Layers to place on GPUs, the output counted as one more; `None` places
    /// all there are.
    pub n_gpu_layers: Option<u32>,
    /// The GPUs to use, by the names in [`devices`]; `None` leaves the choice
    /// to llama.cpp, an empty list uses none.
    pub devices: Option<Vec<String>>,
    /// How the weights come into memory.
    pub load_mode: LoadMode,
    /// Whether the weights in main memory are kept from being swapped out.
    pub lock_memory: bool,
}

/// How the weights of a model come into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadMode {
    /// llama.cpp chooses by the devices in use.
    #[default]
    Auto,
    /// Map the file; processes that load the same file share its pages.
    Mmap,
    /// Read the file into memory of this process.
    Read,
}

impl ModelParams {
    /// The parameters as llama.cpp takes them, without the list of devices.
    pub(crate) fn raw(&self) -> sys::llama_model_params {
        // SAFETY: a function without arguments.
        let mut raw = unsafe { sys::llama_model_default_params() };
        raw.n_gpu_layers =
            self.n_gpu_layers.map_or(-1, |layers| i32::try_from(layers).unwrap_or(i32::MAX));
        raw.load_mode = match (self.load_mode, self.lock_memory) {
            (LoadMode::Auto, false) => sys::LLAMA_LOAD_MODE_AUTO,
            (LoadMode::Mmap, false) => sys::LLAMA_LOAD_MODE_MMAP,
            (LoadMode::Auto | LoadMode::Mmap, true) => sys::LLAMA_LOAD_MODE_MMAP_MLOCK,
            (LoadMode::Read, false) => sys::LLAMA_LOAD_MODE_NONE,
            (LoadMode::Read, true) => sys::LLAMA_LOAD_MODE_MLOCK,
        };
        raw
    }

    /// The list of devices as llama.cpp takes it, with a null at its end;
    /// `None` where llama.cpp is to choose. llama.cpp must have been started.
    pub(crate) fn raw_devices(&self) -> Result<Option<Vec<sys::ggml_backend_dev_t>>, LoadError> {
        let Some(names) = &self.devices else { return Ok(None) };
        let mut found = Vec::with_capacity(names.len() + 1);
        for name in names {
            found.push(gpu(name).ok_or_else(|| no_such_device(name))?);
        }
        found.push(std::ptr::null_mut());
        Ok(Some(found))
    }
}

fn gpu(name: &str) -> Option<sys::ggml_backend_dev_t> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is NUL-terminated; an unknown one gives null.
    let device = unsafe { sys::ggml_backend_dev_by_name(name.as_ptr()) };
    if device.is_null() {
        return None;
    }
    // SAFETY: not null, and devices live as long as the process.
    let kind = unsafe { sys::ggml_backend_dev_type(device) };
    DeviceKind::from_raw(kind).is_gpu().then_some(device)
}

fn no_such_device(name: &str) -> LoadError {
    let gpus = devices().into_iter().filter(|device| device.kind.is_gpu());
    LoadError::NoSuchDevice { name: name.to_owned(), gpus: gpus.map(|gpu| gpu.name).collect() }
}
