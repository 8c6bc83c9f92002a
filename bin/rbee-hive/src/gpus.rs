//! The memory of the machine's GPUs, as the drivers tell it: NVIDIA's through its library where that is installed, AMD's
//! in `/sys`. Computes on none of them; one that tells nothing usable is left out.

mod amd;
mod nvidia;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nvidia::Nvidia;

/// Where the kernel shows graphics cards.
const CARDS: &str = "/sys/class/drm";

/// One GPU whose memory is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gpu {
    /// Tells it from the others of this machine, such as `amd0`.
    pub(crate) name: String,
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
}

impl Gpu {
    /// Takes what a driver says. Drivers say the largest number for "not known", and never have more free than there is.
    fn checked(name: String, total_bytes: u64, used_bytes: u64) -> Option<Self> {
        let is_known = total_bytes > 0 && total_bytes < u64::MAX && used_bytes <= total_bytes;
        is_known.then(|| Self { name, total_bytes, available_bytes: total_bytes - used_bytes })
    }
}

/// What asks the drivers.
#[derive(Debug)]
pub(crate) struct GpuProbe {
    nvidia: Nvidia,
    cards: PathBuf,
}

impl GpuProbe {
    /// Looks which drivers there are.
    pub(crate) fn open() -> Self {
        Self { nvidia: Nvidia::open(), cards: CARDS.into() }
    }

    /// Asks all drivers.
    pub(crate) fn read(&self) -> Vec<Gpu> {
        let mut gpus = self.nvidia.read();
        gpus.extend(amd::read(&self.cards));
        gpus
    }
}

/// The GPUs that were told of so far.
#[derive(Debug, Default)]
pub(crate) struct EverSeen(Mutex<BTreeSet<String>>);

impl EverSeen {
    /// Adds to the GPUs that are there those that no longer are, with no memory at all: a gauge keeps what it was set to last,
    /// and would go on showing room on a GPU that fell off the bus.
    pub(crate) fn with_gone(&self, gpus: Vec<Gpu>) -> Vec<Gpu> {
        // A set is whole whatever thread has panicked.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(gpus.iter().map(|gpu| gpu.name.clone()));
        let is_gone = |name: &&String| !gpus.iter().any(|gpu| gpu.name == **name);
        let none = |name: &String| Gpu { name: name.clone(), total_bytes: 0, available_bytes: 0 };
        let gone: Vec<Gpu> = seen.iter().filter(is_gone).map(none).collect();
        drop(seen);
        gpus.into_iter().chain(gone).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_gone_is_told_as_having_nothing() {
        let seen = EverSeen::default();
        let gpu = |name: &str, available_bytes| Gpu {
            name: name.to_owned(),
            total_bytes: available_bytes,
            available_bytes,
        };
        let both = vec![gpu("amd0", 5), gpu("amd1", 6)];
        assert_eq!(seen.with_gone(both.clone()), both);
        assert_eq!(seen.with_gone(vec![gpu("amd1", 6)]), [gpu("amd1", 6), gpu("amd0", 0)]);
        assert_eq!(seen.with_gone(both.clone()), both);
    }

    #[test]
    fn what_a_driver_does_not_know_is_not_taken_for_a_size() {
        let checked = |total, used| Gpu::checked("amd0".to_owned(), total, used);
        assert_eq!(checked(100, 40).unwrap().available_bytes, 60);
        for (total, used) in [(u64::MAX, 0), (100, u64::MAX), (0, 0), (100, 101)] {
            assert_eq!(checked(total, used), None, "{total} {used}");
        }
    }
}
