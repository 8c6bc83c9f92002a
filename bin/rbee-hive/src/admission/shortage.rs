//! What a worker cannot start for as long as others have it.

use crate::registry::Granted;

/// How much is missing, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// Places, of which each worker has one.
    Workers(u32),
    /// Bytes of main memory.
    Memory(u64),
    /// Bytes of the GPUs' memory.
    Vram(u64),
}

impl Shortage {
    /// What is missing when a worker has ended.
    #[must_use]
    pub(crate) const fn less(self, granted: Granted) -> Self {
        match self {
            Self::Workers(places) => Self::Workers(places.saturating_sub(1)),
            Self::Memory(bytes) => Self::Memory(bytes.saturating_sub(granted.memory_bytes)),
            Self::Vram(bytes) => Self::Vram(bytes.saturating_sub(granted.vram_bytes)),
        }
    }

    /// Whether nothing is missing.
    pub(crate) const fn is_over(self) -> bool {
        matches!(self, Self::Workers(0) | Self::Memory(0) | Self::Vram(0))
    }
}
