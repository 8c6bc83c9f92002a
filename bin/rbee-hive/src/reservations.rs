//! What of the machine is promised to whom. One gate lets one start through at a time: it measures, decides and enters the
//! worker, whose row in the registry is its reservation until its process is gone. Right before the process is started
//! it is looked once more whether everything promised is still there. Starts nothing.

use std::sync::Arc;

use input_validation::WorkerId;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::ApiError;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use crate::admission::{DiskRoom, Room, mebibytes};
use crate::machine::{Disk, Gpu, Machine, Memory};
use crate::registry::{Admitted, Grant, Registry, Wanted};

/// What is kept free for others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeptFree {
    pub(crate) memory_bytes: u64,
    pub(crate) vram_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) inodes: u64,
}

/// What the machine has, all of the same moment.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) memory: Option<Memory>,
    /// Memory that a new worker could take.
    pub(crate) memory_for_workers_bytes: Option<u64>,
    /// Memory that workers were granted and have not taken yet.
    pub(crate) memory_reserved_bytes: u64,
    pub(crate) disk: Option<Disk>,
    pub(crate) gpus: Vec<Gpu>,
}

/// The way to a worker's place on this machine.
#[derive(Debug)]
pub(crate) struct Reservations {
    registry: Arc<Registry>,
    machine: Box<dyn Machine>,
    kept_free: KeptFree,
    /// Whether workers compute all layers on GPUs, so that one that does not fit there must not start.
    needs_vram: bool,
    gate: Mutex<()>,
}

/// Keeps every other start out until dropped: from the measuring to having a task that owns what was reserved.
pub(crate) type Turn<'a> = MutexGuard<'a, ()>;

impl Reservations {
    pub(crate) fn new(
        registry: Arc<Registry>,
        machine: Box<dyn Machine>,
        kept_free: KeptFree,
        needs_vram: bool,
    ) -> Self {
        Self { registry, machine, kept_free, needs_vram, gate: Mutex::new(()) }
    }

    /// Waits for a turn. Whoever had one before has entered its worker by then.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        self.gate.lock().await
    }

    /// Decides about a worker and reserves what it needs, or returns the one that is there.
    ///
    /// # Errors
    /// The reason why none may start, with what is needed and what is there.
    pub(crate) fn admit(&self, _turn: &Turn<'_>, wanted: Wanted<'_>) -> Result<Admitted, ApiError> {
        let room = Room {
            memory_bytes: self.memory_available_bytes(),
            vram_bytes: self.vram_available_bytes(),
            disk: self.disk_room(),
        };
        self.registry.admit(wanted, room)
    }

    /// Looks whether what a worker was promised is still there: others may have taken it since.
    ///
    /// # Errors
    /// What is missing, with figures.
    pub(crate) fn look_again(&self, id: &WorkerId) -> Result<(), Box<ErrorDetail>> {
        let grants = self.registry.grants();
        let own = grants.iter().find(|grant| grant.id == *id).map_or(0, |grant| grant.memory_bytes);
        let others = grants.into_iter().filter(|grant| grant.id != *id);
        if let Some((available, to_come)) = self.memory_and_promises(others) {
            let kept = self.kept_free.memory_bytes;
            let available = available.saturating_sub(kept).saturating_sub(to_come);
            if own > available {
                let message = format!(
                    "the worker needs {} and only {} are free now: something else took memory meanwhile; try again",
                    mebibytes(own),
                    mebibytes(available)
                );
                let figures = json!({"required_bytes": own, "available_bytes": available});
                let detail = ErrorDetail::new(ErrorCode::InsufficientMemory, message);
                return Err(Box::new(detail.with_details(figures)));
            }
        }
        self.disk_room().map_or(Ok(()), DiskRoom::check)
    }

    /// Returns what the machine has.
    pub(crate) fn figures(&self) -> Figures {
        Figures {
            memory: self.machine.memory(),
            memory_for_workers_bytes: self.memory_available_bytes(),
            memory_reserved_bytes: self.to_come(self.registry.grants().into_iter()),
            disk: self.machine.disk(),
            gpus: self.machine.gpus(),
        }
    }

    /// Returns what the kernel has to give, less what is kept free, and less what workers were granted and have not
    /// yet taken.
    fn memory_available_bytes(&self) -> Option<u64> {
        let (available, to_come) = self.memory_and_promises(self.registry.grants().into_iter())?;
        let kept = self.kept_free.memory_bytes;
        Some(available.saturating_sub(kept).saturating_sub(to_come))
    }

    /// Reads what is available before and after what workers have taken: one that takes or gives memory back in between
    /// would be counted on one side alone, and the lesser of both is right in either case.
    fn memory_and_promises(&self, grants: impl Iterator<Item = Grant>) -> Option<(u64, u64)> {
        let before = self.machine.memory()?.available_bytes;
        let to_come = self.to_come(grants);
        let after = self.machine.memory()?.available_bytes;
        Some((before.min(after), to_come))
    }

    fn to_come(&self, grants: impl Iterator<Item = Grant>) -> u64 {
        let each = grants.map(|grant| {
            let taken = grant.pid.and_then(|pid| self.machine.taken_bytes(pid)).unwrap_or(0);
            grant.memory_bytes.saturating_sub(taken)
        });
        each.fold(0, u64::saturating_add)
    }

    /// Returns what all GPUs together have free, less what workers that still load are going to take. `None` where
    /// workers do without them, or where it is not known.
    fn vram_available_bytes(&self) -> Option<u64> {
        if !self.needs_vram {
            return None;
        }
        let gpus = self.machine.gpus();
        let free = gpus.iter().map(|gpu| gpu.available_bytes).fold(0, u64::saturating_add);
        let loading = self.registry.grants().into_iter().filter(|grant| grant.is_loading);
        let to_come = loading.map(|grant| grant.memory_bytes).fold(0, u64::saturating_add);
        let kept = self.kept_free.vram_bytes;
        (!gpus.is_empty()).then(|| free.saturating_sub(kept).saturating_sub(to_come))
    }

    fn disk_room(&self) -> Option<DiskRoom> {
        let disk = self.machine.disk()?;
        Some(DiskRoom {
            available_bytes: disk.available_bytes,
            required_bytes: self.kept_free.disk_bytes,
            inodes_available: disk.inodes_available,
            inodes_required: self.kept_free.inodes,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
