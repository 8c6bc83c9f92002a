//! One event of a streamed reply, read for what a measurement needs and no more: is there new text, what does the
//! server count, did it fail. Builds no tree; what it does not know it skips.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// What one event says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk<'e> {
    /// The new text of the reply itself.
    pub(super) text: Option<Cow<'e, str>>,
    /// Whether anything was generated: text, reasoning, or a piece of a tool call.
    pub(super) is_token: bool,
    pub(super) usage: Option<Usage>,
    /// The server's error, as it sent it.
    pub(super) error: Option<&'e str>,
}

/// What the server counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: u64,
    #[serde(default)]
    pub(super) completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptTokens>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct PromptTokens {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Returns how many of the prompt's tokens came from a cache; `None` where the server does not say.
    pub(super) fn cached_tokens(&self) -> Option<u64> {
        self.prompt_tokens_details?.cached_tokens
    }
}

#[derive(Deserialize)]
struct Wire<'e> {
    #[serde(default, borrow)]
    choices: Option<Vec<Choice<'e>>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default, borrow)]
    error: Option<&'e RawValue>,
}

#[derive(Deserialize)]
struct Choice<'e> {
    #[serde(default, borrow)]
    delta: Option<Delta<'e>>,
    #[serde(default, borrow)]
    text: Option<Text<'e>>,
}

#[derive(Deserialize)]
struct Delta<'e> {
    #[serde(default, borrow)]
    content: Option<Text<'e>>,
    #[serde(default, borrow)]
    reasoning_content: Option<Text<'e>>,
    #[serde(default, borrow)]
    reasoning: Option<Text<'e>>,
    #[serde(default)]
    tool_calls: Option<Vec<IgnoredAny>>,
}

/// Text that is borrowed from the event unless it has escapes.
struct Text<'e>(Cow<'e, str>);

impl<'de: 'e, 'e> Deserialize<'de> for Text<'e> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Reads one event's data.
///
/// # Errors
/// Fails if it is not a completion's chunk.
pub(super) fn read(data: &str) -> Result<Chunk<'_>, serde_json::Error> {
    let wire: Wire<'_> = serde_json::from_str(data)?;
    let mut chunk =
        Chunk { usage: wire.usage, error: wire.error.map(RawValue::get), ..Chunk::default() };
    let holds = |text: &Option<Text<'_>>| text.as_ref().is_some_and(|text| !text.0.is_empty());
    for choice in wire.choices.into_iter().flatten() {
        let mut text = choice.text;
        if let Some(delta) = choice.delta {
            chunk.is_token |= holds(&delta.reasoning_content)
                || holds(&delta.reasoning)
                || delta.tool_calls.is_some_and(|calls| !calls.is_empty());
            text = delta.content.or(text);
        }
        chunk.is_token |= holds(&text);
        chunk.text = chunk.text.or(text.map(|text| text.0));
    }
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_generated_is_a_token_and_what_was_not_is_none() {
        for (data, is_token, text) in [
            (r#"{"choices":[{"delta":{"content":"a"}}]}"#, true, Some("a")),
            (r#"{"choices":[{"delta":{"content":"\n\""},"x":{"y":[1]}}]}"#, true, Some("\n\"")),
            (r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#, false, Some("")),
            (r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#, false, None),
            (r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, true, None),
            (r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, true, None),
            (r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#, false, None),
            (r#"{"choices":[{"index":0,"text":"b"}]}"#, true, Some("b")),
            (r#"{"choices":[],"usage":null}"#, false, None),
        ] {
            let chunk = read(data).unwrap();
            assert_eq!((chunk.is_token, chunk.text.as_deref()), (is_token, text), "{data}");
        }
    }

    #[test]
    fn usage_and_errors_are_found() {
        let data = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,
            "total_tokens":13,"prompt_tokens_details":{"cached_tokens":5}},"timings":{"a":1.5}}"#;
        let usage = read(data).unwrap().usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (9, 4));
        assert_eq!(usage.cached_tokens(), Some(5));
        let silent = read(r#"{"usage":{"prompt_tokens":9,"completion_tokens":4}}"#).unwrap();
        assert_eq!(silent.usage.unwrap().cached_tokens(), None);
        let failed = read(r#"{"error":{"message":"no"}}"#).unwrap();
        assert_eq!(failed.error, Some(r#"{"message":"no"}"#));
        assert!(read("nonsense").is_err());
    }
}
