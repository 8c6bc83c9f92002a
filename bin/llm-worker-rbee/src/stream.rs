//! From the parts of a generation to the reply: as server-sent events with one
//! write for all that is there, or whole. The head is sent with the first part,
//! so that a failure before it still has its own status. A reader that lags
//! leaves the parts of all choices where they are, which pauses their jobs.

mod marker;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use rbee_api::continuation::{Mark, ReadingProgress};
use rbee_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rbee_api::openai::{FinishReason, StreamOptions};
use rbee_http::{ApiError, event_stream_response};

use crate::generation::{Generation, Part};
use crate::reading::{Delta, Message, ReadsDifferently, ReplyReader};
use crate::reply::{Choice, Frames, Heading, UsageFrame, write_event};
use crate::text::PlacedLogprobs;
use marker::{Marker, write_mark};

/// Room for the frames of a few events.
const BUFFER_BYTES: usize = 4096;

/// Answers a request from its generation.
///
/// # Errors
/// Whatever ends the generation before its first part.
pub(crate) async fn respond(
    mut generation: Generation,
    heading: Heading,
    options: StreamOptions,
) -> Result<Response, ApiError> {
    let first = generation.next().await.map_err(|detail| *detail)?;
    let heading = heading.with_logprobs(generation.logprob_shape());
    if options.stream {
        stream(generation, first, heading, options)
    } else {
        whole(generation, first, heading).await
    }
}

/// What has come of one choice.
#[derive(Debug, Default)]
struct Gathered {
    text: String,
    tokens: Vec<PlacedLogprobs>,
}

async fn whole(
    mut generation: Generation,
    first: Part,
    heading: Heading,
) -> Result<Response, ApiError> {
    let mut gathered: Vec<Gathered> =
        (0..generation.choices()).map(|_| Gathered::default()).collect();
    let mut ended = Vec::new();
    let mut part = first;
    loop {
        if let Some(choice) = gathered.get_mut(part.choice as usize) {
            choice.text.push_str(&part.text);
            choice.tokens.extend(part.logprobs);
            if let Some(reason) = part.end {
                let reader = generation.reader(&heading, part.choice);
                ended.push(std::mem::take(choice).read(part.choice, reader, reason));
            }
        }
        if generation.is_complete() {
            ended.sort_unstable_by_key(|choice| choice.index);
            return Ok(Json(heading.whole(ended, generation.usage())).into_response());
        }
        part = generation.next().await.map_err(|detail| *detail)?;
    }
}

impl Gathered {
    fn read(self, index: u32, reader: Option<ReplyReader>, reason: FinishReason) -> Choice {
        let message = match reader {
            None => Message { content: self.text, ..Message::default() },
            Some(mut reader) => {
                reader.push(&self.text, &mut Vec::new());
                reader.finish(&mut Vec::new());
                reader.message().clone()
            }
        };
        let reason = reason_with_calls(reason, &message);
        Choice { index, message, tokens: self.tokens, reason }
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
    generation: Generation,
    first: Part,
    heading: Heading,
    options: StreamOptions,
) -> Result<Response, ApiError> {
    let usage = if options.include_usage { UsageFrame::Wanted } else { UsageFrame::Omitted };
    let defect = |error: serde_json::Error| {
        tracing::error!(%error, "a frame cannot be written");
        ApiError::new(ErrorCode::InternalError, "the reply could not be written")
    };
    let mut buffer = BytesMut::with_capacity(BUFFER_BYTES);
    let marks = generation.marks();
    if marks.are_wanted() {
        let head = Mark::Head(generation.head(&heading));
        write_mark(&mut buffer, &head).map_err(defect)?;
    }
    let count = generation.choices();
    let choices = (0..count).map(|index| Telling::new(index, &generation, &heading)).collect();
    let marker = marks.are_wanted().then(|| Marker::new(count));
    let frames = Frames::new(heading, usage, count).map_err(defect)?;
    if marks.head().is_none() {
        frames.begin(&mut buffer).map_err(defect)?;
    }
    let mut events = EventStream { generation, choices, marker, frames, buffer, ended: false };
    events.write(Ok(first));
    Ok(event_stream_response(events))
}

/// The body of a streamed reply.
struct EventStream {
    generation: Generation,
    choices: Vec<Telling>,
    /// `None` where nobody wants marks.
    marker: Option<Marker>,
    frames: Frames,
    /// Frames not yet given to the connection.
    buffer: BytesMut,
    ended: bool,
}

/// One choice as it is told.
struct Telling {
    index: u32,
    /// `None` where all of the text is content.
    reader: Option<ReplyReader>,
    /// Tokens whose text the reader holds, or that no frame has told yet.
    untold: Vec<PlacedLogprobs>,
    /// How far the reply was read elsewhere.
    earlier: Option<ReadingProgress>,
}

impl EventStream {
    fn write(&mut self, part: Result<Part, Box<ErrorDetail>>) {
        let written = match part {
            Ok(Part { choice, replayed: Some(text), .. }) => self.resume(choice, &text),
            Ok(part) => self.write_part(part),
            Err(detail) => {
                self.ended = true;
                self.write_error(*detail)
            }
        };
        if let Err(error) = written {
            tracing::error!(%error, "a frame cannot be written");
            self.ended = true;
        }
    }

    /// Goes on after a text that the reader of the stream has.
    fn resume(&mut self, choice: u32, text: &str) -> Result<(), serde_json::Error> {
        let resumed = self.choices.get_mut(choice as usize).map_or(Ok(()), |c| c.resume(text));
        resumed.or_else(|error| {
            self.ended = true;
            let message = format!("the reply cannot go on here: {error}");
            self.write_error(ErrorDetail::new(ErrorCode::InternalError, message))
        })
    }

    fn write_part(&mut self, mut part: Part) -> Result<(), serde_json::Error> {
        let (index, has_ended, trace) = (part.choice, part.end.is_some(), part.trace.take());
        if let Some(choice) = self.choices.get_mut(index as usize) {
            choice.write(part, &self.frames, &mut self.buffer)?;
        }
        if let (Some(marker), Some(trace)) = (&mut self.marker, trace) {
            marker.note(index, trace, has_ended);
        }
        if self.generation.is_complete() {
            self.ended = true;
            if self.marker.is_some() {
                write_mark(&mut self.buffer, &Mark::Usage(self.generation.usage()))?;
            }
            self.frames.close(self.generation.usage(), &mut self.buffer)?;
        }
        Ok(())
    }

    /// Marks the frames that are there. The end of a stream has its own.
    fn mark(&mut self) {
        let Some(marker) = self.marker.as_mut().filter(|_| !self.ended) else { return };
        let asks_logprobs = self.generation.logprob_shape().is_some();
        if let Err(error) = marker.write(&mut self.choices, asks_logprobs, &mut self.buffer) {
            tracing::error!(%error, "a mark cannot be written");
            self.ended = true;
        }
    }

    fn write_error(&mut self, mut detail: ErrorDetail) -> Result<(), serde_json::Error> {
        tracing::info!(request_id = %self.generation.id, code = %detail.code, "stream failed");
        detail.request_id = Some(self.generation.id.to_string());
        write_event(&mut self.buffer, &ErrorBody { error: detail })
    }
}

impl Telling {
    fn new(index: u32, generation: &Generation, heading: &Heading) -> Self {
        let mut reader = generation.reader(heading, index);
        let marks = generation.marks();
        if let Some(reader) = reader.as_mut().filter(|_| marks.are_wanted()) {
            reader.note_reads();
        }
        let earlier = marks.choice(index).and_then(|choice| choice.reading.clone());
        Self { index, reader, untold: Vec::new(), earlier }
    }

    fn resume(&mut self, text: &str) -> Result<(), ReadsDifferently> {
        let earlier = self.earlier.take().unwrap_or_default();
        self.reader.as_mut().map_or(Ok(()), |reader| reader.resume(text, &earlier))
    }

    fn write(
        &mut self,
        part: Part,
        frames: &Frames,
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        self.write_text(&part.text, part.logprobs, frames, out)?;
        let Some(reason) = part.end else { return Ok(()) };
        let reason = self.write_rest(reason, frames, out)?;
        frames.end(self.index, reason, out)
    }

    fn write_text(
        &mut self,
        text: &str,
        logprobs: Vec<PlacedLogprobs>,
        frames: &Frames,
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        let Some(reader) = &mut self.reader else {
            if text.is_empty() && logprobs.is_empty() {
                return Ok(());
            }
            return frames.text(self.index, text, &logprobs, out);
        };
        self.untold.extend(logprobs);
        let mut deltas = Vec::new();
        if !text.is_empty() {
            reader.push(text, &mut deltas);
        }
        self.write_deltas(deltas, frames, out)
    }

    /// Writes what the reader held back and says why the choice ended.
    fn write_rest(
        &mut self,
        reason: FinishReason,
        frames: &Frames,
        out: &mut BytesMut,
    ) -> Result<FinishReason, serde_json::Error> {
        let Some(reader) = &mut self.reader else { return Ok(reason) };
        let mut deltas = Vec::new();
        reader.finish(&mut deltas);
        let reason = reason_with_calls(reason, reader.message());
        self.write_deltas(deltas, frames, out)?;
        if !self.untold.is_empty() {
            // Markers that end a reply are part of no delta.
            frames.text(self.index, "", &self.untold, out)?;
        }
        Ok(reason)
    }

    /// Writes a frame for each delta, the first one with all tokens that wait.
    fn write_deltas(
        &mut self,
        deltas: Vec<Delta>,
        frames: &Frames,
        out: &mut BytesMut,
    ) -> Result<(), serde_json::Error> {
        for delta in deltas {
            frames.delta(self.index, delta, &self.untold, out)?;
            self.untold.clear();
        }
        Ok(())
    }
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.ended {
            match this.generation.poll_part(cx) {
                Poll::Ready(part) => this.write(part),
                Poll::Pending if this.buffer.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if this.buffer.is_empty() {
            return Poll::Ready(None);
        }
        this.mark();
        Poll::Ready(Some(Ok(this.buffer.split().freeze())))
    }
}
