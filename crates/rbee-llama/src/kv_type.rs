//! The forms in which the numbers of the KV cache can be stored: their names
//! and sizes. Converts none.

use std::fmt;
use std::str::FromStr;

use llama_cpp_sys_2 as sys;

/// How the numbers of the KV cache are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 32 bits each.
    F32,
    /// 16 bits each.
    #[default]
    F16,
    /// 16 bits each, with the range of 32.
    Bf16,
    /// 8.5 bits each.
    Q8_0,
    /// 6 bits each.
    Q5_1,
    /// 5.5 bits each.
    Q5_0,
    /// 5 bits each.
    Q4_1,
    /// 4.5 bits each.
    Q4_0,
    /// 4.5 bits each, of an uneven scale.
    Iq4Nl,
}

/// Not the name of a form of the KV cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 and iq4_nl")]
pub struct UnknownKvType;

impl KvType {
    /// All of them, the largest first.
    pub const ALL: [Self; 9] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8_0,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4_0,
        Self::Iq4Nl,
    ];

    /// The name, as llama.cpp has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
            Self::Iq4Nl => "iq4_nl",
        }
    }

    /// Whether numbers are stored in blocks with a common scale.
    #[must_use]
    pub const fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// The bytes that 32 numbers take; the largest block has as many.
    #[must_use]
    pub const fn bytes_of_32(self) -> u64 {
        match self {
            Self::F32 => 128,
            Self::F16 | Self::Bf16 => 64,
            Self::Q8_0 => 34,
            Self::Q5_1 => 24,
            Self::Q5_0 => 22,
            Self::Q4_1 => 20,
            Self::Q4_0 | Self::Iq4Nl => 18,
        }
    }

    pub(crate) const fn raw(self) -> sys::ggml_type {
        match self {
            Self::F32 => sys::GGML_TYPE_F32,
            Self::F16 => sys::GGML_TYPE_F16,
            Self::Bf16 => sys::GGML_TYPE_BF16,
            Self::Q8_0 => sys::GGML_TYPE_Q8_0,
            Self::Q5_1 => sys::GGML_TYPE_Q5_1,
            Self::Q5_0 => sys::GGML_TYPE_Q5_0,
            Self::Q4_1 => sys::GGML_TYPE_Q4_1,
            Self::Q4_0 => sys::GGML_TYPE_Q4_0,
            Self::Iq4Nl => sys::GGML_TYPE_IQ4_NL,
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KvType {
    type Err = UnknownKvType;

    fn from_str(text: &str) -> Result<Self, UnknownKvType> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or(UnknownKvType)
    }
}

#[cfg(test)]
#[expect(unsafe_code, reason = "asks llama.cpp for the names and sizes of its types")]
mod tests {
    use super::*;

    #[test]
    fn names_and_sizes_are_those_of_llama_cpp() {
        for kind in KvType::ALL {
            // SAFETY: the types are valid, and their names are constants.
            let (name, block, bytes) = unsafe {
                (
                    crate::ffi::copy_text(sys::ggml_type_name(kind.raw())),
                    sys::ggml_blck_size(kind.raw()),
                    sys::ggml_type_size(kind.raw()),
                )
            };
            assert_eq!(name.as_deref(), Some(kind.as_str()));
            assert_eq!(32 / block.cast_unsigned() * bytes as u64, kind.bytes_of_32(), "{kind}");
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(block > 1, kind.is_quantized(), "{kind}");
        }
        assert_eq!("f64".parse::<KvType>(), Err(UnknownKvType));
    }
}
