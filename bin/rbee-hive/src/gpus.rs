//! The memory of the machine's GPUs, as the drivers tell it: NVIDIA's through its library where that is installed, AMD's
//! in `/sys`. Computes on none of them; one that tells nothing usable is left out.

mod amd;
mod nvidia;

use std::path::PathBuf;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_does_not_know_is_not_taken_for_a_size() {
        let checked = |total, used| Gpu::checked("amd0".to_owned(), total, used);
        assert_eq!(checked(100, 40).unwrap().available_bytes, 60);
        for (total, used) in [(u64::MAX, 0), (100, u64::MAX), (0, 0), (100, 101)] {
            assert_eq!(checked(total, used), None, "{total} {used}");
        }
    }
}
