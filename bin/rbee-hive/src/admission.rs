//! Decides whether a worker may start, and how large. Pure: takes what is known, touches nothing.

mod room;
mod shortage;

use input_validation::WorkerId;
use model_catalog::{CacheType, GgufHeader, MemoryParams, Purpose, Scores, estimate_memory};
use rbee_api::error::{ErrorCode, ErrorDetail};
use serde_json::json;

pub(crate) use room::{DiskRoom, Room, Unanswered};
pub(crate) use shortage::Shortage;

/// Tokens of a step, as llama.cpp computes them at most together (`n_ubatch`).
const STEP_TOKENS: u32 = 512;
/// Requests that an embedding or reranking model serves at once. They hold no memory between steps, so what is
/// configured for text models does not count: short inputs of this many just fill a step.
const EMBEDDING_SLOTS: u32 = 64;
/// Least context that an embedding model is halved to when memory is short: a step has room for it anyway.
const EMBEDDING_CONTEXT_MIN: u32 = STEP_TOKENS;

pub(crate) const MEBIBYTE: u64 = 1 << 20;

/// What the decision rests on, all of the same moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// The model's header, `None` when the model is not in the catalog.
    pub(crate) model: Option<&'a GgufHeader>,
    /// A worker of the model that starts or is ready.
    pub(crate) existing: Option<&'a WorkerId>,
    /// Whether the model is being removed.
    pub(crate) is_being_removed: bool,
    /// Whether the hive is shutting down.
    pub(crate) is_draining: bool,
    /// Worker processes that live or are about to.
    pub(crate) workers: u32,
    /// Most workers at once.
    pub(crate) workers_max: u32,
    /// What a new worker could take.
    pub(crate) room: Room,
    /// Slots wanted.
    pub(crate) slots: u32,
    /// Tokens of context wanted for each slot.
    pub(crate) context_tokens: u32,
    /// How a worker keeps what it remembers.
    pub(crate) cache: CacheRules,
}

/// How workers keep what they remember.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheRules {
    /// How keys are stored.
    pub(crate) type_k: CacheType,
    /// How values are stored.
    pub(crate) type_v: CacheType,
    /// Whether all slots share one memory.
    pub(crate) unified: bool,
    /// Whether the scores of attention are kept.
    pub(crate) scores: Scores,
    /// Mebibytes wanted for conversations that have no slot.
    pub(crate) store_mib: u64,
}

/// The decision.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Admission {
    /// A worker is there already.
    Use(WorkerId),
    /// A worker may start.
    Start(WorkerSize),
    /// None may, for this reason.
    Refuse(ErrorDetail),
    /// None may as long as others take so much.
    NoRoom(Shortage, ErrorDetail),
}

/// How large a worker is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerSize {
    /// Requests decoded at once.
    pub(crate) slots: u32,
    /// Tokens of context each.
    pub(crate) context_tokens: u32,
    /// Mebibytes for conversations that have no slot.
    pub(crate) store_mib: u64,
    /// Memory it will need, those included.
    pub(crate) memory_bytes: u64,
}

/// Decides. A worker gets as many of the slots wanted as fit, halving until they do, and no more context than its
/// model was trained for. Where it is the context that costs, that is halved. Conversations without a slot get what is
/// left then, up to what is wanted: they make replies faster, and no worker has to go without a start for them.
pub(crate) fn decide(facts: Facts<'_>) -> Admission {
    if facts.is_draining {
        return refuse(ErrorCode::Draining, "this hive is shutting down");
    }
    let Some(header) = facts.model else {
        let message = "this machine does not have the model; `rbee list` shows those it has, `rbee pull` adds one";
        return refuse(ErrorCode::ModelNotFound, message);
    };
    if facts.is_being_removed {
        return refuse(ErrorCode::ModelInUse, "the model is being removed");
    }
    if let Some(worker) = facts.existing {
        return Admission::Use(worker.clone());
    }
    if facts.workers >= facts.workers_max {
        let (workers, most) = (facts.workers, facts.workers_max);
        let message = format!(
            "{workers} of at most {most} workers run; stop one with `rbee stop`, or raise workers_max"
        );
        let figures = json!({"workers": workers, "workers_max": most});
        let detail = ErrorDetail::new(ErrorCode::WorkerLimitReached, message);
        let shortage = Shortage::Workers(workers - most + 1);
        return Admission::NoRoom(shortage, detail.with_details(figures));
    }
    if let Err(detail) = facts.room.unanswered.check() {
        return Admission::Refuse(*detail);
    }
    if let Some(Err(detail)) = facts.room.disk.map(DiskRoom::check) {
        return Admission::Refuse(*detail);
    }
    let context_tokens = facts.context_tokens.min(header.context_length).max(1);
    let size = |slots, context_tokens| WorkerSize {
        slots,
        context_tokens,
        store_mib: 0,
        memory_bytes: memory_bytes(header, slots, context_tokens, facts.cache),
    };
    let available = facts.room.memory_bytes.unwrap_or(u64::MAX);
    let vram_available = facts.room.vram_bytes.unwrap_or(u64::MAX);
    let fits = |size: &WorkerSize| size.memory_bytes <= available.min(vram_available);
    let size = match header.purpose {
        Purpose::Generate => {
            halve_until(facts.slots.max(1), 1, |slots| size(slots, context_tokens), fits)
        }
        Purpose::Embed | Purpose::Rerank => {
            let size = |context_tokens| size(EMBEDDING_SLOTS, context_tokens);
            halve_until(context_tokens, EMBEDDING_CONTEXT_MIN, size, fits)
        }
    };
    if let Some(vram_bytes) = facts.room.vram_bytes
        && size.memory_bytes > vram_bytes
        && size.memory_bytes <= available
    {
        return refuse_for_vram(size.memory_bytes, vram_bytes);
    }
    if size.memory_bytes <= available {
        return Admission::Start(with_store(size, header.purpose, facts.cache, available));
    }
    let (required, free) = (mebibytes(size.memory_bytes), mebibytes(available));
    let message = format!(
        "the model needs {required} and {free} are free; stop a worker with `rbee stop`, or lower worker.context_tokens"
    );
    let figures = json!({"required_bytes": size.memory_bytes, "available_bytes": available});
    let detail = ErrorDetail::new(ErrorCode::InsufficientMemory, message).with_details(figures);
    Admission::NoRoom(Shortage::Memory(size.memory_bytes - available), detail)
}

fn refuse_for_vram(required: u64, available: u64) -> Admission {
    let message = format!(
        "the model needs {} of the GPUs and {} are free there; stop a worker with `rbee stop`, or set \
         worker.gpu_layers to auto",
        mebibytes(required),
        mebibytes(available)
    );
    let figures = json!({
        "required_bytes": required, "available_bytes": available, "memory": "vram",
    });
    let detail = ErrorDetail::new(ErrorCode::InsufficientMemory, message).with_details(figures);
    Admission::NoRoom(Shortage::Vram(required - available), detail)
}

/// Adds what conversations without a slot may take. Only a text model has conversations.
fn with_store(size: WorkerSize, purpose: Purpose, cache: CacheRules, available: u64) -> WorkerSize {
    let left_mib = available.saturating_sub(size.memory_bytes) / MEBIBYTE;
    let store_mib = match purpose {
        Purpose::Generate => cache.store_mib.min(left_mib),
        Purpose::Embed | Purpose::Rerank => 0,
    };
    WorkerSize { store_mib, memory_bytes: size.memory_bytes + store_mib * MEBIBYTE, ..size }
}

/// Halves a number until what it makes fits, or the number is no larger than `least`.
fn halve_until(
    mut number: u32,
    least: u32,
    size: impl Fn(u32) -> WorkerSize,
    fits: impl Fn(&WorkerSize) -> bool,
) -> WorkerSize {
    while number > least && !fits(&size(number)) {
        number = (number / 2).max(least);
    }
    size(number)
}

/// A text model remembers the context of each slot. An embedding model forgets every input after its step; one that
/// reads inputs whole computes the longest in a single piece, and llama.cpp keeps room for logits of all its tokens.
fn memory_bytes(header: &GgufHeader, slots: u32, context_tokens: u32, cache: CacheRules) -> u64 {
    let longest = context_tokens.max(STEP_TOKENS);
    let (context_per_slot, memories, step_tokens, step_outputs) = match header.purpose {
        Purpose::Generate => (context_tokens, slots, STEP_TOKENS, slots),
        Purpose::Embed | Purpose::Rerank if header.reads_inputs_whole => {
            (longest, 1, longest, longest)
        }
        Purpose::Embed | Purpose::Rerank => (longest, 1, STEP_TOKENS, slots),
    };
    let params = MemoryParams {
        context_per_slot,
        slots: memories,
        step_tokens,
        step_outputs,
        cache_type_k: cache.type_k,
        cache_type_v: cache.type_v,
        cache_unified: cache.unified,
        scores: match header.purpose {
            Purpose::Generate => cache.scores,
            Purpose::Embed | Purpose::Rerank => Scores::No,
        },
    };
    estimate_memory(header, params).total_bytes
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(MEBIBYTE))
}

fn refuse(code: ErrorCode, message: &str) -> Admission {
    Admission::Refuse(ErrorDetail::new(code, message))
}

#[cfg(test)]
mod tests;
