//! Takes a marked stream apart: the events that a client may have, and what
//! they tell, so that another worker could go on after them. An event that no
//! mark follows is held back: it would come twice if its worker ended now. A
//! stream without marks passes as it is.

use bytes::{Bytes, BytesMut};
use rbee_api::continuation::{Delivered, MARK_PREFIX, Mark};
use rbee_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rbee_api::limits::CONTINUABLE_TOKENS_MAX;
use rbee_http::DONE_EVENT;

use crate::keys::Tokens;
use crate::usage;

/// What the event begins with that ends a stream which is not whole.
const ERROR_EVENT: &[u8] = b"data: {\"error\":";
/// Most bytes held back: the log probabilities of the longest stop sequence
/// are a tenth of it.
const HELD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the stream is found to be.
#[derive(Debug)]
enum Kind {
    /// Nothing has come.
    Unknown,
    /// Its worker knows no marks.
    Plain,
    Marked,
}

/// What is known of a reply.
#[derive(Debug)]
enum Record {
    /// Nothing was told yet.
    Nothing,
    Delivered(Box<Delivered>),
    /// More than is remembered.
    TooLong,
}

/// What came of a piece of the stream.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Events that the client may have.
    pub(crate) events: Bytes,
    /// Why nothing comes any more.
    pub(crate) end: Option<End>,
    /// What the events have used.
    pub(crate) spent: Tokens,
}

/// How a stream ended by itself.
#[derive(Debug)]
pub(crate) enum End {
    /// With `[DONE]`.
    Whole,
    /// With an error event, here with the events held back before it.
    Failed { detail: Box<ErrorDetail>, events: Bytes },
    /// With something that is no event of ours.
    Garbled,
}

/// What can be done when a worker ends in the middle of a reply.
#[derive(Debug)]
pub(crate) enum Remedy<'a> {
    /// Ask for all of it: the client has none of it.
    AskAgain,
    /// Go on after this.
    GoOnAfter(&'a Delivered),
    /// Nothing: the worker told no tokens.
    Unmarked,
    /// Nothing: the reply is too long to be remembered.
    TooLong,
}

/// The events of one reply, of however many workers.
#[derive(Debug)]
pub(crate) struct MarkedFrames {
    kind: Kind,
    record: Record,
    /// The beginning of a frame whose end has not come.
    tail: BytesMut,
    /// Whole events that no mark has followed yet.
    held: BytesMut,
    /// Marks that told of something since the last worker began.
    marks: u64,
    /// What was used, by all workers so far.
    used: Tokens,
    /// What of it was handed on.
    handed_on: Tokens,
}

impl MarkedFrames {
    pub(crate) fn new() -> Self {
        Self {
            kind: Kind::Unknown,
            record: Record::Nothing,
            tail: BytesMut::new(),
            held: BytesMut::new(),
            marks: 0,
            used: Tokens::default(),
            handed_on: Tokens::default(),
        }
    }

    /// Returns what can be done should the worker end now.
    pub(crate) fn remedy(&self) -> Remedy<'_> {
        match (&self.kind, &self.record) {
            (Kind::Plain, _) => Remedy::Unmarked,
            (Kind::Unknown | Kind::Marked, Record::Nothing) => Remedy::AskAgain,
            (Kind::Unknown | Kind::Marked, Record::TooLong) => Remedy::TooLong,
            (Kind::Unknown | Kind::Marked, Record::Delivered(delivered)) => {
                if delivered.choices.is_empty() {
                    Remedy::AskAgain
                } else {
                    Remedy::GoOnAfter(delivered)
                }
            }
        }
    }

    /// Says whether the client got anything of the present worker.
    pub(crate) fn has_progressed(&self) -> bool {
        self.marks > 0
    }

    /// Forgets what no mark followed and takes the stream of another worker.
    pub(crate) fn begin_again(&mut self) {
        self.tail.clear();
        self.held.clear();
        self.kind = Kind::Unknown;
        self.marks = 0;
        if let Remedy::AskAgain = self.remedy() {
            self.record = Record::Nothing;
        }
    }

    /// Takes a piece of the stream.
    pub(crate) fn take(&mut self, bytes: Bytes) -> Taken {
        if let Kind::Plain = self.kind {
            let spent = usage::of_events(&bytes);
            return Taken { events: bytes, end: None, spent };
        }
        self.tail.extend_from_slice(&bytes);
        let mut events = BytesMut::new();
        let mut end = None;
        while end.is_none()
            && let Some(length) = frame_length(&self.tail)
        {
            let frame = self.tail.split_to(length);
            end = self.take_frame(&frame, &mut events);
            if let Kind::Plain = self.kind {
                events.unsplit(self.tail.split());
            }
        }
        if self.tail.len() + self.held.len() > HELD_BYTES_MAX {
            end = Some(End::Garbled);
        }
        let mut spent = self.used.since(self.handed_on);
        self.handed_on = self.used;
        if let Kind::Plain = self.kind {
            spent = usage::of_events(&events);
        }
        Taken { events: events.freeze(), end, spent }
    }

    fn take_frame(&mut self, frame: &[u8], events: &mut BytesMut) -> Option<End> {
        if let Some(mark) = frame.strip_prefix(MARK_PREFIX) {
            self.kind = Kind::Marked;
            return match serde_json::from_slice(mark) {
                Ok(mark) => {
                    self.take_mark(mark, events);
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, "a mark cannot be read");
                    Some(End::Garbled)
                }
            };
        }
        if let (Kind::Unknown, Remedy::GoOnAfter(_) | Remedy::TooLong) = (&self.kind, self.remedy())
        {
            // It began anew instead of going on.
            return Some(End::Garbled);
        }
        if let Kind::Unknown = self.kind {
            // A worker that marks its stream begins with a mark.
            self.kind = Kind::Plain;
        }
        if let Kind::Plain = self.kind {
            events.extend_from_slice(frame);
            return None;
        }
        self.held.extend_from_slice(frame);
        if frame == DONE_EVENT {
            events.unsplit(self.held.split());
            return Some(End::Whole);
        }
        let error = frame.starts_with(ERROR_EVENT).then(|| Box::new(error_of(frame)))?;
        Some(End::Failed { detail: error, events: self.held.split().freeze() })
    }

    fn take_mark(&mut self, mark: Mark, events: &mut BytesMut) {
        match (mark, &mut self.record) {
            (Mark::Head(head), Record::Nothing) => {
                self.record = Record::Delivered(Box::new(Delivered::new(head)));
            }
            (Mark::Usage(whole), _) => self.used = usage::of_whole(&whole),
            // The same head again, of the worker that goes on.
            (Mark::Head(_), Record::Delivered(_) | Record::TooLong) => {}
            (Mark::Told(told), record) => {
                usage::of_mark(&told, &mut self.used);
                if let Record::Delivered(delivered) = record {
                    delivered.add(told);
                    if delivered.entries() > CONTINUABLE_TOKENS_MAX {
                        *record = Record::TooLong;
                    }
                }
                self.marks += 1;
                events.unsplit(self.held.split());
            }
        }
    }
}

/// Returns what a client gets of a stream that comes in these pieces, and whether the stream ended by itself.
pub fn client_events(pieces: impl IntoIterator<Item = Bytes>) -> (Vec<u8>, bool) {
    let mut frames = MarkedFrames::new();
    let mut events = Vec::new();
    for piece in pieces {
        let taken = frames.take(piece);
        events.extend_from_slice(&taken.events);
        if let Some(end) = taken.end {
            if let End::Failed { events: before, .. } = end {
                events.extend_from_slice(&before);
            }
            return (events, true);
        }
    }
    (events, false)
}

/// The length of the first frame, its blank line included.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\n\n").map(|start| start + 2)
}

fn error_of(frame: &[u8]) -> ErrorDetail {
    let json = frame.strip_prefix(b"data: ").unwrap_or_default();
    let body: Result<ErrorBody, _> = serde_json::from_slice(json);
    body.map_or_else(
        |_| ErrorDetail::new(ErrorCode::InternalError, "the worker failed in an unknown way"),
        |body| body.error,
    )
}

#[cfg(test)]
mod tests;
