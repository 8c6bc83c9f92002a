//! Decides whether a worker may start, and how large. Pure: takes what is known, touches nothing.

use input_validation::WorkerId;
use model_catalog::{CacheType, GgufHeader, MemoryParams, Purpose, estimate_memory};
use rbee_api::error::{ErrorCode, ErrorDetail};
use serde_json::json;

/// Tokens of a step, as llama.cpp computes them at most together (`n_ubatch`).
const STEP_TOKENS: u32 = 512;
/// Requests that an embedding or reranking model serves at once. They hold no memory between steps, so what is
/// configured for text models does not count: short inputs of this many just fill a step.
const EMBEDDING_SLOTS: u32 = 64;
/// Least context that an embedding model is halved to when memory is short: a step has room for it anyway.
const EMBEDDING_CONTEXT_MIN: u32 = STEP_TOKENS;

const MEBIBYTE: u64 = 1 << 20;

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
    /// Memory that no process holds and no worker is yet to take; `None` when it cannot be known.
    pub(crate) memory_available_bytes: Option<u64>,
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
        return refuse(ErrorCode::Draining, "this hive is shutting down".to_owned(), None);
    }
    let Some(header) = facts.model else {
        let message = "this machine does not have the model; `rbee list` shows those it has, `rbee pull` adds one";
        return refuse(ErrorCode::ModelNotFound, message.to_owned(), None);
    };
    if facts.is_being_removed {
        return refuse(ErrorCode::ModelInUse, "the model is being removed".to_owned(), None);
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
        return refuse(ErrorCode::WorkerLimitReached, message, Some(figures));
    }
    let context_tokens = facts.context_tokens.min(header.context_length).max(1);
    let size = |slots, context_tokens| WorkerSize {
        slots,
        context_tokens,
        store_mib: 0,
        memory_bytes: memory_bytes(header, slots, context_tokens, facts.cache),
    };
    let available = facts.memory_available_bytes.unwrap_or(u64::MAX);
    let fits = |size: &WorkerSize| size.memory_bytes <= available;
    let size = match header.purpose {
        Purpose::Generate => {
            halve_until(facts.slots.max(1), 1, |slots| size(slots, context_tokens), fits)
        }
        Purpose::Embed | Purpose::Rerank => {
            let size = |context_tokens| size(EMBEDDING_SLOTS, context_tokens);
            halve_until(context_tokens, EMBEDDING_CONTEXT_MIN, size, fits)
        }
    };
    if size.memory_bytes <= available {
        return Admission::Start(with_store(size, header.purpose, facts.cache, available));
    }
    let message = format!(
        "the model needs {} and {} are free; stop a worker with `rbee stop`, or lower worker.context_tokens",
        mebibytes(size.memory_bytes),
        mebibytes(available)
    );
    let figures = json!({"required_bytes": size.memory_bytes, "available_bytes": available});
    refuse(ErrorCode::InsufficientMemory, message, Some(figures))
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
    };
    estimate_memory(header, params).total_bytes
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(MEBIBYTE))
}

fn refuse(code: ErrorCode, message: String, figures: Option<serde_json::Value>) -> Admission {
    let detail = ErrorDetail::new(code, message);
    Admission::Refuse(match figures {
        Some(figures) => detail.with_details(figures),
        None => detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// 1 GiB of weights, 64 KiB of cache a token.
    fn header() -> GgufHeader {
        GgufHeader {
            architecture: "llama".to_owned(),
            purpose: Purpose::Generate,
            reads_inputs_whole: false,
            name: None,
            quantisation: "Q4_K_M".to_owned(),
            context_length: 2048,
            block_count: 16,
            embedding_length: 2048,
            feed_forward_length: 8192,
            head_count: 32,
            head_count_kv: vec![8],
            key_length: 128,
            value_length: 128,
            vocabulary_size: 32_000,
            has_chat_template: true,
            split_count: 1,
            parameter_count: 1_000_000_000,
            weights_bytes: GIB,
        }
    }

    fn facts(header: &GgufHeader) -> Facts<'_> {
        Facts {
            model: Some(header),
            existing: None,
            is_being_removed: false,
            is_draining: false,
            workers: 0,
            workers_max: 2,
            memory_available_bytes: Some(16 * GIB),
            slots: 8,
            context_tokens: 4096,
            cache: CACHE,
        }
    }

    const CACHE: CacheRules = CacheRules {
        type_k: CacheType::F16,
        type_v: CacheType::F16,
        unified: false,
        store_mib: 512,
    };

    fn started(admission: Admission) -> WorkerSize {
        match admission {
            Admission::Start(size) => size,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_reason_to_refuse_has_its_code_and_they_are_asked_in_order() {
        let header = header();
        let worker: WorkerId = "w-1".parse().unwrap();
        let good = facts(&header);
        for (facts, code) in [
            (Facts { is_draining: true, model: None, ..good }, ErrorCode::Draining),
            (Facts { model: None, is_being_removed: true, ..good }, ErrorCode::ModelNotFound),
            (
                Facts { is_being_removed: true, existing: Some(&worker), ..good },
                ErrorCode::ModelInUse,
            ),
            (
                Facts { workers: 2, memory_available_bytes: Some(0), ..good },
                ErrorCode::WorkerLimitReached,
            ),
            (Facts { memory_available_bytes: Some(GIB), ..good }, ErrorCode::InsufficientMemory),
        ] {
            match decide(facts) {
                Admission::Refuse(detail) => assert_eq!(detail.code, code),
                other => panic!("{code}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_worker_that_is_there_is_used_even_at_the_limit() {
        let header = header();
        let worker: WorkerId = "w-1".parse().unwrap();
        let full = Facts {
            workers: 2,
            existing: Some(&worker),
            memory_available_bytes: Some(0),
            ..facts(&header)
        };
        assert_eq!(decide(full), Admission::Use(worker));
    }

    #[test]
    fn context_stops_at_what_the_model_was_trained_for() {
        let header = header();
        let size = started(decide(facts(&header)));
        assert_eq!((size.slots, size.context_tokens), (8, 2048));
        assert!(size.memory_bytes >= GIB + 8 * 2048 * (64 << 10));
    }

    #[test]
    fn conversations_without_a_slot_get_what_is_left_and_hold_no_start_up() {
        let header = header();
        let needs = memory_bytes(&header, 8, 2048, CACHE);
        for (left, store_mib) in [(0, 0), (MEBIBYTE - 1, 0), (200 * MEBIBYTE, 200), (GIB, 512)] {
            let facts = Facts { memory_available_bytes: Some(needs + left), ..facts(&header) };
            let size = started(decide(facts));
            assert_eq!((size.slots, size.store_mib), (8, store_mib), "{left}");
            assert_eq!(size.memory_bytes, needs + store_mib * MEBIBYTE);
        }
        let embedder = GgufHeader { purpose: Purpose::Embed, ..header };
        assert_eq!(started(decide(facts(&embedder))).store_mib, 0);
    }

    #[test]
    fn a_smaller_cache_leaves_room_for_more_slots() {
        let header = header();
        let small = CacheRules { type_k: CacheType::Q8, type_v: CacheType::Q8, ..CACHE };
        let available = memory_bytes(&header, 8, 2048, small);
        let slots = |cache| {
            let facts = Facts { memory_available_bytes: Some(available), cache, ..facts(&header) };
            started(decide(facts)).slots
        };
        assert_eq!((slots(CACHE), slots(small)), (4, 8));
    }

    #[test]
    fn slots_are_halved_until_they_fit() {
        let header = header();
        let needs = |slots| memory_bytes(&header, slots, 2048, CACHE);
        for (available, slots) in
            [(needs(8), 8), (needs(8) - 1, 4), (needs(4) - 1, 2), (needs(2) - 1, 1), (needs(1), 1)]
        {
            let facts = Facts { memory_available_bytes: Some(available), ..facts(&header) };
            assert_eq!(started(decide(facts)).slots, slots, "{available}");
        }
        let short = Facts { memory_available_bytes: Some(needs(1) - 1), ..facts(&header) };
        let Admission::Refuse(detail) = decide(short) else { panic!("it cannot fit") };
        let figures = detail.details.unwrap();
        assert_eq!(figures["required_bytes"], needs(1));
        assert_eq!(figures["available_bytes"], needs(1) - 1);
    }

    #[test]
    fn an_embedding_model_has_its_own_slots_and_halves_its_context() {
        let whole = GgufHeader {
            purpose: Purpose::Embed,
            reads_inputs_whole: true,
            context_length: 8192,
            ..header()
        };
        let at_most = |header: &GgufHeader, available| {
            let facts = Facts {
                memory_available_bytes: Some(available),
                context_tokens: 8192,
                ..facts(header)
            };
            let size = started(decide(facts));
            (size.slots, size.context_tokens)
        };
        let needs = |context| memory_bytes(&whole, EMBEDDING_SLOTS, context, CACHE);
        assert_eq!(at_most(&whole, needs(8192)), (64, 8192));
        assert_eq!(at_most(&whole, needs(8192) - 1), (64, 4096));
        assert_eq!(at_most(&whole, needs(512)), (64, 512));
        let small = GgufHeader { context_length: 256, ..whole.clone() };
        assert_eq!(at_most(&small, needs(8192)), (64, 256));
        let in_pieces = GgufHeader { reads_inputs_whole: false, ..whole.clone() };
        assert!(memory_bytes(&in_pieces, EMBEDDING_SLOTS, 8192, CACHE) < needs(8192) / 2);
    }

    #[test]
    fn unknown_memory_refuses_nothing() {
        let header = header();
        let size = started(decide(Facts { memory_available_bytes: None, ..facts(&header) }));
        assert_eq!(size.slots, 8);
    }
}
