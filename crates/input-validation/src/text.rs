//! What all text types share: length and alphabet checks, and the conversions to and from text. Owns no syntax.

use crate::ValidationError;

/// Refuses empty text, text over `max` characters, and the first character that `is_allowed` refuses.
pub(crate) fn check(
    field: &'static str,
    text: &str,
    max: usize,
    allowed: &'static str,
    is_allowed: fn(char) -> bool,
) -> Result<(), ValidationError> {
    if text.is_empty() {
        return Err(ValidationError::Empty { field });
    }
    for (position, character) in text.chars().enumerate() {
        if position >= max {
            return Err(ValidationError::TooLong { field, max, unit: "characters" });
        }
        if !is_allowed(character) {
            return Err(ValidationError::ForbiddenCharacter {
                field,
                character,
                position,
                allowed,
            });
        }
    }
    Ok(())
}

/// Gives a type with a `text: String` field and a `parse(&str)` function its conversions: FromStr, TryFrom<String>,
/// Display, AsRef<str>, Serialize as a string, Deserialize through the parser.
macro_rules! text_conversions {
    ($name:ident) => {
        impl $name {
            /// Returns the canonical text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.text
            }
        }

        impl std::str::FromStr for $name {
            type Err = crate::ValidationError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = crate::ValidationError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::parse(&text)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(&self.text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.text
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.text)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use text_conversions;
