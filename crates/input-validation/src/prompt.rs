//! Prompt text. Owns the two things a prompt may not be; never alters a prompt, and never counts tokens.

use crate::ValidationError;

/// Refuses a prompt that is longer than `bytes_max` bytes of UTF-8 or holds a NUL.
///
/// Everything else is legitimate data for a model, terminal escapes included: a person may ask about a log file that
/// is full of them. What a terminal or a log must not see is escaped where it is written, by
/// [`sanitize_for_terminal`](crate::sanitize_for_terminal) and [`sanitize_for_log`](crate::sanitize_for_log).
///
/// # Errors
/// [`ValidationError::TooLong`] or [`ValidationError::ForbiddenCharacter`].
pub fn validate_prompt(prompt: &str, bytes_max: usize) -> Result<(), ValidationError> {
    let field = "prompt";
    if prompt.len() > bytes_max {
        return Err(ValidationError::TooLong { field, max: bytes_max, unit: "bytes" });
    }
    match prompt.chars().position(|c| c == '\0') {
        None => Ok(()),
        Some(position) => Err(ValidationError::ForbiddenCharacter {
            field,
            character: '\0',
            position,
            allowed: "any text without NUL",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_counts_bytes_and_is_itself_accepted() {
        let prompt = "é".repeat(50);
        assert!(validate_prompt(&prompt, 100).is_ok());
        let error = validate_prompt(&prompt, 99).unwrap_err();
        assert_eq!(error.to_string(), "prompt is longer than 99 bytes");
    }

    #[test]
    fn only_nul_is_refused() {
        for good in ["", "tab\there", "line\r\nline", "\u{1b}[31mred", "汉字 😀", "\u{202e}"] {
            assert!(validate_prompt(good, 1024).is_ok(), "{good:?}");
        }
        assert!(validate_prompt("a\0b", 1024).is_err());
    }
}
