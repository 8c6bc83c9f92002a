//! What of the machine is promised to whom. One gate lets one start through at a time: it measures, decides and enters the
//! worker, whose row in the registry is its reservation until its process is gone. Right before the process is started
//! it is looked once more whether everything promised is still there. Starts nothing.

use std::sync::Arc;

use input_validation::WorkerId;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::ApiError;
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard};

use crate::admission::{DiskRoom, Room, Unanswered, mebibytes};
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
    /// How many GPUs a worker may use that has to fit into them altogether; `None` where workers do without.
    gpus_used: Option<usize>,
    gate: Mutex<()>,
}

/// Keeps every other start out until dropped: from the measuring to having a task that owns what was reserved.
pub(crate) type Turn<'a> = MutexGuard<'a, ()>;

impl Reservations {
    pub(crate) fn new(
        registry: Arc<Registry>,
        machine: Box<dyn Machine>,
        kept_free: KeptFree,
        gpus_used: Option<usize>,
    ) -> Self {
        Self { registry, machine, kept_free, gpus_used, gate: Mutex::new(()) }
    }

    /// Waits for a turn. Whoever had one before has entered its worker by then.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        self.gate.lock().await
    }

    /// Waits for a turn, and reads with it what the machine has.
    pub(crate) async fn measured_turn(&self) -> Turn<'_> {
        let turn = self.turn().await;
        self.machine.refresh().await;
        turn
    }

    /// Decides about a worker and reserves what it needs, or returns the one that is there.
    ///
    /// # Errors
    /// The reason why none may start, with what is needed and what is there.
    pub(crate) fn admit(&self, _turn: &Turn<'_>, wanted: Wanted<'_>) -> Result<Admitted, ApiError> {
        let grants = self.registry.grants();
        let room = Room {
            memory_bytes: self.memory_available_bytes(&grants),
            vram_bytes: self.vram_available_bytes(&grants),
            disk: self.disk_room(),
            unanswered: self.unanswered(),
        };
        self.registry.admit(wanted, room)
    }

    /// Looks whether what a worker was promised is still there: others may have taken it since.
    ///
    /// # Errors
    /// What is missing, with figures.
    pub(crate) async fn look_again(&self, id: &WorkerId) -> Result<(), Box<ErrorDetail>> {
        self.machine.refresh().await;
        self.unanswered().check()?;
        let (own, others): (Vec<_>, Vec<_>) =
            self.registry.grants().into_iter().partition(|grant| grant.id == *id);
        let own = own.first().map(|grant| grant.granted).unwrap_or_default();
        if let Some(available) = self.memory_available_bytes(&others)
            && own.memory_bytes > available
        {
            return Err(taken_meanwhile(Short::Main, own.memory_bytes, available));
        }
        if let Some(available) = self.vram_available_bytes(&others)
            && own.vram_bytes > available
        {
            return Err(taken_meanwhile(Short::Vram, own.vram_bytes, available));
        }
        self.disk_room().map_or(Ok(()), DiskRoom::check)
    }

    /// Returns what does not answer of what a start hangs on.
    fn unanswered(&self) -> Unanswered {
        let Unanswered { disk, gpus } = self.machine.unanswered();
        Unanswered { disk, gpus: gpus.filter(|_| self.gpus_used.is_some()) }
    }

    /// Returns what the machine has. Of a disk or a driver that does not answer it is what was read last.
    pub(crate) async fn figures(&self) -> Figures {
        self.machine.refresh().await;
        let grants = self.registry.grants();
        Figures {
            memory: self.machine.memory(),
            memory_for_workers_bytes: self.memory_available_bytes(&grants),
            memory_reserved_bytes: self.to_come(&grants),
            disk: self.machine.disk(),
            gpus: self.machine.gpus(),
        }
    }

    /// Returns what the kernel has to give, less what is kept free, and less what workers were granted and have not
    /// yet taken. Reads what is available before and after what workers have taken: one that takes or gives memory back
    /// in between would be counted on one side alone, and the lesser of both is right in either case.
    fn memory_available_bytes(&self, grants: &[Grant]) -> Option<u64> {
        let before = self.machine.memory()?.available_bytes;
        let to_come = self.to_come(grants);
        let after = self.machine.memory()?.available_bytes;
        let kept = self.kept_free.memory_bytes;
        Some(before.min(after).saturating_sub(kept).saturating_sub(to_come))
    }

    fn to_come(&self, grants: &[Grant]) -> u64 {
        let each = grants.iter().map(|grant| {
            let taken = grant.pid.and_then(|pid| self.machine.taken_bytes(pid)).unwrap_or(0);
            grant.granted.memory_bytes.saturating_sub(taken)
        });
        each.fold(0, u64::saturating_add)
    }

    /// Returns what the GPUs have free that workers may use, less what workers that still load are going to take. Which of
    /// them llama.cpp's names mean the drivers do not know, so those are taken that have most: what does not fit there fits
    /// nowhere. `None` where workers do without them, or where it is not known.
    fn vram_available_bytes(&self, grants: &[Grant]) -> Option<u64> {
        let used = self.gpus_used?;
        let gpus = self.machine.gpus();
        let mut free: Vec<u64> = gpus.iter().map(|gpu| gpu.available_bytes).collect();
        free.sort_unstable_by(|a, b| b.cmp(a));
        let free = free.into_iter().take(used).fold(0, u64::saturating_add);
        let loading = grants.iter().filter(|grant| grant.is_loading);
        let to_come = loading.map(|grant| grant.granted.vram_bytes).fold(0, u64::saturating_add);
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

/// Which memory is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Short {
    Main,
    Vram,
}

fn taken_meanwhile(short: Short, required: u64, available: u64) -> Box<ErrorDetail> {
    let (needed, free) = (mebibytes(required), mebibytes(available));
    let (there, figures) = match short {
        Short::Main => ("", json!({"required_bytes": required, "available_bytes": available})),
        Short::Vram => (
            " of the GPUs",
            json!({"required_bytes": required, "available_bytes": available, "memory": "vram"}),
        ),
    };
    let message = format!(
        "the worker needs {needed}{there} and only {free} are free now: something else took memory meanwhile; try again"
    );
    let detail = ErrorDetail::new(ErrorCode::InsufficientMemory, message);
    Box::new(detail.with_details(figures))
}

#[cfg(test)]
pub(crate) mod tests;
