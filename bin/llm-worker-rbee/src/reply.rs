//! The frames of a streamed reply. All of a frame but its text is the same
//! throughout a stream, so it is serialised once, from the types of the wire
//! contract; after that a frame costs one copy and one escaping. Frames that
//! tell log probabilities are serialised whole.

mod logprobs;

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use rbee_api::openai::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatReplyMessage,
    CompletionChoice, CompletionReply, FinishReason, FunctionDelta, ReplyFunction, ReplyToolCall,
    ToolCallDelta, Usage,
};
use rbee_http::new_request_id;
use serde::Serialize;

use crate::reading::{Delta, Message};
use crate::text::PlacedLogprobs;
pub(crate) use logprobs::LogprobShape;

/// Which of OpenAI's two dialects a reply speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Chat,
    Completion,
}

/// What is the same in all parts of a reply.
#[derive(Debug, Clone)]
pub(crate) struct Heading {
    dialect: Dialect,
    id: String,
    /// Seconds since the epoch.
    created: u64,
    model: String,
    /// How tokens are told, where they are asked for.
    shape: Option<LogprobShape>,
}

/// Stands where the text of a frame goes. No id or model name can hold it.
const PLACEHOLDER: &str = "\0";

impl Heading {
    /// Makes the heading of a new reply; `model` as the client named it.
    pub(crate) fn new(dialect: Dialect, model: String) -> Self {
        let kind = match dialect {
            Dialect::Chat => "chatcmpl",
            Dialect::Completion => "cmpl",
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let created = now.map_or(0, |since| since.as_secs());
        let id = format!("{kind}-{}", new_request_id());
        Self { dialect, id, created, model, shape: None }
    }

    /// Has the tokens told beside the text.
    pub(crate) fn with_logprobs(self, shape: Option<LogprobShape>) -> Self {
        Self { shape, ..self }
    }

    /// The whole reply, for a request that does not stream.
    pub(crate) fn whole(
        self,
        message: Message,
        tokens: &[PlacedLogprobs],
        reason: FinishReason,
        usage: Usage,
    ) -> WholeReply {
        match self.dialect {
            Dialect::Chat => WholeReply::Chat(ChatCompletion {
                id: self.id,
                object: "chat.completion".to_owned(),
                created: self.created,
                model: self.model,
                choices: vec![ChatChoice {
                    index: 0,
                    message: reply_message(message),
                    logprobs: self.shape.map(|shape| shape.chat(tokens)),
                    finish_reason: reason,
                }],
                usage,
            }),
            Dialect::Completion => {
                let choice = Some((message.content, Some(reason)));
                let mut reply = self.completion(choice, Some(Some(usage)));
                if let (Some(shape), Some(choice)) = (&self.shape, reply.choices.first_mut()) {
                    choice.logprobs = Some(shape.completion(tokens));
                }
                WholeReply::Completion(reply)
            }
        }
    }

    fn completion(
        &self,
        choice: Option<(String, Option<FinishReason>)>,
        usage: Option<Option<Usage>>,
    ) -> CompletionReply {
        let choices = choice.map(|(text, finish_reason)| CompletionChoice {
            index: 0,
            text,
            logprobs: None,
            finish_reason,
        });
        CompletionReply {
            id: self.id.clone(),
            object: "text_completion".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices: choices.into_iter().collect(),
            usage,
        }
    }

    fn chunk(
        &self,
        choice: Option<(ChatDelta, Option<FinishReason>)>,
        usage: Option<Option<Usage>>,
    ) -> ChatChunk {
        let choices = choice.map(|(delta, finish_reason)| ChatChunkChoice {
            index: 0,
            delta,
            logprobs: None,
            finish_reason,
        });
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices: choices.into_iter().collect(),
            usage,
        }
    }
}

/// A message as a client sees it: no content beside calls is null, and what the
/// model did not do is left away.
fn reply_message(message: Message) -> ChatReplyMessage {
    let Message { content, reasoning, calls } = message;
    let is_null = content.is_empty() && !calls.is_empty();
    let calls = calls.into_iter().map(|call| ReplyToolCall {
        id: call.id,
        kind: "function".to_owned(),
        function: ReplyFunction { name: call.name, arguments: call.arguments },
    });
    ChatReplyMessage {
        role: "assistant".to_owned(),
        content: (!is_null).then_some(content),
        refusal: None,
        reasoning_content: (!reasoning.is_empty()).then_some(reasoning),
        tool_calls: calls.collect(),
    }
}

/// What is new in a reply as a client sees it.
fn reply_delta(delta: Delta) -> ChatDelta {
    let mut wire = ChatDelta::default();
    let call = match delta {
        Delta::Content(text) => {
            wire.content = Some(text);
            return wire;
        }
        Delta::Reasoning(text) => {
            wire.reasoning_content = Some(text);
            return wire;
        }
        Delta::Call { index, id, name } => ToolCallDelta {
            index,
            id: Some(id),
            kind: Some("function".to_owned()),
            function: FunctionDelta { name: Some(name), arguments: String::new() },
        },
        Delta::Arguments { index, text } => ToolCallDelta {
            index,
            id: None,
            kind: None,
            function: FunctionDelta { name: None, arguments: text },
        },
    };
    wire.tool_calls.push(call);
    wire
}

/// A reply that does not stream.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum WholeReply {
    Chat(ChatCompletion),
    Completion(CompletionReply),
}

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
    /// A text frame up to its text, and after it.
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Frames {
    /// Prepares the frames.
    ///
    /// # Errors
    /// Fails only if a heading cannot be JSON.
    pub(crate) fn new(heading: Heading, usage: UsageFrame) -> Result<Self, serde_json::Error> {
        let mut frames = Self { heading, usage, before: Vec::new(), after: Vec::new() };
        let mut sample = BytesMut::new();
        match frames.heading.dialect {
            Dialect::Chat => {
                let delta =
                    ChatDelta { content: Some(PLACEHOLDER.to_owned()), ..ChatDelta::default() };
                let chunk = frames.heading.chunk(Some((delta, None)), frames.usage_so_far());
                write_event(&mut sample, &chunk)?;
            }
            Dialect::Completion => {
                let choice = Some((PLACEHOLDER.to_owned(), None));
                let chunk = frames.heading.completion(choice, frames.usage_so_far());
                write_event(&mut sample, &chunk)?;
            }
        }
        let mark = serde_json::to_vec(PLACEHOLDER)?;
        if let Some(at) = sample.windows(mark.len()).position(|window| window == mark) {
            frames.after = sample.split_off(at + mark.len()).to_vec();
            sample.truncate(at);
            frames.before = sample.to_vec();
        }
        Ok(frames)
    }

    /// What stands as usage in every frame but the last: null where the counts
    /// are asked for, else nothing.
    fn usage_so_far(&self) -> Option<Option<Usage>> {
        match self.usage {
            UsageFrame::Wanted => Some(None),
            UsageFrame::Omitted => None,
        }
    }

    /// Appends the frame that begins a stream: in a chat, who speaks.
    ///
    /// # Errors
    /// Fails only if a frame cannot be JSON, as do all of these.
    pub(crate) fn begin(&self, out: &mut BytesMut) -> Result<(), serde_json::Error> {
        if self.heading.dialect == Dialect::Completion {
            return Ok(());
        }
        let delta = ChatDelta {
            role: Some("assistant".to_owned()),
            content: Some(String::new()),
            ..ChatDelta::default()
        };
        write_event(out, &self.heading.chunk(Some((delta, None)), self.usage_so_far()))
    }

    /// Appends a frame with text and its tokens.
    pub(crate) fn text(
        &self,
        text: &str,
        tokens: &[PlacedLogprobs],
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        if let Some(shape) = &self.heading.shape {
            return self.text_with_tokens(text, shape, tokens, out);
        }
        out.reserve(self.before.len() + self.after.len() + text.len() + 16);
        out.put_slice(&self.before);
        serde_json::to_writer(out.writer(), text)?;
        out.put_slice(&self.after);
        Ok(())
    }

    fn text_with_tokens(
        &self,
        text: &str,
        shape: &LogprobShape,
        tokens: &[PlacedLogprobs],
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        let text = text.to_owned();
        match self.heading.dialect {
            Dialect::Chat => self.delta(Delta::Content(text), tokens, out),
            Dialect::Completion => {
                let mut chunk = self.heading.completion(Some((text, None)), self.usage_so_far());
                if let Some(choice) = chunk.choices.first_mut() {
                    choice.logprobs = Some(shape.completion(tokens));
                }
                write_event(out, &chunk)
            }
        }
    }

    /// Appends a frame of a chat with anything that is new and the tokens told with it.
    pub(crate) fn delta(
        &self,
        delta: Delta,
        tokens: &[PlacedLogprobs],
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        let shape = &self.heading.shape;
        if let (None, Delta::Content(text)) = (shape, &delta) {
            return self.text(text, tokens, out);
        }
        let mut chunk = self.heading.chunk(Some((reply_delta(delta), None)), self.usage_so_far());
        if let (Some(shape), Some(choice)) = (shape, chunk.choices.first_mut()) {
            choice.logprobs = Some(shape.chat(tokens));
        }
        write_event(out, &chunk)
    }

    /// Appends the frames that end a whole stream.
    pub(crate) fn end(
        &self,
        reason: FinishReason,
        usage: Usage,
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        let so_far = self.usage_so_far();
        match self.heading.dialect {
            Dialect::Chat => {
                let choice = Some((ChatDelta::default(), Some(reason)));
                write_event(out, &self.heading.chunk(choice, so_far))?;
                if self.usage == UsageFrame::Wanted {
                    write_event(out, &self.heading.chunk(None, Some(Some(usage))))?;
                }
            }
            Dialect::Completion => {
                let choice = Some((String::new(), Some(reason)));
                write_event(out, &self.heading.completion(choice, so_far))?;
                if self.usage == UsageFrame::Wanted {
                    write_event(out, &self.heading.completion(None, Some(Some(usage))))?;
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
        let heading = Heading::new(dialect, "smollm2:135m".to_owned());
        let frames = Frames::new(heading, usage).unwrap();
        let mut out = BytesMut::new();
        frames.begin(&mut out).unwrap();
        texts.iter().for_each(|text| frames.text(text, &[], &mut out).unwrap());
        frames.end(FinishReason::Stop, USAGE, &mut out).unwrap();
        let text = String::from_utf8(out.to_vec()).unwrap();
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
}
