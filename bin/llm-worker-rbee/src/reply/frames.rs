//! The frames of a streamed reply. All of a frame but its text is the same
//! throughout a choice, so it is serialised once, from the types of the wire
//! contract; after that a frame costs one copy and one escaping. Frames that
//! tell log probabilities are serialised whole.

use bytes::{BufMut, BytesMut};
use rbee_api::openai::{
    ChatChunk, ChatChunkChoice, ChatDelta, CompletionChoice, CompletionReply, FinishReason, Usage,
};
use serde::Serialize;

use super::{Dialect, Heading, LogprobShape, reply_delta};
use crate::reading::Delta;
use crate::text::PlacedLogprobs;

/// Stands where the text of a frame goes. No id or model name can hold it.
const PLACEHOLDER: &str = "\0";

/// Whether a stream tells the token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UsageFrame {
    Wanted,
    Omitted,
}

/// Writes the frames of one stream.
#[derive(Debug)]
pub(crate) struct Frames {
    heading: Heading,
    usage: UsageFrame,
    /// What stands around the texts of each choice.
    around: Vec<Around>,
}

/// A text frame up to its text, and after it.
#[derive(Debug)]
struct Around {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Frames {
    /// Prepares the frames of a reply with so many choices.
    ///
    /// # Errors
    /// Fails only if a heading cannot be JSON.
    pub(crate) fn new(
        heading: Heading,
        usage: UsageFrame,
        choices: u32,
    ) -> Result<Self, serde_json::Error> {
        let mut frames = Self { heading, usage, around: Vec::new() };
        frames.around =
            (0..choices).map(|choice| frames.around(choice)).collect::<Result<_, _>>()?;
        Ok(frames)
    }

    fn around(&self, choice: u32) -> Result<Around, serde_json::Error> {
        let mut sample = BytesMut::new();
        let text = PLACEHOLDER.to_owned();
        match self.heading.dialect {
            Dialect::Chat => {
                let delta = ChatDelta { content: Some(text), ..ChatDelta::default() };
                write_event(&mut sample, &self.chunk(choice, delta, None))?;
            }
            Dialect::Completion => write_event(&mut sample, &self.completion(choice, text, None))?,
        }
        let mark = serde_json::to_vec(PLACEHOLDER)?;
        let at = sample.windows(mark.len()).position(|window| window == mark);
        let after = sample.split_off(at.map_or(sample.len(), |at| at + mark.len()));
        sample.truncate(at.unwrap_or(sample.len()));
        Ok(Around { before: sample.to_vec(), after: after.to_vec() })
    }

    fn chunk(&self, index: u32, delta: ChatDelta, reason: Option<FinishReason>) -> ChatChunk {
        let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason: reason };
        self.heading.chunk(vec![choice], self.usage_so_far())
    }

    fn completion(
        &self,
        index: u32,
        text: String,
        reason: Option<FinishReason>,
    ) -> CompletionReply {
        let choice = CompletionChoice { index, text, logprobs: None, finish_reason: reason };
        self.heading.completion(vec![choice], self.usage_so_far())
    }

    /// What stands as usage in every frame but the last: null where the counts
    /// are asked for, else nothing.
    fn usage_so_far(&self) -> Option<Option<Usage>> {
        match self.usage {
            UsageFrame::Wanted => Some(None),
            UsageFrame::Omitted => None,
        }
    }

    /// Appends the frames that begin a stream: in a chat, who speaks in each choice.
    ///
    /// # Errors
    /// Fails only if a frame cannot be JSON, as do all of these.
    pub(crate) fn begin(&self, out: &mut BytesMut) -> Result<(), serde_json::Error> {
        if self.heading.dialect == Dialect::Completion {
            return Ok(());
        }
        for (choice, _) in (0..).zip(&self.around) {
            let delta = ChatDelta {
                role: Some("assistant".to_owned()),
                content: Some(String::new()),
                ..ChatDelta::default()
            };
            write_event(out, &self.chunk(choice, delta, None))?;
        }
        Ok(())
    }

    /// Appends a frame with text of a choice and its tokens.
    pub(crate) fn text(
        &self,
        choice: u32,
        text: &str,
        tokens: &[PlacedLogprobs],
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        if let Some(shape) = &self.heading.shape {
            return self.text_with_tokens(choice, text, shape, tokens, out);
        }
        let Some(around) = self.around.get(choice as usize) else { return Ok(()) };
        out.reserve(around.before.len() + around.after.len() + text.len() + 16);
        out.put_slice(&around.before);
        serde_json::to_writer(out.writer(), text)?;
        out.put_slice(&around.after);
        Ok(())
    }

    fn text_with_tokens(
        &self,
        choice: u32,
        text: &str,
        shape: &LogprobShape,
        tokens: &[PlacedLogprobs],
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        let text = text.to_owned();
        match self.heading.dialect {
            Dialect::Chat => self.delta(choice, Delta::Content(text), tokens, out),
            Dialect::Completion => {
                let mut chunk = self.completion(choice, text, None);
                if let Some(choice) = chunk.choices.first_mut() {
                    choice.logprobs = Some(shape.completion(tokens));
                }
                write_event(out, &chunk)
            }
        }
    }

    /// Appends a frame of a chat with anything that is new in a choice and the
    /// tokens told with it.
    pub(crate) fn delta(
        &self,
        choice: u32,
        delta: Delta,
        tokens: &[PlacedLogprobs],
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        let shape = &self.heading.shape;
        if let (None, Delta::Content(text)) = (shape, &delta) {
            return self.text(choice, text, tokens, out);
        }
        let mut chunk = self.chunk(choice, reply_delta(delta), None);
        if let (Some(shape), Some(choice)) = (shape, chunk.choices.first_mut()) {
            choice.logprobs = Some(shape.chat(tokens));
        }
        write_event(out, &chunk)
    }

    /// Appends the frame that ends a choice.
    pub(crate) fn end(
        &self,
        choice: u32,
        reason: FinishReason,
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        let reason = Some(reason);
        match self.heading.dialect {
            Dialect::Chat => write_event(out, &self.chunk(choice, ChatDelta::default(), reason)),
            Dialect::Completion => {
                write_event(out, &self.completion(choice, String::new(), reason))
            }
        }
    }

    /// Appends what ends a stream all of whose choices have ended.
    pub(crate) fn close(&self, usage: Usage, out: &mut BytesMut) -> Result<(), serde_json::Error> {
        if self.usage == UsageFrame::Wanted {
            let usage = Some(Some(usage));
            match self.heading.dialect {
                Dialect::Chat => write_event(out, &self.heading.chunk(Vec::new(), usage))?,
                Dialect::Completion => {
                    write_event(out, &self.heading.completion(Vec::new(), usage))?;
                }
            }
        }
        out.put_slice(rbee_http::DONE_EVENT);
        Ok(())
    }
}

/// Appends one event.
pub(crate) fn write_event<T: Serialize>(
    out: &mut BytesMut,
    value: &T,
) -> Result<(), serde_json::Error> {
    out.put_slice(b"data: ");
    serde_json::to_writer(out.writer(), value)?;
    out.put_slice(b"\n\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage {
        prompt_tokens: 1,
        completion_tokens: 2,
        total_tokens: 3,
        prompt_tokens_details: rbee_api::openai::PromptTokensDetails { cached_tokens: 0 },
    };

    fn stream(dialect: Dialect, usage: UsageFrame, texts: &[&str]) -> Vec<String> {
        let heading = Heading::new(dialect, "smollm2:135m".to_owned(), None);
        let frames = Frames::new(heading, usage, 1).unwrap();
        let mut out = BytesMut::new();
        frames.begin(&mut out).unwrap();
        texts.iter().for_each(|text| frames.text(0, text, &[], &mut out).unwrap());
        frames.end(0, FinishReason::Stop, &mut out).unwrap();
        frames.close(USAGE, &mut out).unwrap();
        events(&out)
    }

    fn events(out: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(out).unwrap();
        let events = text.strip_suffix("\n\n").unwrap().split("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }

    #[test]
    fn chat_frames_are_the_contracts_chunks() {
        let texts = ["plain", "quote \" and \\ and \n and \u{1f600} and \u{1}"];
        let events = stream(Dialect::Chat, UsageFrame::Omitted, &texts);
        let (done, chunks) = events.split_last().unwrap();
        assert_eq!(done, "[DONE]");
        let parsed: Vec<ChatChunk> =
            chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
        let contents: Vec<_> =
            parsed.iter().map(|chunk| chunk.choices[0].delta.content.as_deref()).collect();
        assert_eq!(contents, [Some(""), Some(texts[0]), Some(texts[1]), None]);
        assert_eq!(parsed[0].choices[0].delta.role.as_deref(), Some("assistant"));
        assert!(parsed.iter().all(|chunk| chunk.id == parsed[0].id && chunk.usage.is_none()));
        assert!(chunks[1].contains(r#""finish_reason":null"#), "{}", chunks[1]);
        assert_eq!(parsed[3].choices[0].finish_reason, Some(FinishReason::Stop));
    }

    #[test]
    fn usage_comes_last_and_is_null_before() {
        for dialect in [Dialect::Chat, Dialect::Completion] {
            let events = stream(dialect, UsageFrame::Wanted, &["x"]);
            let chunks = &events[..events.len() - 1];
            let (last, before) = chunks.split_last().unwrap();
            assert!(before.iter().all(|chunk| chunk.contains(r#""usage":null"#)), "{before:?}");
            let last: serde_json::Value = serde_json::from_str(last).unwrap();
            assert_eq!(last["choices"], serde_json::json!([]));
            assert_eq!(last["usage"]["total_tokens"], 3);
        }
    }

    #[test]
    fn completion_frames_are_the_contracts_chunks() {
        let events = stream(Dialect::Completion, UsageFrame::Omitted, &["a", "b"]);
        let chunks = &events[..events.len() - 1];
        let parsed: Vec<CompletionReply> =
            chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
        let texts: Vec<_> = parsed.iter().map(|chunk| chunk.choices[0].text.as_str()).collect();
        assert_eq!(texts, ["a", "b", ""]);
        assert_eq!(parsed[2].choices[0].finish_reason, Some(FinishReason::Stop));
    }

    #[test]
    fn every_frame_names_its_choice() {
        for dialect in [Dialect::Chat, Dialect::Completion] {
            let heading = Heading::new(dialect, "smollm2:135m".to_owned(), None);
            let frames = Frames::new(heading, UsageFrame::Omitted, 3).unwrap();
            let mut out = BytesMut::new();
            frames.begin(&mut out).unwrap();
            frames.text(2, "c", &[], &mut out).unwrap();
            frames.text(0, "a", &[], &mut out).unwrap();
            frames.end(2, FinishReason::Length, &mut out).unwrap();
            let indices = events(&out).into_iter().map(|event| {
                let event: serde_json::Value = serde_json::from_str(&event).unwrap();
                event["choices"][0]["index"].as_u64().unwrap()
            });
            let begun: &[u64] = if dialect == Dialect::Chat { &[0, 1, 2] } else { &[] };
            assert_eq!(indices.collect::<Vec<_>>(), [begun, &[2, 0, 2]].concat());
        }
    }
}
