//! The parts of llama.cpp that exist once per process: its start-up, its log
//! and what it says about the machine. Never chooses a device.
#![expect(unsafe_code, reason = "calls llama.cpp's process-wide functions")]

use std::sync::{Once, OnceLock};

use llama_cpp_sys_2 as sys;

use crate::{ffi, log};

/// Which llama.cpp this is: the version of the crate that holds its source. States
/// that one build has written are not for another.
pub const BUILD: &str = "0.1.161";

/// Starts llama.cpp if this process has not done so yet. Everything that needs
/// it calls this first, so that no caller has to.
pub(crate) fn ensure_started() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        log::route_to_tracing();
        // SAFETY: takes no argument; `Once` keeps the start to one thread, one time.
        unsafe { ffi::rbee_common_log_off() }
        // SAFETY: as above.
        unsafe { sys::llama_backend_init() }
    });
}

/// Loads the compute backends (CPU variants, CUDA, Vulkan …) that lie as shared
/// libraries in `dir`. A program built with `dynamic-backends` calls this once
/// before it loads a model; without it there is no device to compute on.
#[cfg(feature = "dynamic-backends")]
pub fn load_backends(dir: &std::path::Path) {
    ensure_started();
    // A path with a NUL inside names no directory, so there is nothing to load.
    let Ok(dir) = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes()) else {
        return;
    };
    // SAFETY: `dir` is NUL-terminated and outlives the call.
    unsafe { sys::ggml_backend_load_all_from_path(dir.as_ptr()) }
}

/// Describes the instruction sets and libraries llama.cpp was compiled for, as
/// one line such as `CPU : AVX512 = 1 | OPENMP = 1 | …`.
#[must_use]
pub fn system_info() -> &'static str {
    static INFO: OnceLock<String> = OnceLock::new();
    INFO.get_or_init(|| {
        ensure_started();
        // SAFETY: the text lies in a buffer of llama.cpp that only this call
        // writes, and `OnceLock` keeps the calls to one.
        unsafe { ffi::copy_text(sys::llama_print_system_info()) }.unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_build_is_the_version_that_the_workspace_holds() {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let pinned = format!("llama-cpp-sys-2 = {{ version = \"={}\"", super::BUILD);
        assert!(manifest.contains(&pinned), "BUILD is not the pinned version");
    }
}
