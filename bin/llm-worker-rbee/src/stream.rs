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
use rbee_api::openai::StreamOptions;
use rbee_http::{ApiError, event_stream_response};

use crate::engine::{End, Event};
use crate::generation::Generation;
use crate::reply::{Frames, Heading, UsageFrame, write_event};

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
                return Ok(Json(heading.whole(reply, &tokens, reason, usage)).into_response());
            }
            Event::End(End::Failed(detail)) => return Err((*detail).into()),
        }
        event = generation.next().await;
    }
}

fn stream(
    generation: Generation,
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
    let mut events = EventStream { generation, frames, buffer, ended: false };
    events.write(first);
    Ok(event_stream_response(events))
}

/// The body of a streamed reply.
struct EventStream {
    generation: Generation,
    frames: Frames,
    /// Frames not yet given to the connection.
    buffer: BytesMut,
    ended: bool,
}

impl EventStream {
    fn write(&mut self, event: Event) {
        let written = match event {
            Event::Text { text, logprobs } => self.frames.text(&text, &logprobs, &mut self.buffer),
            Event::End(End::Finished { text, logprobs, reason, usage }) => {
                self.ended = true;
                let text = if text.is_empty() && logprobs.is_empty() {
                    Ok(())
                } else {
                    self.frames.text(&text, &logprobs, &mut self.buffer)
                };
                text.and_then(|()| self.frames.end(reason, usage, &mut self.buffer))
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
