//! The metadata of a model file. Owns which keys are kept, their types and limits; passes over everything else.

use std::io::{Read, Seek};

use super::cursor::Cursor;
use super::tensor_type::file_type_label;
use super::tensors::Tensors;
use super::value::{LAYERS_MAX, Value, read_value};
use super::{GgufError, GgufHeader, Purpose};

/// Most metadata entries: fifty times the most seen.
const ENTRY_COUNT_MAX: u64 = 1 << 16;

/// Fewest bytes of an entry: key length, type, and a value of one byte.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 1;

/// Longest key, in bytes, by the format's own rule.
const KEY_BYTES_MAX: usize = 65_535;

/// Most entries kept: twice the known keys, for a file that holds some of them under several architectures.
const KEPT_MAX: usize = 64;

/// Longest name of an architecture, in bytes: twice the longest in use.
const ARCHITECTURE_BYTES_MAX: usize = 64;

/// Largest width, head count or context length that is believed; keeps every estimate within 64 bits.
const WIDTH_MAX: u64 = 1 << 28;

/// Alignment of tensor data when the file names none (`GGUF_DEFAULT_ALIGNMENT`).
const ALIGNMENT_DEFAULT: u64 = 32;

/// Largest alignment believed: the largest page size in use.
const ALIGNMENT_MAX: u64 = 2 << 20;

/// Keys of every model.
const GENERAL_KEYS: [&str; 7] = [
    "general.architecture",
    "general.name",
    "general.file_type",
    "general.alignment",
    "tokenizer.ggml.tokens",
    "tokenizer.chat_template",
    "split.count",
];

/// Keys that begin with the architecture's name.
const ARCHITECTURE_KEYS: [&str; 11] = [
    ".context_length",
    ".block_count",
    ".embedding_length",
    ".feed_forward_length",
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
    ".vocab_size",
    ".pooling_type",
    ".attention.causal",
];

/// What `pooling_type` says (`llama_pooling_type` in llama.cpp); the types not named here average or pick tokens.
const POOLING_NONE: u32 = 0;
const POOLING_LAST: u32 = 3;
const POOLING_RANK: u32 = 4;

/// The known entries of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    /// Whole key, the constant it was recognised by, and the value.
    kept: Vec<(Vec<u8>, &'static str, Value)>,
}

impl Metadata {
    pub(super) fn read<R: Read + Seek>(
        cursor: &mut Cursor<R>,
        count: u64,
    ) -> Result<Self, GgufError> {
        if count > ENTRY_COUNT_MAX {
            let what = "metadata count";
            return Err(GgufError::OutOfRange { what, value: count, min: 0, max: ENTRY_COUNT_MAX });
        }
        cursor.require(count, ENTRY_BYTES_MIN, "metadata")?;
        let mut kept: Vec<(Vec<u8>, &'static str, Value)> = Vec::new();
        for _ in 0..count {
            let key = cursor.text(KEY_BYTES_MAX, "metadata key")?;
            let type_id = cursor.u32("metadata type")?;
            let value = read_value(cursor, type_id)?;
            let Some(known) = known_key(&key) else { continue };
            if kept.iter().any(|(other, ..)| *other == key) {
                return Err(GgufError::DuplicateKey { key: known });
            }
            if kept.len() >= KEPT_MAX {
                return Err(GgufError::Inconsistent { what: "too many architectures" });
            }
            kept.push((key, known, value));
        }
        Ok(Self { kept })
    }

    /// Returns the alignment of tensor data.
    pub(super) fn alignment(&self) -> Result<u64, GgufError> {
        let key = "general.alignment";
        let number = match self.find(b"", key) {
            None => return Ok(ALIGNMENT_DEFAULT),
            Some(Value::Integer { number, is_u32: true }) => *number,
            Some(other) => return Err(wrong_type(key, "a 32-bit unsigned integer", other)),
        };
        if !number.is_power_of_two() || number > ALIGNMENT_MAX {
            return Err(GgufError::OutOfRange {
                what: key,
                value: number,
                min: 1,
                max: ALIGNMENT_MAX,
            });
        }
        Ok(number)
    }

    /// Puts the facts together, with what the tensors tell.
    pub(super) fn into_header(self, tensors: &Tensors) -> Result<GgufHeader, GgufError> {
        let architecture = self.architecture()?;
        let arch = architecture.as_bytes();
        let block_count =
            required(".block_count", self.number(arch, ".block_count", 1, LAYERS_MAX)?)?;
        let width = |key| self.number(arch, key, 0, WIDTH_MAX);
        let embedding_length =
            required(".embedding_length", self.number(arch, ".embedding_length", 1, WIDTH_MAX)?)?;
        let context_length =
            required(".context_length", self.number(arch, ".context_length", 1, WIDTH_MAX)?)?;
        let largest = |key| {
            self.per_layer(arch, key, block_count)
                .map(|all| all.and_then(|all| all.into_iter().max()))
        };
        let head_count = largest(".attention.head_count")?.unwrap_or(0);
        let head_width = embedding_length.checked_div(head_count).unwrap_or(0);
        let (purpose, reads_inputs_whole) = self.purpose(arch)?;
        Ok(GgufHeader {
            purpose,
            reads_inputs_whole,
            name: self.text("general.name")?.filter(|name| !name.is_empty()),
            quantisation: self.quantisation(tensors)?,
            context_length,
            block_count,
            embedding_length,
            feed_forward_length: largest(".feed_forward_length")?
                .unwrap_or_else(|| embedding_length.saturating_mul(4)),
            head_count,
            head_count_kv: self
                .per_layer(arch, ".attention.head_count_kv", block_count)?
                .unwrap_or_else(|| vec![head_count]),
            key_length: width(".attention.key_length")?.unwrap_or(head_width),
            value_length: width(".attention.value_length")?.unwrap_or(head_width),
            vocabulary_size: self.vocabulary_size(arch)?,
            has_chat_template: self.text("tokenizer.chat_template")?.is_some(),
            split_count: self
                .number(b"", "split.count", 0, u64::from(u16::MAX))?
                .unwrap_or(1)
                .max(1),
            parameter_count: tensors.parameter_count,
            weights_bytes: tensors.weights_bytes,
            architecture,
        })
    }

    fn architecture(&self) -> Result<String, GgufError> {
        let key = "general.architecture";
        let name = self.text(key)?.ok_or(GgufError::MissingKey { key })?;
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if name.is_empty() || name.len() > ARCHITECTURE_BYTES_MAX || !name.bytes().all(is_plain) {
            return Err(GgufError::Inconsistent { what: "the architecture's name is not a name" });
        }
        Ok(name)
    }

    /// A model that pools its tokens gives one result for a whole input, and one whose attention looks ahead cannot
    /// write on. What pools nothing although it looks ahead is taken for an encoder whose tokens are averaged.
    fn purpose(&self, architecture: &[u8]) -> Result<(Purpose, bool), GgufError> {
        let pooling = self.number(architecture, ".pooling_type", 0, u64::from(u32::MAX))?;
        let causal = self.flag(architecture, ".attention.causal")?.unwrap_or(true);
        Ok(match pooling.unwrap_or(POOLING_NONE) {
            POOLING_NONE if causal => (Purpose::Generate, false),
            POOLING_LAST => (Purpose::Embed, !causal),
            POOLING_RANK => (Purpose::Rerank, !causal),
            _ => (Purpose::Embed, true),
        })
    }

    fn flag(&self, architecture: &[u8], key: &'static str) -> Result<Option<bool>, GgufError> {
        match self.find(architecture, key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong_type(key, "a boolean", other)),
        }
    }

    fn quantisation(&self, tensors: &Tensors) -> Result<String, GgufError> {
        let file_type = self.number(b"", "general.file_type", 0, u64::from(u32::MAX))?;
        let label = file_type.and_then(|file_type| file_type_label(file_type.into()));
        Ok(label.unwrap_or(tensors.main_type).to_owned())
    }

    fn vocabulary_size(&self, architecture: &[u8]) -> Result<u64, GgufError> {
        let key = "tokenizer.ggml.tokens";
        let tokens = match self.find(b"", key) {
            None => None,
            Some(Value::Array { length, .. }) => Some(*length),
            Some(other) => return Err(wrong_type(key, "an array", other)),
        };
        let declared = self.number(architecture, ".vocab_size", 0, WIDTH_MAX)?.map(u64::from);
        Ok(tokens.or(declared).unwrap_or(0))
    }

    fn find(&self, architecture: &[u8], key: &str) -> Option<&Value> {
        self.kept
            .iter()
            .find(|(whole, known, _)| {
                *known == key && whole.strip_suffix(key.as_bytes()) == Some(architecture)
            })
            .map(|(_, _, value)| value)
    }

    fn text(&self, key: &'static str) -> Result<Option<String>, GgufError> {
        match self.find(b"", key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(String::from_utf8_lossy(text).into_owned())),
            Some(other) => Err(wrong_type(key, "a text", other)),
        }
    }

    fn number(
        &self,
        architecture: &[u8],
        key: &'static str,
        min: u64,
        max: u64,
    ) -> Result<Option<u32>, GgufError> {
        match self.find(architecture, key) {
            None => Ok(None),
            Some(Value::Integer { number, .. }) => bounded(key, *number, min, max).map(Some),
            Some(other) => Err(wrong_type(key, "an integer", other)),
        }
    }

    /// Reads a number for all layers, or one for each.
    fn per_layer(
        &self,
        architecture: &[u8],
        key: &'static str,
        block_count: u32,
    ) -> Result<Option<Vec<u32>>, GgufError> {
        match self.find(architecture, key) {
            None => Ok(None),
            Some(Value::Integer { number, .. }) => {
                Ok(Some(vec![bounded(key, *number, 0, WIDTH_MAX)?]))
            }
            Some(Value::Array { length, integers: Some(integers) }) => {
                if *length != u64::from(block_count) {
                    return Err(GgufError::Inconsistent {
                        what: "an array has not one number for each layer",
                    });
                }
                integers
                    .iter()
                    .map(|&number| bounded(key, number, 0, WIDTH_MAX))
                    .collect::<Result<_, _>>()
                    .map(Some)
            }
            Some(other) => {
                Err(wrong_type(key, "an integer or an array of one for each layer", other))
            }
        }
    }
}

fn known_key(key: &[u8]) -> Option<&'static str> {
    let general = GENERAL_KEYS.into_iter().find(|known| known.as_bytes() == key);
    general.or_else(|| {
        ARCHITECTURE_KEYS.into_iter().find(|known| {
            key.strip_suffix(known.as_bytes())
                .is_some_and(|arch| arch.len() <= ARCHITECTURE_BYTES_MAX && !arch.contains(&b'.'))
        })
    })
}

fn bounded(what: &'static str, value: u64, min: u64, max: u64) -> Result<u32, GgufError> {
    match u32::try_from(value) {
        Ok(number) if (min..=max).contains(&value) => Ok(number),
        _ => Err(GgufError::OutOfRange { what, value, min, max }),
    }
}

fn required(key: &'static str, value: Option<u32>) -> Result<u32, GgufError> {
    value.ok_or(GgufError::MissingKey { key })
}

const fn wrong_type(key: &'static str, expected: &'static str, found: &Value) -> GgufError {
    GgufError::WrongType { key, expected, found: found.type_name() }
}
