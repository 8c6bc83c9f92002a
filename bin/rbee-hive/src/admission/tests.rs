//! The decision, case by case.

use super::*;

const GIB: u64 = 1 << 30;

fn memory(bytes: u64) -> Room {
    Room { memory_bytes: Some(bytes), ..Room::default() }
}

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
        room: memory(16 * GIB),
        slots: 8,
        context_tokens: 4096,
        cache: CACHE,
    }
}

const CACHE: CacheRules = CacheRules {
    type_k: CacheType::F16,
    type_v: CacheType::F16,
    unified: false,
    scores: Scores::No,
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
        (Facts { is_being_removed: true, existing: Some(&worker), ..good }, ErrorCode::ModelInUse),
        (Facts { workers: 2, room: memory(0), ..good }, ErrorCode::WorkerLimitReached),
        (Facts { room: memory(GIB), ..good }, ErrorCode::InsufficientMemory),
    ] {
        match decide(facts) {
            Admission::Refuse(detail) | Admission::NoRoom(_, detail) => {
                assert_eq!(detail.code, code);
            }
            other => panic!("{code}: {other:?}"),
        }
    }
}

#[test]
fn a_worker_that_is_there_is_used_even_at_the_limit() {
    let header = header();
    let worker: WorkerId = "w-1".parse().unwrap();
    let full = Facts { workers: 2, existing: Some(&worker), room: memory(0), ..facts(&header) };
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
        let facts = Facts { room: memory(needs + left), ..facts(&header) };
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
        let facts = Facts { room: memory(available), cache, ..facts(&header) };
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
        let facts = Facts { room: memory(available), ..facts(&header) };
        assert_eq!(started(decide(facts)).slots, slots, "{available}");
    }
    let short = Facts { room: memory(needs(1) - 1), ..facts(&header) };
    let Admission::NoRoom(shortage, detail) = decide(short) else { panic!("it cannot fit") };
    assert_eq!(shortage, Shortage::Memory(1));
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
        let facts = Facts { room: memory(available), context_tokens: 8192, ..facts(header) };
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
    let size = started(decide(Facts { room: Room::default(), ..facts(&header) }));
    assert_eq!(size.slots, 8);
}

#[test]
fn a_full_disk_or_one_without_inodes_refuses_before_memory_is_looked_at() {
    let header = header();
    let disk = DiskRoom {
        available_bytes: 10,
        required_bytes: 10,
        inodes_available: Some(5),
        inodes_required: 5,
    };
    let with = |disk| Room { disk: Some(disk), ..memory(16 * GIB) };
    started(decide(Facts { room: with(disk), ..facts(&header) }));
    let unlimited = DiskRoom { inodes_available: None, ..disk };
    started(decide(Facts { room: with(unlimited), ..facts(&header) }));
    for (disk, figures) in [
        (
            DiskRoom { available_bytes: 9, ..disk },
            serde_json::json!({"required_bytes": 10, "available_bytes": 9}),
        ),
        (
            DiskRoom { inodes_available: Some(4), ..disk },
            serde_json::json!({"required_inodes": 5, "available_inodes": 4}),
        ),
    ] {
        let room = Room { memory_bytes: Some(0), ..with(disk) };
        let Admission::Refuse(detail) = decide(Facts { room, ..facts(&header) }) else {
            panic!("{disk:?}")
        };
        assert_eq!((detail.code, detail.details), (ErrorCode::InsufficientDisk, Some(figures)));
    }
}

#[test]
fn a_worker_that_has_to_fit_into_the_gpus_is_made_smaller_or_refused() {
    let header = header();
    let needs = |slots| memory_bytes(&header, slots, 2048, CACHE);
    let with = |vram_bytes| {
        let room = Room { vram_bytes: Some(vram_bytes), ..memory(16 * GIB) };
        decide(Facts { room, ..facts(&header) })
    };
    assert_eq!(started(with(needs(8))).slots, 8);
    assert_eq!(started(with(needs(8) - 1)).slots, 4);
    let Admission::NoRoom(shortage, detail) = with(needs(1) - 1) else { panic!("it cannot fit") };
    assert_eq!(shortage, Shortage::Vram(1));
    assert_eq!(detail.code, ErrorCode::InsufficientMemory);
    let figures = detail.details.unwrap();
    assert_eq!(
        (&figures["memory"], &figures["required_bytes"]),
        (&"vram".into(), &needs(1).into())
    );
    assert_eq!(figures["available_bytes"], needs(1) - 1);
}
