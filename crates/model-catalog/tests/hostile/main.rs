//! Hostile model files: each is refused with a typed error, within a bounded time, and costs no more memory than its
//! own size and one MiB. In a program of its own, since what is counted is the memory of the whole program.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a helper of tests fails them"
)]

mod fields;
#[expect(clippy::unwrap_used, dead_code, reason = "the reader's own tests use all of it")]
#[path = "../../src/gguf/test_file.rs"]
mod test_file;

use std::io::Cursor;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model_catalog::{GgufError, GgufHeader};
use peak_alloc::PeakAlloc;
use rustix::time::{ClockId, clock_gettime};

use fields::fields;
use test_file::{Kv, TestFile};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What reading may take beside the file itself.
const BESIDE_THE_FILE: usize = 1 << 20;
/// What reading one may take of a processor's time, which other programs do not add to.
const LIMIT: Duration = Duration::from_millis(100);

/// One test at a time, so that no other's memory counts.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this thread has had of a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Reads a header and holds the reader to its bounds.
fn read(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
    read_within(bytes, LIMIT)
}

fn read_within(bytes: &[u8], limit: Duration) -> Result<GgufHeader, GgufError> {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let begun = processor_time();
    let header = GgufHeader::read(Cursor::new(bytes), bytes.len() as u64);
    let took = processor_time().saturating_sub(begun);
    let used = ALLOCATOR.peak_usage().saturating_sub(before);
    assert!(used <= bytes.len() + BESIDE_THE_FILE, "{used} bytes for a file of {}", bytes.len());
    assert!(took < limit, "{took:?} for a file of {} bytes: {header:?}", bytes.len());
    header
}

/// Reads a file that has to be refused as one that is no model.
fn refused(bytes: &[u8], what: &dyn std::fmt::Debug) -> GgufError {
    match read(bytes) {
        Ok(header) => panic!("{what:?} was accepted: {header:?}"),
        Err(GgufError::Io(error)) => panic!("{what:?} is told as {error}"),
        Err(error) => {
            assert_eq!(error.code(), "invalid_model_file");
            error
        }
    }
}

fn array(element: u32, length: u64, content: &[u8]) -> Kv {
    let bytes = [&element.to_le_bytes()[..], &length.to_le_bytes(), content].concat();
    Kv::Raw(9, bytes)
}

#[test]
fn memory_is_counted() {
    let _turn = turn();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    drop(std::hint::black_box(vec![1_u8; 3 << 20]));
    // The harness may give a little back meanwhile.
    assert!(ALLOCATOR.peak_usage() >= before + (2 << 20));
}

#[test]
fn a_file_cut_at_any_place_is_refused() {
    let _turn = turn();
    let whole = TestFile::default().bytes();
    assert!(read(&whole).is_ok());
    for length in 0..whole.len() {
        let error = refused(&whole[..length], &length);
        let is_told = matches!(error, GgufError::Truncated { .. } | GgufError::NotGguf);
        assert!(is_told, "cut at {length}: {error}");
    }
}

#[test]
fn every_number_of_a_header_at_its_edges_alone_and_in_pairs_is_within_bounds() {
    let _turn = turn();
    let whole = TestFile::default().bytes();
    let fields = fields(&whole);
    assert!(fields.len() >= 57, "{} fields were found", fields.len());
    let edges = |width: usize| {
        let max = u64::MAX >> (64 - 8 * width);
        [0, 1, max - 1, max, max / 2, max / 2 + 1]
    };
    let with = |base: &[u8], (at, width): (usize, usize), edge: u64| {
        let mut bytes = base.to_vec();
        bytes[at..at + width].copy_from_slice(&edge.to_le_bytes()[..width]);
        bytes
    };
    let check = |bytes: &[u8], what: &dyn std::fmt::Debug| match read(bytes) {
        Ok(header) => assert!(header.weights_bytes <= bytes.len() as u64, "{what:?}: {header:?}"),
        Err(GgufError::Io(error)) => panic!("{what:?} is told as {error}"),
        Err(_typed) => {}
    };
    for field in &fields {
        for edge in edges(field.1) {
            let one = with(&whole, *field, edge);
            check(&one, &(field, edge));
            for other in &fields {
                for second in edges(other.1) {
                    check(&with(&one, *other, second), &(field, edge, other, second));
                }
            }
        }
    }
}

#[test]
fn declared_lengths_cost_nothing_until_they_are_there() {
    let _turn = turn();
    for count in [1_u64 << 16, 1 << 31, 1 << 32, 1 << 40, i64::MAX as u64, u64::MAX - 1, u64::MAX] {
        for (what, file) in [
            ("tensors", TestFile { tensor_count: Some(count), ..TestFile::default() }),
            ("entries", TestFile { entry_count: Some(count), ..TestFile::default() }),
            ("text", TestFile::default().with("a.text", Kv::Raw(8, count.to_le_bytes().to_vec()))),
            ("texts", TestFile::default().with("a.texts", array(8, count, &[]))),
            ("bytes", TestFile::default().with("a.bytes", array(0, count, &[]))),
            ("numbers", TestFile::default().with("a.numbers", array(10, count, &[]))),
        ] {
            refused(&file.bytes(), &(what, count));
        }
        // The header alone, in less than 64 bytes.
        let start = [&b"GGUF\x03\0\0\0"[..], &count.to_le_bytes(), &count.to_le_bytes()].concat();
        refused(&start, &count);
    }
}

#[test]
fn arrays_in_arrays_are_refused_however_deep() {
    let _turn = turn();
    for depth in [2_usize, 3, 100, 100_000] {
        let inner = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
        let file = TestFile::default().with("a.nested", Kv::Raw(9, inner.repeat(depth)));
        let error = refused(&file.bytes(), &depth);
        assert!(matches!(error, GgufError::UnknownCode { .. }), "{depth}: {error}");
    }
}

#[test]
fn an_alignment_that_is_none_is_refused() {
    let _turn = turn();
    for alignment in [0, 3, 31, 33, u32::MAX] {
        let file = TestFile::default().with("general.alignment", Kv::U32(alignment));
        let error = refused(&file.bytes(), &alignment);
        assert!(matches!(error, GgufError::OutOfRange { .. }), "{alignment}: {error}");
    }
}

#[test]
fn no_tensor_lies_beyond_the_end_of_the_file() {
    let _turn = turn();
    for (dimensions, kind) in [
        (&[1_u64 << 20][..], 0),
        (&[1 << 40, 1 << 40], 0),
        (&[1 << 32, 1 << 32], 0),
        (&[(1 << 62) - 32], 0),
        // As many numbers of four bytes as make a size of nothing, in 64 bits.
        (&[1 << 62], 0),
        (&[i64::MAX as u64], 24),
        (&[u64::MAX, 0], 0),
    ] {
        let file = TestFile::default().with_tensor(dimensions, kind);
        refused(&file.bytes(), &dimensions);
    }
    // Two tensors whose sizes only together have no 64-bit value.
    let mut two = TestFile::default();
    for tensor in &mut two.tensors {
        (tensor.dimensions, tensor.type_id) = (vec![1 << 60, 2], 0);
    }
    two.tensors[1].offset = 1 << 63;
    refused(&two.bytes(), &"a sum beyond 64 bits");
}

#[test]
fn every_key_is_read_at_every_type() {
    let _turn = turn();
    let keys = [
        "general.architecture",
        "general.name",
        "general.file_type",
        "general.alignment",
        "tokenizer.ggml.tokens",
        "tokenizer.chat_template",
        "split.count",
        "llama.context_length",
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.vocab_size",
        "llama.pooling_type",
        "llama.attention.causal",
    ];
    let mut outcomes = [0_usize; 2];
    for key in keys {
        for type_id in (0..=16).chain([255, u32::MAX]) {
            // A text of no bytes, an array of no bytes, and zeros for every number.
            for content in [&[0_u8; 12][..], &[0xff; 12]] {
                let file = TestFile::default().with(key, Kv::Raw(type_id, content.to_vec()));
                let is_good = match read(&file.bytes()) {
                    Ok(_) => true,
                    Err(GgufError::Io(error)) => panic!("{key} as {type_id} is told as {error}"),
                    Err(_typed) => false,
                };
                outcomes[usize::from(is_good)] += 1;
            }
        }
    }
    assert!(outcomes[0] > 500, "{outcomes:?}");
}

/// Work that grows with the square of what a file holds would take minutes here.
#[test]
fn a_header_full_of_entries_takes_time_in_step_with_its_size() {
    let _turn = turn();
    let mut entries = TestFile::default();
    for index in 0..60_000 {
        entries.entries.push((format!("llama{index}.some.key"), Kv::Bool(true)));
    }
    assert!(read_within(&entries.bytes(), Duration::from_secs(2)).is_ok());

    let mut architectures = TestFile::default();
    for index in 0..60_000 {
        architectures.entries.push((format!("arch{index}.block_count"), Kv::U32(1)));
    }
    refused(&architectures.bytes(), &"sixty thousand architectures");

    let mut tensors = TestFile { tensors: Vec::new(), data_bytes: 1 << 22, ..TestFile::default() };
    let one = TestFile::default().tensors[1].clone();
    for index in 0..100_000_u64 {
        let mut tensor = one.clone();
        (tensor.dimensions, tensor.offset) = (vec![8], 32 * index);
        tensor.name = format!("t{index}");
        tensors.tensors.push(tensor);
    }
    let header = read_within(&tensors.bytes(), Duration::from_secs(2)).expect("many small tensors");
    assert_eq!(header.parameter_count, 800_000);

    let texts = TestFile::default().with("a.texts", Kv::Texts(vec![String::new(); 1 << 20]));
    assert!(read_within(&texts.bytes(), Duration::from_secs(2)).is_ok());
}
