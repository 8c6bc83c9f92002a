//! The table of tensors. Owns the proof that each one lies inside the file; never reads a tensor.

use std::io::{Read, Seek};

use super::GgufError;
use super::cursor::Cursor;
use super::tensor_type::{TensorType, tensor_type};

/// Most tensors in a file: a hundred times the largest model in use.
const TENSOR_COUNT_MAX: u64 = 1 << 20;

/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
const DIMENSIONS_MAX: u32 = 4;

/// Longest tensor name, in bytes (`GGML_MAX_NAME` less its end mark).
const NAME_BYTES_MAX: u64 = 63;

/// Fewest bytes of one entry: name length, dimension count, type, offset.
const ENTRY_BYTES_MIN: u64 = 8 + 4 + 4 + 8;

/// The sums over all tensors.
#[derive(Debug)]
pub(super) struct Tensors {
    pub(super) parameter_count: u64,
    pub(super) weights_bytes: u64,
    /// Label of the type that fills the most bytes.
    pub(super) main_type: &'static str,
}

impl Tensors {
    pub(super) fn read<R: Read + Seek>(
        cursor: &mut Cursor<R>,
        count: u64,
        alignment: u64,
    ) -> Result<Self, GgufError> {
        let what = "tensor count";
        if !(1..=TENSOR_COUNT_MAX).contains(&count) {
            return Err(GgufError::OutOfRange {
                what,
                value: count,
                min: 1,
                max: TENSOR_COUNT_MAX,
            });
        }
        cursor.require(count, ENTRY_BYTES_MIN, "tensor table")?;
        let mut parameter_count = 0_u64;
        let mut weights_bytes = 0_u64;
        let mut next_offset = 0_u64;
        let mut data_bytes = 0_u64;
        let mut by_type: Vec<(&'static str, u64)> = Vec::new();
        for _ in 0..count {
            let tensor = Tensor::read(cursor)?;
            if tensor.offset != next_offset {
                return Err(GgufError::Inconsistent { what: "tensors do not follow one another" });
            }
            data_bytes = add(tensor.offset, tensor.bytes)?;
            next_offset = data_bytes
                .checked_next_multiple_of(alignment)
                .ok_or(GgufError::Overflow { what: "a tensor's size" })?;
            parameter_count = add(parameter_count, tensor.elements)?;
            weights_bytes = add(weights_bytes, tensor.bytes)?;
            match by_type.iter_mut().find(|(label, _)| *label == tensor.label) {
                Some((_, bytes)) => *bytes += tensor.bytes,
                None => by_type.push((tensor.label, tensor.bytes)),
            }
        }
        check_data_fits(cursor, data_bytes, alignment)?;
        let main_type =
            by_type.iter().max_by_key(|(_, bytes)| *bytes).map_or("", |(label, _)| label);
        Ok(Self { parameter_count, weights_bytes, main_type })
    }
}

/// The data starts at the first aligned offset after the table.
fn check_data_fits<R: Read + Seek>(
    cursor: &Cursor<R>,
    data_bytes: u64,
    alignment: u64,
) -> Result<(), GgufError> {
    let what = "tensor data";
    let offset = cursor
        .position()
        .checked_next_multiple_of(alignment)
        .ok_or(GgufError::Overflow { what })?;
    let end = offset.checked_add(data_bytes).ok_or(GgufError::Overflow { what })?;
    let file_bytes = cursor.file_bytes();
    if end > file_bytes {
        return Err(GgufError::Truncated { what, offset, needed: data_bytes, file_bytes });
    }
    Ok(())
}

struct Tensor {
    label: &'static str,
    elements: u64,
    bytes: u64,
    offset: u64,
}

impl Tensor {
    fn read<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<Self, GgufError> {
        let name_bytes = cursor.u64("tensor name")?;
        if name_bytes > NAME_BYTES_MAX {
            let what = "a tensor name's length";
            return Err(GgufError::OutOfRange {
                what,
                value: name_bytes,
                min: 0,
                max: NAME_BYTES_MAX,
            });
        }
        cursor.skip(name_bytes, 1, "tensor name")?;
        let dimensions = cursor.u32("tensor dimensions")?;
        if dimensions > DIMENSIONS_MAX {
            return Err(GgufError::OutOfRange {
                what: "a tensor's number of dimensions",
                value: dimensions.into(),
                min: 0,
                max: DIMENSIONS_MAX.into(),
            });
        }
        let mut row = 1_u64;
        let mut elements = 1_u64;
        for dimension in 0..dimensions {
            let extent = cursor.u64("tensor dimensions")?;
            if dimension == 0 {
                row = extent;
            }
            elements = elements
                .checked_mul(extent)
                .filter(|&product| i64::try_from(product).is_ok())
                .ok_or(GgufError::Overflow { what: "a tensor's number of elements" })?;
        }
        let id = cursor.u32("tensor type")?;
        let TensorType { label, elements: block, bytes: block_bytes } =
            tensor_type(id).ok_or(GgufError::UnknownCode { what: "tensor type", value: id })?;
        if !row.is_multiple_of(block) {
            return Err(GgufError::Inconsistent {
                what: "a tensor's row is no whole number of blocks",
            });
        }
        let bytes = (elements / block)
            .checked_mul(block_bytes)
            .ok_or(GgufError::Overflow { what: "a tensor's size" })?;
        let offset = cursor.u64("tensor offset")?;
        Ok(Self { label, elements, bytes, offset })
    }
}

fn add(a: u64, b: u64) -> Result<u64, GgufError> {
    a.checked_add(b).ok_or(GgufError::Overflow { what: "the size of all tensors" })
}
