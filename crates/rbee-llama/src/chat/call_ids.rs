//! Ids of calls for templates that refuse any but nine letters and digits,
//! which the models of those templates were trained with.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::ChatMessage;

/// An id as most programs make them.
pub(super) const USUAL: &str = "call_0123456789abcdef";
const LENGTH: usize = 9;
const SIGNS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The messages with ids of the accepted length. The same id becomes the same.
pub(super) fn shortened(messages: &[ChatMessage]) -> Vec<ChatMessage> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
        for call in &mut message.tool_calls {
            call.id = short(&call.id);
        }
        if let Some(answered) = &mut message.answers {
            answered.call_id = short(&answered.call_id);
        }
    }
    messages
}

/// The id itself where it is one of the accepted.
pub(super) fn short(id: &str) -> String {
    if id.len() == LENGTH && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let mut rest = hasher.finish();
    let signs = std::iter::repeat_with(|| {
        let sign = usize::try_from(rest % 36).unwrap_or_default();
        rest /= 36;
        char::from(SIGNS.get(sign).copied().unwrap_or(b'0'))
    });
    signs.take(LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_nine_letters_and_digits_each_its_own() {
        assert_eq!(short("abcDEF123"), "abcDEF123");
        let ids = ["", "call_1", "call_2", USUAL, "abc-EF123"];
        let mut shortened: Vec<String> = ids.iter().map(|id| short(id)).collect();
        for id in &shortened {
            assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
        }
        assert_eq!(short("call_1"), shortened[1]);
        shortened.sort();
        shortened.dedup();
        assert_eq!(shortened.len(), ids.len());
    }
}
