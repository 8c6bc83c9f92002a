//! The header of a GGUF model file. Owns what is read out of it and the proof that the file is whole: every length is
//! checked against the file before it is used. Never reads tensor data and never loads a model.
//!
//! The format is llama.cpp's (`ggml/include/gguf.h`); a file that its loader refuses for its header is refused here.

mod cursor;
mod error;
mod metadata;
mod tensor_type;
mod tensors;
#[cfg(test)]
pub(crate) mod test_file;
#[cfg(test)]
mod tests;
mod value;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use error::GgufError;

use cursor::Cursor;
use metadata::Metadata;
use tensors::Tensors;

/// Most bytes a header may have: ten times the largest vocabulary in use, and a bound on the time spent reading one.
const HEADER_BYTES_MAX: u64 = 256 << 20;

/// Holds what a model file's header says about the model, as far as rbee needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GgufHeader {
    /// Name of the model's architecture, such as `llama`.
    pub architecture: String,
    /// What the model is for.
    #[serde(default)]
    pub purpose: Purpose,
    /// Whether an input has to be computed in one piece: attention looks ahead, or every token goes into the result.
    #[serde(default)]
    pub reads_inputs_whole: bool,
    /// Name the model's maker gave it. Foreign text: to be sanitised before it is shown.
    pub name: Option<String>,
    /// Quantisation in llama.cpp's short form, such as `Q4_K_M`.
    pub quantisation: String,
    /// Tokens of context the model was trained for.
    pub context_length: u32,
    /// Layers.
    pub block_count: u32,
    /// Width of a token's embedding.
    pub embedding_length: u32,
    /// Width of the feed-forward network, the widest where layers differ.
    pub feed_forward_length: u32,
    /// Attention heads, the most where layers differ.
    pub head_count: u32,
    /// Heads of the key-value cache: one number for all layers, or one for each.
    pub head_count_kv: Vec<u32>,
    /// Width of one head's key.
    pub key_length: u32,
    /// Width of one head's value.
    pub value_length: u32,
    /// Tokens in the vocabulary.
    pub vocabulary_size: u64,
    /// Whether the file carries a chat template.
    pub has_chat_template: bool,
    /// Files that the model is split over; 1 for a whole model.
    pub split_count: u32,
    /// Weights, counted one by one.
    pub parameter_count: u64,
    /// Bytes of all tensors together.
    pub weights_bytes: u64,
}

/// What a model is for, as its header tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Writes text.
    #[default]
    Generate,
    /// Turns texts into vectors.
    Embed,
    /// Scores how well a document answers a query.
    Rerank,
}

impl GgufHeader {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// [`GgufError`]; [`GgufError::Io`] when the file cannot be opened.
    pub fn read_file(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        Self::read(file, file_bytes)
    }

    /// Reads the header from the start of `reader`, which holds `file_bytes` bytes.
    ///
    /// Reads no further than the header and keeps no array of it, so that memory stays under a few hundred KiB
    /// whatever the file claims.
    ///
    /// # Errors
    /// [`GgufError`], saying what is wrong and where.
    pub fn read(mut reader: impl Read + Seek, file_bytes: u64) -> Result<Self, GgufError> {
        reader.seek(SeekFrom::Start(0))?;
        let mut cursor = Cursor::new(reader, file_bytes, HEADER_BYTES_MAX);
        if cursor.bytes::<4>("magic")? != *b"GGUF" {
            return Err(GgufError::NotGguf);
        }
        let version = cursor.u32("version")?;
        if !matches!(version, 2 | 3) {
            return Err(GgufError::UnsupportedVersion { version });
        }
        let tensor_count = cursor.u64("tensor count")?;
        let entry_count = cursor.u64("metadata count")?;
        let metadata = Metadata::read(&mut cursor, entry_count)?;
        let tensors = Tensors::read(&mut cursor, tensor_count, metadata.alignment()?)?;
        metadata.into_header(&tensors)
    }

    /// Returns the heads of the key-value cache, summed over all layers.
    pub(crate) fn head_count_kv_total(&self) -> u64 {
        match self.head_count_kv.as_slice() {
            [same] => u64::from(*same) * u64::from(self.block_count),
            each => each.iter().copied().map(u64::from).sum(),
        }
    }
}
