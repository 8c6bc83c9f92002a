//! Lists what llama.cpp can compute on. Never opens a device for computing.
#![expect(unsafe_code, reason = "reads llama.cpp's device registry")]

use std::ffi::CString;
use std::ptr;

use llama_cpp_sys_2 as sys;

use crate::kv_type::KvType;
use crate::{backend, ffi};

/// A device that llama.cpp can place layers on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Short name, such as `CUDA0` or `CPU`.
    pub name: String,
    /// The maker's name for it.
    pub description: String,
    /// What sort of device it is.
    pub kind: DeviceKind,
    /// Memory in all, in bytes; 0 when the backend does not say.
    pub memory_total_bytes: u64,
    /// Memory that was free when asked, in bytes; 0 when the backend does not say.
    pub memory_free_bytes: u64,
}

/// What sort of device a [`Device`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor, with the machine's main memory.
    Cpu,
    /// A graphics processor with memory of its own.
    Gpu,
    /// A graphics processor that shares the machine's main memory.
    IntegratedGpu,
    /// Something that helps the processor, such as a BLAS library.
    Accelerator,
    /// Several devices presented as one.
    Group,
}

impl DeviceKind {
    /// Whether layers can be placed on it.
    #[must_use]
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Gpu | Self::IntegratedGpu)
    }

    pub(crate) fn from_raw(kind: sys::ggml_backend_dev_type) -> Self {
        match kind {
            sys::GGML_BACKEND_DEVICE_TYPE_CPU => Self::Cpu,
            sys::GGML_BACKEND_DEVICE_TYPE_GPU => Self::Gpu,
            sys::GGML_BACKEND_DEVICE_TYPE_IGPU => Self::IntegratedGpu,
            sys::GGML_BACKEND_DEVICE_TYPE_ACCEL => Self::Accelerator,
            _ => Self::Group,
        }
    }
}

impl Device {
    /// Whether the device can have so many numbers in one piece, as the keys or
    /// values of one layer are. llama.cpp ends the process over a piece that its
    /// device cannot compute with, even where it has the memory.
    #[must_use]
    pub fn takes(&self, kind: KvType, numbers: u64) -> bool {
        backend::ensure_started();
        let (Ok(name), Ok(numbers)) = (CString::new(self.name.as_str()), i64::try_from(numbers))
        else {
            return false;
        };
        let params =
            sys::ggml_init_params { mem_size: 1024, mem_buffer: ptr::null_mut(), no_alloc: true };
        // SAFETY: the name is NUL-terminated; the tensor lies in a context with
        // room for it, without data, and both live until they are freed here.
        unsafe {
            let device = sys::ggml_backend_dev_by_name(name.as_ptr());
            let context = sys::ggml_init(params);
            if device.is_null() || context.is_null() {
                sys::ggml_free(context);
                return false;
            }
            let piece = sys::ggml_new_tensor_1d(context, kind.raw(), numbers);
            let takes = sys::ggml_backend_dev_supports_op(device, piece);
            sys::ggml_free(context);
            takes
        }
    }
}

/// Lists the devices of this process, in llama.cpp's order. Asking a GPU
/// backend for its memory opens the driver.
#[must_use]
pub fn devices() -> Vec<Device> {
    backend::ensure_started();
    // SAFETY: takes no argument and the registry has been started.
    let count = unsafe { sys::ggml_backend_dev_count() };
    (0..count)
        .map(|index| {
            // SAFETY: the index is below the count, and devices are never removed.
            describe(unsafe { sys::ggml_backend_dev_get(index) })
        })
        .collect()
}

/// Describes a device of the registry, where every device stays.
pub(crate) fn describe(device: sys::ggml_backend_dev_t) -> Device {
    let (mut free, mut total) = (0, 0);
    // SAFETY: `device` comes from the registry and lives as long as the
    // process; its strings are NUL-terminated; both sizes are valid to write.
    let (name, description, kind) = unsafe {
        sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total);
        (
            ffi::copy_text(sys::ggml_backend_dev_name(device)),
            ffi::copy_text(sys::ggml_backend_dev_description(device)),
            sys::ggml_backend_dev_type(device),
        )
    };
    Device {
        name: name.unwrap_or_default(),
        description: description.unwrap_or_default(),
        kind: DeviceKind::from_raw(kind),
        memory_total_bytes: total as u64,
        memory_free_bytes: free as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_listed_with_the_memory_of_the_machine() {
        let devices = devices();
        let cpu = devices
            .iter()
            .find(|device| device.kind == DeviceKind::Cpu)
            .expect("a static build always has the processor");
        assert_eq!(cpu.name, "CPU");
        assert!(cpu.takes(KvType::Q8_0, 1 << 20));
        assert!(!Device { name: "NoGpu7".to_owned(), ..cpu.clone() }.takes(KvType::F16, 32));
        assert!(cpu.memory_total_bytes >= cpu.memory_free_bytes);
        assert!(cpu.memory_total_bytes > 0, "{cpu:?}");
    }
}
