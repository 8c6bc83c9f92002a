//! Why a file is not a usable model. Owns the words; shows keys of the file only when they are rbee's own constants.

use std::io;

/// Says what is wrong with a model file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file does not begin as a GGUF file does.
    #[error("not a GGUF model file")]
    NotGguf,
    /// The format's version is not 2 or 3.
    #[error("GGUF version {version} is not supported, only 2 and 3 are")]
    UnsupportedVersion {
        /// What the file says.
        version: u32,
    },
    /// The file ends before what its header promises.
    #[error(
        "the model file is truncated: {what} needs {needed} bytes at offset {offset} of {file_bytes}"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts, in bytes from the start of the file.
        offset: u64,
        /// Bytes it has.
        needed: u64,
        /// Bytes in the file.
        file_bytes: u64,
    },
    /// The header goes on beyond any real one.
    #[error("the header of the model file is larger than {max} bytes")]
    HeaderTooLarge {
        /// The most accepted.
        max: u64,
    },
    /// A number breaks its limit.
    #[error("{what} is {value} in the model file, accepted is {min} to {max}")]
    OutOfRange {
        /// What the number is.
        what: &'static str,
        /// What the file says.
        value: u64,
        /// The smallest accepted.
        min: u64,
        /// The largest accepted.
        max: u64,
    },
    /// A product or sum of the file's numbers has no 64-bit value.
    #[error("{what} of the model file is too large to be true")]
    Overflow {
        /// What was being computed.
        what: &'static str,
    },
    /// A code of the format has no known meaning.
    #[error("{what} {value} of the model file is unknown")]
    UnknownCode {
        /// Which code.
        what: &'static str,
        /// What the file says.
        value: u32,
    },
    /// A metadata key holds another type than it must.
    #[error("{key} must be {expected} in the model file and is {found}")]
    WrongType {
        /// The key, without the architecture's name.
        key: &'static str,
        /// The type it must have.
        expected: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// A metadata key stands there twice.
    #[error("{key} stands twice in the model file")]
    DuplicateKey {
        /// The key, without the architecture's name.
        key: &'static str,
    },
    /// A metadata key that every model needs is absent.
    #[error("{key} is missing in the model file")]
    MissingKey {
        /// The key, without the architecture's name.
        key: &'static str,
    },
    /// The parts of the header do not fit together.
    #[error("the model file is inconsistent: {what}")]
    Inconsistent {
        /// What does not fit.
        what: &'static str,
    },
    /// The operating system could not read the file.
    #[error("cannot read the model file")]
    Io(#[from] io::Error),
}

impl GgufError {
    /// Names the error for clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "file_not_found",
            Self::NotGguf
            | Self::UnsupportedVersion { .. }
            | Self::Truncated { .. }
            | Self::HeaderTooLarge { .. }
            | Self::OutOfRange { .. }
            | Self::Overflow { .. }
            | Self::UnknownCode { .. }
            | Self::WrongType { .. }
            | Self::DuplicateKey { .. }
            | Self::MissingKey { .. }
            | Self::Inconsistent { .. } => "invalid_model_file",
        }
    }

    /// Answers whether reading the same file may succeed later: never, without someone's changing it.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}
