//! What is refused: a field of a request, a value of a configuration. Owns the words in which a refusal is told; never repeats raw input, so that a
//! message is safe in a log, a terminal and an HTTP body.

use std::io;

/// A value of a configuration that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the setting {key} {reason}")]
pub struct SettingError {
    /// The key, with its section.
    pub key: &'static str,
    /// What is wrong with its value.
    pub reason: String,
}

/// Says which field was refused, and which limit or form it broke.
#[derive(Debug, thiserror::Error)]
pub enum ValidationError {
    /// The field has no text.
    #[error("{field} is empty")]
    Empty {
        /// What was being parsed.
        field: &'static str,
    },
    /// The field is longer than its limit, counted in `unit`.
    #[error("{field} is longer than {max} {unit}")]
    TooLong {
        /// What was being parsed.
        field: &'static str,
        /// The longest that is accepted.
        max: usize,
        /// What the limit counts: `characters` or `bytes`.
        unit: &'static str,
    },
    /// The field holds a character outside its alphabet. The character is shown escaped.
    #[error("{field} contains {character:?} at position {position}; allowed: {allowed}")]
    ForbiddenCharacter {
        /// What was being parsed.
        field: &'static str,
        /// The first character refused.
        character: char,
        /// Its place, counted in characters from 0.
        position: usize,
        /// The alphabet of the field, in words.
        allowed: &'static str,
    },
    /// The field has only allowed characters and still not the right form.
    #[error("{field} is not of the form {expected}")]
    Malformed {
        /// What was being parsed.
        field: &'static str,
        /// The form expected.
        expected: &'static str,
    },
    /// The number lies outside its bounds, or is not a number at all.
    #[error("{field} must be from {min} to {max}")]
    OutOfRange {
        /// What was being checked.
        field: &'static str,
        /// The smallest value accepted.
        min: String,
        /// The largest value accepted.
        max: String,
    },
    /// The path, once every link is followed, leads out of the directory it must stay in.
    #[error("{field} leads outside its allowed directory")]
    OutsideRoot {
        /// What was being resolved.
        field: &'static str,
    },
    /// The path cannot be followed to an existing file.
    #[error("{field} cannot be resolved")]
    Unresolvable {
        /// What was being resolved.
        field: &'static str,
        /// Why the operating system refused.
        #[source]
        source: io::Error,
    },
}

impl ValidationError {
    /// Names the error for clients; the same for every refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "validation_failed"
    }

    /// Answers whether the same input may pass later: never.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }

    /// Names the field that was refused.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::Empty { field }
            | Self::TooLong { field, .. }
            | Self::ForbiddenCharacter { field, .. }
            | Self::Malformed { field, .. }
            | Self::OutOfRange { field, .. }
            | Self::OutsideRoot { field }
            | Self::Unresolvable { field, .. } => field,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_character_is_shown_escaped() {
        for hostile in ['\u{1b}', '\n', '\u{202e}', '\0', '\u{9b}'] {
            let error = ValidationError::ForbiddenCharacter {
                field: "model reference",
                character: hostile,
                position: 0,
                allowed: "letters",
            };
            assert!(!error.to_string().contains(hostile), "{error:?}");
            assert_eq!(error.code(), "validation_failed");
            assert_eq!(error.field(), "model reference");
            assert!(!error.retryable());
        }
    }
}
