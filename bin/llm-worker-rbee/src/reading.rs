//! Reads a reply as it comes: what the model thinks, what it says, which tools
//! it calls. Text in which nothing has to be looked for never comes here. The
//! same text gives the same reply in any pieces, and none of it is lost: what
//! cannot be read as a call is what the model says.

mod resume;
mod scan;

use std::sync::Arc;
use std::time::Duration;

use rbee_llama::chat::ToolCall;
use rbee_llama::reply::{Reply, ReplyError, ReplyFormat, ReplyParser};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

pub(crate) use resume::ReadsDifferently;
use scan::{Found, Scan};

/// A call is read again from its beginning when this has passed: more often
/// than a reader sees, and seldom enough for a slow machine.
const READ_AGAIN: Duration = Duration::from_millis(30);
/// Nor is it read again before this many times what reading took has passed,
/// so that a long one takes at most a tenth of a core.
const READING_SHARE: u32 = 9;
/// Places tried as the end of the calls in a reply that cannot be read whole.
const CUTS_MAX: usize = 32;

/// How much of a reply there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    Begun,
}

/// What is new in a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Delta {
    Content(String),
    Reasoning(String),
    /// A call begins.
    Call {
        index: u32,
        id: String,
        name: String,
    },
    /// More of the arguments of a call that has begun.
    Arguments {
        index: u32,
        text: String,
    },
}

/// A reply that has been read to its end.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<ToolCall>,
}

/// Reads one reply.
#[derive(Debug)]
pub(crate) struct ReplyReader {
    format: Arc<ReplyFormat>,
    /// Tells the reply from all others.
    name: String,
    /// Made when it is needed, which most replies never do.
    parser: Option<ReplyParser>,
    /// The reply so far, as the model wrote it.
    text: String,
    phase: Phase,
    /// What has been told of the reply.
    told: Message,
    /// When the parser read it last.
    read_at: Option<Instant>,
    reading_took: Duration,
    /// Lengths of the text at which it was read, where they are to be told.
    reads: Option<Vec<u32>>,
}

#[derive(Debug)]
enum Phase {
    /// Nothing needs the parser yet.
    Scan(Scan),
    /// The parser reads everything again from the beginning. What stands
    /// before `from` has been told.
    /// Of the content, `said` bytes had been told then.
    Parse { from: usize, said: usize },
    /// No call can be read any more. What stands before `from` has been told.
    Text { from: usize },
}

impl ReplyReader {
    /// Makes the reader of a reply of this format. The ids of its calls are
    /// made of `name`, which no other reply has.
    pub(crate) fn new(format: Arc<ReplyFormat>, name: String) -> Self {
        let phase = match format.call_markers() {
            Some(markers) => Phase::Scan(Scan::new(&format, markers)),
            None => Phase::Parse { from: 0, said: 0 },
        };
        Self {
            format,
            name,
            parser: None,
            text: String::new(),
            phase,
            told: Message::default(),
            read_at: None,
            reading_took: Duration::ZERO,
            reads: None,
        }
    }

    /// Takes the next part of the text and tells what is new in the reply.
    pub(crate) fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        self.grow(text, out);
        match self.phase {
            Phase::Scan(_) => {}
            Phase::Parse { .. } if !self.is_due(text) => {}
            Phase::Parse { from, said } => self.read(from, said, Extent::Begun, out),
            Phase::Text { .. } => self.tell_text(out),
        }
    }

    /// Takes the next part of the text, and tells what needs no parser.
    fn grow(&mut self, text: &str, out: &mut Vec<Delta>) {
        self.text.push_str(text);
        if let Phase::Scan(scan) = &mut self.phase {
            let mut found = Vec::new();
            let call_at = scan.advance(&self.text, &mut found);
            self.tell_found(found, out);
            if let Some(from) = call_at {
                self.phase = Phase::Parse { from, said: self.told.content.len() };
            }
        }
    }

    /// Ends the text and tells the rest of the reply.
    pub(crate) fn finish(&mut self, out: &mut Vec<Delta>) {
        match &mut self.phase {
            Phase::Scan(scan) => {
                let mut found = Vec::new();
                scan.finish(&self.text, &mut found);
                self.tell_found(found, out);
            }
            Phase::Parse { from, said } => {
                let (from, said) = (*from, *said);
                self.read(from, said, Extent::Whole, out);
            }
            Phase::Text { .. } => self.tell_text(out),
        }
    }

    /// Returns what has been told.
    pub(crate) fn message(&self) -> &Message {
        &self.told
    }

    /// Whether it is worth reading the text again, whose last part is `text`.
    fn is_due(&self, text: &str) -> bool {
        let Some(read_at) = self.read_at else { return true };
        let passed = read_at.elapsed();
        let is_break = text.contains(['\n', '>']);
        passed >= self.reading_took * READING_SHARE && (is_break || passed >= READ_AGAIN)
    }

    /// Has the parser read the text and tells what it found.
    fn read(&mut self, from: usize, said: usize, extent: Extent, out: &mut Vec<Delta>) {
        let started = Instant::now();
        if let (Some(reads), Ok(at)) = (&mut self.reads, u32::try_from(self.text.len())) {
            reads.push(at);
        }
        let read = self.parse(self.text.len());
        self.reading_took = started.elapsed();
        self.read_at = Some(Instant::now());
        match read {
            Ok(reply) => {
                // A parser that waits for more of a call that is no call knows nothing of it.
                let is_blank =
                    reply.content.trim().is_empty() && reply.reasoning_content.trim().is_empty();
                let is_unread = reply.tool_calls.is_empty() && (from > 0 || is_blank);
                if extent == Extent::Whole && is_unread && self.told.calls.is_empty() {
                    self.give_up(from, said, out);
                } else {
                    self.tell_reply(reply, extent, out);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a reply does not follow its format");
                self.salvage(from, said, out);
            }
        }
    }

    /// Reads the text up to a place. A text whose end is still to come is read
    /// as far as it goes; an error is one that no end would mend.
    fn parse(&mut self, end: usize) -> Result<Reply, ReplyError> {
        let parser = match self.parser.take() {
            Some(parser) => parser,
            None => ReplyParser::new(&self.format)?,
        };
        let read = parser.parse(self.text.get(..end).unwrap_or_default());
        self.parser = Some(parser);
        let mut reply = read?;
        reply.tool_calls.truncate(self.format.calls_max);
        Ok(reply)
    }

    /// Reads the calls that are whole before what cannot be read; the rest, or
    /// all where there is none, is what the model says.
    fn salvage(&mut self, from: usize, said: usize, out: &mut Vec<Delta>) {
        let ends = self.text.rmatch_indices(['}', '>', ']']).map(|(at, end)| at + end.len());
        let cuts: Vec<usize> = ends.take_while(|end| *end > from).take(CUTS_MAX).collect();
        for cut in cuts {
            if let Ok(reply) = self.parse(cut)
                && !reply.tool_calls.is_empty()
            {
                self.tell_reply(reply, Extent::Whole, out);
                self.phase = Phase::Text { from: cut };
                self.tell_text(out);
                return;
            }
        }
        self.give_up(from, said, out);
    }

    /// Takes all that has not been told as what the model says.
    fn give_up(&mut self, from: usize, said: usize, out: &mut Vec<Delta>) {
        // What the parser told since it had the text from here tells how far it was.
        let thought = if from == 0 { self.told.reasoning.as_str() } else { "" };
        let said_since = self.told.content.get(said..).unwrap_or_default();
        let mut told_to = from;
        for told in [thought, said_since] {
            let rest = self.text.get(told_to..).unwrap_or_default();
            told_to += rest.find(told).map_or(0, |at| at + told.len());
        }
        self.phase = Phase::Text { from: told_to };
        self.tell_text(out);
    }

    fn tell_text(&mut self, out: &mut Vec<Delta>) {
        let Phase::Text { from } = &mut self.phase else { return };
        let rest = self.text.get(*from..).unwrap_or_default().to_owned();
        *from = self.text.len();
        tell(&mut self.told.content, rest, Delta::Content, out);
    }

    fn tell_found(&mut self, found: Vec<Found>, out: &mut Vec<Delta>) {
        for part in found {
            match part {
                Found::Content(text) => tell(&mut self.told.content, text, Delta::Content, out),
                Found::Thought(text) => {
                    tell(&mut self.told.reasoning, text, Delta::Reasoning, out);
                }
            }
        }
    }

    /// Tells in what a reply goes beyond what was told. White space at an end
    /// is told with what follows it, for it goes away before a call.
    fn tell_reply(&mut self, reply: Reply, extent: Extent, out: &mut Vec<Delta>) {
        let is_whole = extent == Extent::Whole;
        let reasoning = reply.reasoning_content.trim();
        if let Some(new) = reasoning.strip_prefix(self.told.reasoning.as_str()) {
            tell(&mut self.told.reasoning, new.to_owned(), Delta::Reasoning, out);
        }
        let mut content = reply.content.as_str();
        if !reasoning.is_empty() {
            content = content.trim_start();
        }
        if !is_whole || !reply.tool_calls.is_empty() {
            content = content.trim_end();
        }
        if let Some(new) = content.strip_prefix(self.told.content.as_str()) {
            tell(&mut self.told.content, new.to_owned(), Delta::Content, out);
        }
        let last = reply.tool_calls.len();
        for (index, call) in reply.tool_calls.into_iter().enumerate() {
            // A name may be the beginning of another one until arguments follow.
            if is_whole || index + 1 < last || call.arguments.len() > 1 {
                self.tell_call(index, call, is_whole, out);
            }
        }
    }

    fn tell_call(&mut self, index: usize, call: ToolCall, is_whole: bool, out: &mut Vec<Delta>) {
        let Ok(wire_index) = u32::try_from(index) else { return };
        if self.told.calls.len() == index {
            // Some models write an id after the arguments, too late to tell it before them.
            let id = id_of_call(&self.name, index);
            self.told.calls.push(ToolCall {
                id: id.clone(),
                name: call.name.clone(),
                arguments: String::new(),
            });
            out.push(Delta::Call { index: wire_index, id, name: call.name });
        }
        let Some(told) = self.told.calls.get_mut(index) else { return };
        let arguments = match call.arguments.trim_end() {
            "" if is_whole => "{}",
            arguments => arguments,
        };
        match arguments.strip_prefix(told.arguments.as_str()) {
            Some(new) => {
                let as_delta = |text| Delta::Arguments { index: wire_index, text };
                tell(&mut told.arguments, new.to_owned(), as_delta, out);
            }
            None if is_whole => {
                tracing::warn!(tool_call = index, "the end of a call contradicts its beginning");
            }
            None => {}
        }
    }
}

/// Tells a text that is not empty and remembers it.
fn tell(told: &mut String, text: String, delta: impl Fn(String) -> Delta, out: &mut Vec<Delta>) {
    if !text.is_empty() {
        told.push_str(&text);
        out.push(delta(text));
    }
}

/// An id that no other call has, and that this one has wherever it is read.
fn id_of_call(reply: &str, index: usize) -> String {
    let digest = Sha256::digest(format!("{reply}/{index}"));
    let letters = digest.iter().take(16).map(|byte| format!("{byte:02x}"));
    format!("call_{}", letters.collect::<String>())
}

#[cfg(test)]
mod tests;
