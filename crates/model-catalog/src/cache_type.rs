//! The forms in which a worker can store keys and values: their names and
//! sizes. Converts none.

use serde::Deserialize;

/// How a worker stores keys or values; the names are llama.cpp's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheType {
    /// 32 bits a number.
    F32,
    /// 16 bits.
    #[default]
    F16,
    /// 16 bits, with the range of 32.
    Bf16,
    /// 8.5 bits.
    #[serde(rename = "q8_0")]
    Q8,
    /// 6 bits.
    #[serde(rename = "q5_1")]
    Q5Offset,
    /// 5.5 bits.
    #[serde(rename = "q5_0")]
    Q5,
    /// 5 bits.
    #[serde(rename = "q4_1")]
    Q4Offset,
    /// 4.5 bits.
    #[serde(rename = "q4_0")]
    Q4,
    /// 4.5 bits, of an uneven scale.
    #[serde(rename = "iq4_nl")]
    Q4Uneven,
}

impl CacheType {
    /// The name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8_0",
            Self::Q5Offset => "q5_1",
            Self::Q5 => "q5_0",
            Self::Q4Offset => "q4_1",
            Self::Q4 => "q4_0",
            Self::Q4Uneven => "iq4_nl",
        }
    }

    /// Whether numbers are stored in blocks with a common scale.
    #[must_use]
    pub const fn is_quantised(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// The bytes that 32 numbers take.
    pub(crate) const fn bytes_of_32(self) -> u64 {
        match self {
            Self::F32 => 128,
            Self::F16 | Self::Bf16 => 64,
            Self::Q8 => 34,
            Self::Q5Offset => 24,
            Self::Q5 => 22,
            Self::Q4Offset => 20,
            Self::Q4 | Self::Q4Uneven => 18,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        use CacheType::{Bf16, F16, F32, Q4, Q4Offset, Q4Uneven, Q5, Q5Offset, Q8};
        for kind in [F32, F16, Bf16, Q8, Q5Offset, Q5, Q4Offset, Q4, Q4Uneven] {
            let json = format!("\"{}\"", kind.as_str());
            assert_eq!(serde_json::from_str::<CacheType>(&json).unwrap(), kind);
            assert_eq!(kind.is_quantised(), kind.bytes_of_32() < 64, "{kind:?}");
        }
        assert!(serde_json::from_str::<CacheType>("\"q6_k\"").is_err());
    }
}
