//! Short model names such as `smollm2:135m`. Owns their syntax; never knows which model one stands for.

use crate::ValidationError;
use crate::text::{check, text_conversions};

/// Longest name, and longest tag, of an alias: fits a table column beside the rest.
pub const MODEL_ALIAS_PART_MAX: usize = 64;

/// Schemes of full references; as an alias name they would be ambiguous.
const RESERVED: [&str; 4] = ["hf", "file", "http", "https"];

const FORM: &str = "name or name:tag, each starting with a letter or digit";

/// Names a model for people: `name` or `name:tag`, each 1 to 64 of `a-z 0-9 . _ -`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelAlias {
    text: String,
}

impl ModelAlias {
    pub(crate) fn parse(text: &str) -> Result<Self, ValidationError> {
        let field = "model alias";
        let (name, tag) = match text.split_once(':') {
            Some((name, tag)) => (name, Some(tag)),
            None => (text, None),
        };
        for part in [Some(name), tag].into_iter().flatten() {
            check(
                field,
                part,
                MODEL_ALIAS_PART_MAX,
                "a-z, 0-9, ., _, -, one :",
                is_alias_character,
            )?;
            if part.contains("..") || !part.starts_with(|c: char| c.is_ascii_alphanumeric()) {
                return Err(ValidationError::Malformed { field, expected: FORM });
            }
        }
        if RESERVED.contains(&name) {
            return Err(ValidationError::Malformed {
                field,
                expected: "a name other than hf, file, http and https",
            });
        }
        Ok(Self { text: text.to_owned() })
    }
}

text_conversions!(ModelAlias);

const fn is_alias_character(c: char) -> bool {
    matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_have_a_name_and_perhaps_a_tag() {
        let longest = format!("{0}:{0}", "a".repeat(MODEL_ALIAS_PART_MAX));
        for good in ["smollm2:135m", "llama-3.2", "a", "0:0", &longest] {
            assert_eq!(good.parse::<ModelAlias>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(MODEL_ALIAS_PART_MAX + 1);
        for bad in [
            "", ":", "a:", ":a", "a:b:c", "A", "-a", ".a", "a..b", "a/b", "a b", "hf", "file:x",
            "a:-x", &too_long,
        ] {
            assert!(bad.parse::<ModelAlias>().is_err(), "{bad:?}");
        }
    }
}
