//! From the events of a job to the reply: as server-sent events with one write
//! for all that is there, or whole. The head is sent with the first event, so
//! that a failure before it still has its own status.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use rbee_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rbee_api::openai::{FinishReason, StreamOptions};
use rbee_http::{ApiError, event_stream_response};

use crate::engine::{End, Event};
use crate::generation::Generation;
use crate::reading::{Delta, Message, ReplyReader};
use crate::reply::{Frames, Heading, UsageFrame, write_event};
use crate::text::PlacedLogprobs;

/// Room for the frames of a few events.
const BUFFER_BYTES: usize = 4096;

/// Answers a request from its generation.
///
/// # Errors
/// Whatever ends the generation before its first event.
pub(crate) async fn respond(
    mut generation: Generation,
    heading: Heading,
    options: StreamOptions,
) -> Result<Response, ApiError> {
    let first = match generation.next().await {
        Event::End(End::Failed(detail)) => return Err((*detail).into()),
        event @ (Event::Text { .. } | Event::End(End::Finished { .. })) => event,
    };
    let heading = heading.with_logprobs(generation.logprob_shape());
    if options.stream {
        stream(generation, first, heading, options)
    } else {
        whole(generation, first, heading).await
    }
}

async fn whole(
    mut generation: Generation,
    first: Event,
    heading: Heading,
) -> Result<Response, ApiError> {
    let (mut reply, mut tokens) = (String::new(), Vec::new());
    let mut event = first;
    loop {
        match event {
            Event::Text { text, logprobs } => {
                reply.push_str(&text);
                tokens.extend(logprobs);
            }
            Event::End(End::Finished { text, logprobs, reason, usage }) => {
                reply.push_str(&text);
                tokens.extend(logprobs);
                let message = match generation.reader.take() {
                    None => Message { content: reply, ..Message::default() },
                    Some(mut reader) => {
                        reader.push(&reply, &mut Vec::new());
                        reader.finish(&mut Vec::new());
                        reader.message().clone()
                    }
                };
                let reason = reason_with_calls(reason, &message);
                let reply = heading.whole(message, &tokens, reason, usage);
                return Ok(Json(reply).into_response());
            }
            Event::End(End::Failed(detail)) => return Err((*detail).into()),
        }
        event = generation.next().await;
    }
}

/// A reply that ends with calls waits for their results.
fn reason_with_calls(reason: FinishReason, message: &Message) -> FinishReason {
    match reason {
        FinishReason::Stop if !message.calls.is_empty() => FinishReason::ToolCalls,
        FinishReason::Stop | FinishReason::Length | FinishReason::ToolCalls => reason,
    }
}

fn stream(
    mut generation: Generation,
    first: Event,
    heading: Heading,
    options: StreamOptions,
) -> Result<Response, ApiError> {
    let usage = if options.include_usage { UsageFrame::Wanted } else { UsageFrame::Omitted };
    let defect = |error: serde_json::Error| {
        tracing::error!(%error, "a frame cannot be written");
        ApiError::new(ErrorCode::InternalError, "the reply could not be written")
    };
    let frames = Frames::new(heading, usage).map_err(defect)?;
    let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
    frames.begin(&mut buffer).map_err(defect)?;
    let reader = generation.reader.take();
    let mut events =
        EventStream { generation, reader, untold: Vec::new(), frames, buffer, ended: false };
    events.write(first);
    Ok(event_stream_response(events))
}

/// The body of a streamed reply.
struct EventStream {
    generation: Generation,
    /// `None` where all of the text is content.
    reader: Option<ReplyReader>,
    /// Tokens whose text the reader holds, or that no frame has told yet.
    untold: Vec<PlacedLogprobs>,
    frames: Frames,
    /// Frames not yet given to the connection.
    buffer: BytesMut,
    ended: bool,
}

impl EventStream {
    fn write(&mut self, event: Event) {
        let written = match event {
            Event::Text { text, logprobs } => self.write_text(&text, logprobs),
            Event::End(End::Finished { text, logprobs, reason, usage }) => {
                self.ended = true;
                self.write_text(&text, logprobs)
                    .and_then(|()| self.write_rest(reason))
                    .and_then(|reason| self.frames.end(reason, usage, &mut self.buffer))
            }
            Event::End(End::Failed(detail)) => {
                self.ended = true;
                self.write_error(*detail)
            }
        };
        if let Err(error) = written {
            tracing::error!(%error, "a frame cannot be written");
            self.ended = true;
        }
    }

    fn write_text(
        &mut self,
        text: &str,
        logprobs: Vec<PlacedLogprobs>,
    ) -> Result<(), serde_json::Error> {
        let Some(reader) = &mut self.reader else {
            if text.is_empty() && logprobs.is_empty() {
                return Ok(());
            }
            return self.frames.text(text, &logprobs, &mut self.buffer);
        };
        self.untold.extend(logprobs);
        let mut deltas = Vec::new();
        if !text.is_empty() {
            reader.push(text, &mut deltas);
        }
        self.write_deltas(deltas)
    }

    /// Writes what the reader held back and says why the reply ended.
    fn write_rest(&mut self, reason: FinishReason) -> Result<FinishReason, serde_json::Error> {
        let Some(reader) = &mut self.reader else { return Ok(reason) };
        let mut deltas = Vec::new();
        reader.finish(&mut deltas);
        let reason = reason_with_calls(reason, reader.message());
        self.write_deltas(deltas)?;
        if !self.untold.is_empty() {
            // Markers that end a reply are part of no delta.
            self.frames.text("", &self.untold, &mut self.buffer)?;
        }
        Ok(reason)
    }

    /// Writes a frame for each delta, the first one with all tokens that wait.
    fn write_deltas(&mut self, deltas: Vec<Delta>) -> Result<(), serde_json::Error> {
        for delta in deltas {
            self.frames.delta(delta, &self.untold, &mut self.buffer)?;
            self.untold.clear();
        }
        Ok(())
    }

    fn write_error(&mut self, mut detail: ErrorDetail) -> Result<(), serde_json::Error> {
        tracing::info!(request_id = %self.generation.id, code = %detail.code, "stream failed");
        detail.request_id = Some(self.generation.id.to_string());
        write_event(&mut self.buffer, &ErrorBody { error: detail })
    }
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.ended {
            match this.generation.poll_event(cx) {
                Poll::Ready(event) => this.write(event),
                Poll::Pending if this.buffer.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if this.buffer.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(this.buffer.split().freeze())))
    }
}
