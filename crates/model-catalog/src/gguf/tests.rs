//! Tests of the header reader: what a good file gives, and that no bad one passes, panics or costs memory.

use std::io::{Cursor as Memory, Read, Seek, SeekFrom};

use proptest::prelude::*;

use super::cursor::Cursor;
use super::test_file::{Kv, TestFile};
use super::value::{LAYERS_MAX, Value, read_value};
use super::{GgufError, GgufHeader, HEADER_BYTES_MAX, Purpose};

fn read(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
    GgufHeader::read(Memory::new(bytes), bytes.len() as u64)
}

fn error(file: &TestFile) -> GgufError {
    read(&file.bytes()).expect_err("the file was accepted")
}

fn array(element: u32, length: u64, content: &[u8]) -> Kv {
    let mut bytes = element.to_le_bytes().to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend(content);
    Kv::Raw(9, bytes)
}

#[test]
fn a_good_file_gives_its_facts() {
    for version in [2, 3] {
        let file = TestFile { version, ..TestFile::default() };
        let expected = GgufHeader {
            architecture: "llama".to_owned(),
            purpose: Purpose::Generate,
            reads_inputs_whole: false,
            name: Some("Tiny".to_owned()),
            quantisation: "Q4_1".to_owned(),
            context_length: 2048,
            block_count: 2,
            embedding_length: 64,
            feed_forward_length: 256,
            head_count: 4,
            head_count_kv: vec![2],
            key_length: 16,
            value_length: 16,
            vocabulary_size: 3,
            has_chat_template: true,
            split_count: 1,
            parameter_count: 3 * 64 + 64,
            weights_bytes: 3 * 40 + 256,
        };
        assert_eq!(read(&file.bytes()).unwrap(), expected);
    }
}

#[test]
fn optional_facts_have_the_defaults_of_the_format() {
    let bare = TestFile::default()
        .without("general.name")
        .without("general.file_type")
        .without("tokenizer.chat_template")
        .without("llama.feed_forward_length")
        .without("llama.attention.head_count_kv");
    let header = read(&bare.bytes()).unwrap();
    assert_eq!((header.name, header.has_chat_template), (None, false));
    assert_eq!(header.quantisation, "F32", "the type that fills most bytes");
    assert_eq!((header.feed_forward_length, header.head_count_kv), (256, vec![4]));
    let wide = TestFile::default()
        .with("llama.attention.key_length", Kv::U64(32))
        .with("llama.attention.value_length", Kv::U8(8));
    let header = read(&wide.bytes()).unwrap();
    assert_eq!((header.key_length, header.value_length), (32, 8));
}

#[test]
fn pooling_and_attention_tell_what_a_model_is_for() {
    let cases = [
        (None, None, (Purpose::Generate, false)),
        (Some(0), None, (Purpose::Generate, false)),
        (Some(0), Some(true), (Purpose::Generate, false)),
        (None, Some(false), (Purpose::Embed, true)),
        (Some(1), Some(false), (Purpose::Embed, true)),
        (Some(1), None, (Purpose::Embed, true)),
        (Some(2), Some(false), (Purpose::Embed, true)),
        (Some(3), None, (Purpose::Embed, false)),
        (Some(3), Some(false), (Purpose::Embed, true)),
        (Some(4), None, (Purpose::Rerank, false)),
        (Some(4), Some(false), (Purpose::Rerank, true)),
    ];
    for (pooling, causal, expected) in cases {
        let mut file = TestFile::default();
        if let Some(pooling) = pooling {
            file = file.with("llama.pooling_type", Kv::U32(pooling));
        }
        if let Some(causal) = causal {
            file = file.with("llama.attention.causal", Kv::Bool(causal));
        }
        let header = read(&file.bytes()).unwrap();
        let told = (header.purpose, header.reads_inputs_whole);
        assert_eq!(told, expected, "{pooling:?} {causal:?}");
    }
    let wrong = TestFile::default().with("llama.attention.causal", Kv::U32(0));
    assert!(matches!(error(&wrong), GgufError::WrongType { key: ".attention.causal", .. }));
}

#[test]
fn heads_may_differ_by_layer() {
    let file = TestFile::default().with("llama.attention.head_count_kv", Kv::U32s(vec![0, 3]));
    let header = read(&file.bytes()).unwrap();
    assert_eq!(
        (header.head_count_kv.as_slice(), header.head_count_kv_total()),
        ([0, 3].as_slice(), 3)
    );
    let wrong = TestFile::default().with("llama.attention.head_count_kv", Kv::U32s(vec![1; 3]));
    assert!(matches!(error(&wrong), GgufError::Inconsistent { .. }));
}

#[test]
fn a_file_cut_at_any_offset_is_truncated_and_nothing_worse() {
    let whole = TestFile::default().bytes();
    for length in 0..whole.len() {
        let result = read(&whole[..length]);
        assert!(matches!(result, Err(GgufError::Truncated { .. })), "{length}: {result:?}");
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_truncated() {
    let whole = TestFile::default().bytes();
    for length in 0..whole.len() - 384 - 32 {
        let result = GgufHeader::read(Memory::new(&whole[..length]), whole.len() as u64);
        assert!(matches!(result, Err(GgufError::Truncated { .. })), "{length}: {result:?}");
    }
}

#[test]
fn foreign_files_and_versions_are_refused() {
    let other = TestFile { magic: *b"GGML", ..TestFile::default() };
    assert!(matches!(error(&other), GgufError::NotGguf));
    for version in [0, 1, 4, 0x0300_0000, u32::MAX] {
        let file = TestFile { version, ..TestFile::default() };
        assert!(
            matches!(error(&file), GgufError::UnsupportedVersion { version: told } if told == version)
        );
    }
}

#[test]
fn counts_and_lengths_are_never_believed() {
    for count in [1 << 16, 1 << 20, 1 << 32, 1 << 63, u64::MAX - 1, u64::MAX] {
        for file in [
            TestFile { tensor_count: Some(count), ..TestFile::default() },
            TestFile { entry_count: Some(count), ..TestFile::default() },
            TestFile { tensor_count: Some(count), entry_count: Some(count), ..TestFile::default() },
            TestFile::default().with("a.text", Kv::Raw(8, count.to_le_bytes().to_vec())),
            TestFile::default().with("a.texts", array(8, count, &[])),
            TestFile::default().with("a.bytes", array(0, count, &[])),
            TestFile::default().with("a.numbers", array(10, count, &[])),
            TestFile::default().with("tokenizer.ggml.tokens", array(12, count, &[])),
        ] {
            assert!(
                matches!(
                    error(&file),
                    GgufError::Truncated { .. }
                        | GgufError::OutOfRange { .. }
                        | GgufError::Overflow { .. }
                ),
                "{count}"
            );
        }
    }
    for count in [0, 1] {
        let fewer = TestFile { entry_count: Some(count), ..TestFile::default() };
        assert!(read(&fewer.bytes()).is_err(), "{count}");
    }
    let none = TestFile { tensor_count: Some(0), ..TestFile::default() };
    assert!(matches!(error(&none), GgufError::OutOfRange { what: "tensor count", .. }));
}

#[test]
fn alignment_is_a_power_of_two_within_reason() {
    for good in [1_u32, 8, 32, 64] {
        let file =
            TestFile::default().with_tensor(&[64, 3], 3).with("general.alignment", Kv::U32(good));
        assert!(read(&file.bytes()).is_ok(), "{good}");
    }
    for bad in [0, 3, 24, 33, 1 << 22, u32::MAX] {
        let file = TestFile::default().with("general.alignment", Kv::U32(bad));
        assert!(
            matches!(error(&file), GgufError::OutOfRange { what: "general.alignment", .. }),
            "{bad}"
        );
    }
    let wide = TestFile::default().with("general.alignment", Kv::U64(32));
    assert!(matches!(error(&wide), GgufError::WrongType { .. }));
}

#[test]
fn every_known_key_has_its_type_and_no_other() {
    let text = || Kv::Text("x".to_owned());
    let others = [Kv::F32(1.0), Kv::Bool(true), Kv::Raw(12, vec![0; 8])];
    let integers = [Kv::U32(1), Kv::I32(-1)];
    let texts = || Kv::Texts(vec!["x".to_owned()]);
    let mut wrong: Vec<(&str, Kv)> = Vec::new();
    for key in ["general.architecture", "general.name", "tokenizer.chat_template"] {
        wrong.extend(
            others.iter().chain(&integers).cloned().chain([texts()]).map(|value| (key, value)),
        );
    }
    wrong.extend(
        others.iter().chain(&integers).cloned().map(|value| ("tokenizer.ggml.tokens", value)),
    );
    for key in [
        "general.file_type",
        "general.alignment",
        "split.count",
        "llama.context_length",
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
        "llama.attention.key_length",
        "llama.attention.value_length",
    ] {
        wrong.extend(others.iter().cloned().map(|value| (key, value)));
        wrong.extend([(key, text()), (key, texts()), (key, Kv::I32(-1))]);
    }
    for (key, value) in wrong {
        let file = TestFile::default().with(key, value.clone());
        assert!(matches!(error(&file), GgufError::WrongType { .. }), "{key} {value:?}");
    }
}

#[test]
fn needed_keys_are_there_once_and_within_limits() {
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
    ] {
        assert!(
            matches!(error(&TestFile::default().without(key)), GgufError::MissingKey { .. }),
            "{key}"
        );
        let mut twice = TestFile::default();
        let entry = twice.entries.iter().find(|(other, _)| other == key).cloned().unwrap();
        twice.entries.push(entry);
        assert!(matches!(error(&twice), GgufError::DuplicateKey { .. }), "{key}");
    }
    for (key, value) in [
        ("llama.block_count", 0),
        ("llama.block_count", 513),
        ("llama.context_length", 0),
        ("llama.embedding_length", u64::from(u32::MAX)),
        ("llama.attention.head_count", u64::MAX),
        ("llama.attention.key_length", 1 << 32),
        ("split.count", 1 << 16),
    ] {
        let file = TestFile::default().with(key, Kv::U64(value));
        assert!(matches!(error(&file), GgufError::OutOfRange { .. }), "{key} {value}");
    }
    for name in ["", "a/b", "a\u{1b}", &"a".repeat(65)] {
        let file = TestFile::default().with("general.architecture", Kv::Text(name.to_owned()));
        assert!(read(&file.bytes()).is_err(), "{name:?}");
    }
}

#[test]
fn arrays_are_not_nested_and_types_are_known() {
    for element in [9, 13, u32::MAX] {
        let file = TestFile::default().with("a.b", array(element, 1, &[0; 64]));
        assert!(matches!(error(&file), GgufError::UnknownCode { .. }), "{element}");
    }
    for type_id in [13, 255, u32::MAX] {
        let file = TestFile::default().with("a.b", Kv::Raw(type_id, vec![0; 16]));
        assert!(matches!(error(&file), GgufError::UnknownCode { .. }), "{type_id}");
    }
    for element in [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12] {
        let file = TestFile::default().with("a.b", array(element, 0, &[]));
        assert!(read(&file.bytes()).is_ok(), "{element}");
    }
}

#[test]
fn long_arrays_are_counted_and_not_kept() {
    for (length, is_kept) in
        [(0, true), (LAYERS_MAX, true), (LAYERS_MAX + 1, false), (1 << 20, false)]
    {
        let mut bytes = 4_u32.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.resize(bytes.len() + 4 * usize::try_from(length).unwrap(), 7);
        let file_bytes = bytes.len() as u64;
        let mut cursor = Cursor::new(Memory::new(bytes), file_bytes, HEADER_BYTES_MAX);
        let value = read_value(&mut cursor, 9).unwrap();
        let Value::Array { length: told, integers } = value else { panic!("{value:?}") };
        assert_eq!((told, integers.is_some()), (length, is_kept));
        assert_eq!(cursor.position(), file_bytes);
    }
}

#[test]
fn tensor_shapes_cannot_overflow() {
    for dimensions in [
        &[1 << 40, 1 << 40][..],
        &[u64::MAX],
        &[1 << 63],
        &[64, u64::MAX, u64::MAX, u64::MAX],
        &[1 << 32, 1 << 31],
        &[u64::MAX - 31, 1],
    ] {
        let file = TestFile::default().with_tensor(dimensions, 0);
        assert!(matches!(error(&file), GgufError::Overflow { .. }), "{dimensions:?}");
    }
    let beyond_i64 = TestFile::default().with_tensor(&[1 << 32, 1 << 31], 24);
    assert!(matches!(error(&beyond_i64), GgufError::Overflow { .. }));
    let huge = TestFile::default().with_tensor(&[1 << 62], 28);
    assert!(matches!(error(&huge), GgufError::Overflow { .. }));
    let large = TestFile::default().with_tensor(&[1 << 40], 0);
    assert!(matches!(error(&large), GgufError::Truncated { what: "tensor data", .. }));
    assert!(matches!(
        error(&TestFile::default().with_tensor(&[1; 5], 0)),
        GgufError::OutOfRange { .. }
    ));
    assert!(matches!(
        error(&TestFile::default().with_tensor(&[33], 3)),
        GgufError::Inconsistent { .. }
    ));
    for type_id in [4, 5, 31, 36, 43, u32::MAX] {
        let file = TestFile::default().with_tensor(&[256], type_id);
        assert!(
            matches!(error(&file), GgufError::UnknownCode { what: "tensor type", .. }),
            "{type_id}"
        );
    }
}

#[test]
fn tensors_follow_one_another_inside_the_file() {
    for offset in [0, 64, 127, 160, 1 << 40, u64::MAX - 255, u64::MAX] {
        let mut file = TestFile::default();
        file.tensors[1].offset = offset;
        assert!(matches!(error(&file), GgufError::Inconsistent { .. }), "{offset}");
    }
    let short = TestFile { data_bytes: 128 + 255, ..TestFile::default() };
    assert!(matches!(error(&short), GgufError::Truncated { what: "tensor data", .. }));
    let mut named = TestFile::default();
    named.tensors[0].name = "n".repeat(64);
    assert!(matches!(error(&named), GgufError::OutOfRange { .. }));
}

/// A file of any length that holds one byte over and over after its start.
struct Endless {
    start: Vec<u8>,
    position: u64,
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for byte in buffer.iter_mut() {
            *byte = usize::try_from(self.position)
                .ok()
                .and_then(|at| self.start.get(at))
                .copied()
                .unwrap_or(0);
            self.position += 1;
        }
        Ok(buffer.len())
    }
}

impl Seek for Endless {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.position = match to {
            SeekFrom::Start(position) => position,
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance).unwrap(),
            SeekFrom::End(_) => panic!("not needed"),
        };
        Ok(self.position)
    }
}

#[test]
fn a_header_without_end_is_given_up() {
    let file_bytes = 1 << 50;
    let endless = array(8, HEADER_BYTES_MAX, &[]);
    let mut file = TestFile::default();
    file.entries.push(("a.texts".to_owned(), endless));
    let mut start = TestFile { tensors: Vec::new(), data_bytes: 0, ..file }.bytes();
    start[8] = 1;
    let result = GgufHeader::read(Endless { start, position: 0 }, file_bytes);
    assert!(matches!(result, Err(GgufError::HeaderTooLarge { .. })), "{result:?}");
}

proptest! {
    #[test]
    fn no_change_of_bytes_makes_the_reader_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = TestFile::default().bytes();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(header) = read(&bytes) {
            prop_assert!(header.weights_bytes <= bytes.len() as u64);
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(tail in prop::collection::vec(any::<u8>(), 0..512)) {
        let mut bytes = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        bytes.extend(tail);
        prop_assert!(read(&bytes).is_err());
    }
}
