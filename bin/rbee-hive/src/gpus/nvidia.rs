//! NVIDIA's GPUs, through the library that comes with their driver. It is loaded at run time, so that the program runs
//! without it; a GPU that the library cannot read, such as one that fell off the bus, is left out.

use std::ffi::OsStr;
use std::fmt;

use nvml_wrapper::Nvml;

use super::Gpu;

/// What the driver installs. The name without a number comes only with the tools for developers.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// The library, where there is one.
pub(super) struct Nvidia(Option<Nvml>);

impl fmt::Debug for Nvidia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Nvidia").field(&self.0.is_some()).finish()
    }
}

impl Nvidia {
    pub(super) fn open() -> Self {
        let opened = Nvml::builder().lib_path(OsStr::new(LIBRARY)).init();
        if let Err(error) = &opened {
            tracing::debug!(%error, "no library of NVIDIA's driver");
        }
        Self(opened.ok())
    }

    /// Reads all GPUs, in the order of the library's numbers.
    pub(super) fn read(&self) -> Vec<Gpu> {
        let Some(library) = &self.0 else { return Vec::new() };
        let known = (0..library.device_count().unwrap_or(0)).filter_map(|number| {
            let memory = library.device_by_index(number).and_then(|gpu| gpu.memory_info());
            let memory = memory
                .inspect_err(|error| tracing::debug!(number, %error, "a GPU cannot be read"))
                .ok()?;
            Gpu::checked(format!("nvidia{number}"), memory.total, memory.used)
        });
        known.collect()
    }
}
