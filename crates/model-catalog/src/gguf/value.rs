//! The values of metadata. Owns the format's thirteen types; keeps numbers, the start of texts, and short arrays of
//! integers, and passes over the rest.

use std::io::{Read, Seek};

use super::GgufError;
use super::cursor::Cursor;

/// Most layers (`LLAMA_MAX_LAYERS`), and so the longest array that is kept.
pub(super) const LAYERS_MAX: u64 = 512;

/// Bytes kept of a text: an architecture or a model's name.
const TEXT_BYTES_MAX: usize = 256;

/// One value, as far as it is kept.
#[derive(Debug)]
pub(super) enum Value {
    Integer {
        number: u64,
        is_u32: bool,
    },
    NegativeInteger,
    Float,
    Bool(bool),
    Text(Vec<u8>),
    /// An array; its content is kept when it is of integers and no longer than the most layers.
    Array {
        length: u64,
        integers: Option<Vec<u64>>,
    },
}

impl Value {
    pub(super) const fn type_name(&self) -> &'static str {
        match self {
            Self::Integer { .. } => "an integer",
            Self::NegativeInteger => "a negative integer",
            Self::Float => "a floating-point number",
            Self::Bool(_) => "a boolean",
            Self::Text(_) => "a text",
            Self::Array { .. } => "an array",
        }
    }
}

/// Reads or passes over the value of one entry.
pub(super) fn read_value<R: Read + Seek>(
    cursor: &mut Cursor<R>,
    type_id: u32,
) -> Result<Value, GgufError> {
    let what = "metadata value";
    Ok(match type_id {
        8 => Value::Text(cursor.text(TEXT_BYTES_MAX, what)?),
        9 => read_array(cursor)?,
        6 | 12 => {
            cursor.skip(1, scalar_bytes(type_id)?, what)?;
            Value::Float
        }
        7 => Value::Bool(cursor.u8(what)? != 0),
        integer => match read_integer(cursor, integer)? {
            Some(number) => Value::Integer { number, is_u32: integer == 4 },
            None => Value::NegativeInteger,
        },
    })
}

fn read_array<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<Value, GgufError> {
    let what = "metadata array";
    let element = cursor.u32(what)?;
    let length = cursor.u64(what)?;
    if element == 8 {
        cursor.require(length, 8, what)?;
        for _ in 0..length {
            cursor.text(0, what)?;
        }
        return Ok(Value::Array { length, integers: None });
    }
    let each = scalar_bytes(element)?;
    if length > LAYERS_MAX || matches!(element, 6 | 7 | 12) {
        cursor.skip(length, each, what)?;
        return Ok(Value::Array { length, integers: None });
    }
    let mut integers = Some(Vec::new());
    for _ in 0..length {
        let number = read_integer(cursor, element)?;
        integers = integers.zip(number).map(|(mut all, number)| {
            all.push(number);
            all
        });
    }
    Ok(Value::Array { length, integers })
}

/// Bytes of a value of fixed size. Arrays (9) are refused here, which is what keeps them from being nested.
const fn scalar_bytes(type_id: u32) -> Result<u64, GgufError> {
    Ok(match type_id {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return Err(GgufError::UnknownCode { what: "metadata type", value: type_id }),
    })
}

/// Reads an integer of any of the eight types; a negative one becomes nothing.
fn read_integer<R: Read + Seek>(
    cursor: &mut Cursor<R>,
    type_id: u32,
) -> Result<Option<u64>, GgufError> {
    let what = "metadata value";
    let signed = match type_id {
        0 => return cursor.u8(what).map(|number| Some(number.into())),
        2 => return cursor.u16(what).map(|number| Some(number.into())),
        4 => return cursor.u32(what).map(|number| Some(number.into())),
        10 => return cursor.u64(what).map(Some),
        1 => i8::from_le_bytes(cursor.bytes(what)?).into(),
        3 => i16::from_le_bytes(cursor.bytes(what)?).into(),
        5 => i32::from_le_bytes(cursor.bytes(what)?).into(),
        11 => i64::from_le_bytes(cursor.bytes(what)?),
        other => return Err(GgufError::UnknownCode { what: "metadata type", value: other }),
    };
    Ok(u64::try_from(signed).ok())
}
