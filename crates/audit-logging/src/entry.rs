//! One line of the log. Its number and the hash of the line before stand at its beginning and its own hash at its end,
//! so that a verifier needs no JSON parser:
//! `{"sequence":N,"previous_hash":"…","timestamp":…,"entry_hash":"…"}`. The entry's hash is that of everything before
//! `,"entry_hash"`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::hash::{EntryHash, HASH_DIGITS};
use crate::verify::Flaw;

const HEAD: &[u8] = b"{\"sequence\":";
const PREVIOUS: &[u8] = b",\"previous_hash\":\"";
const OWN: &[u8] = b",\"entry_hash\":\"";
const END: &[u8] = b"\"}";
/// Longest line; whatever is longer was not written here.
pub(crate) const LINE_BYTES_MAX: usize = 64 * 1024;

/// An entry and its place in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// 1 for the first entry; 0 before it.
    pub(crate) sequence: u64,
    pub(crate) hash: EntryHash,
}

impl Position {
    /// Before the first entry.
    pub(crate) const START: Self = Self { sequence: 0, hash: EntryHash::NONE };

    /// Appends the entry that follows to `lines`, with its line end, and returns its position.
    pub(crate) fn append(self, body: &str, lines: &mut Vec<u8>) -> Self {
        let (sequence, begin) = (self.sequence + 1, lines.len());
        lines.extend_from_slice(HEAD);
        lines.extend_from_slice(sequence.to_string().as_bytes());
        lines.extend_from_slice(PREVIOUS);
        lines.extend_from_slice(&self.hash.hex());
        lines.extend_from_slice(b"\",");
        lines.extend_from_slice(body.as_bytes());
        let hash = EntryHash::of(lines.get(begin..).unwrap_or_default());
        lines.extend_from_slice(OWN);
        lines.extend_from_slice(&hash.hex());
        lines.extend_from_slice(END);
        lines.push(b'\n');
        Self { sequence, hash }
    }

    /// Checks that `line`, without its line end, is the entry that follows.
    pub(crate) fn next(self, line: &[u8]) -> Result<Self, Flaw> {
        let parts = Parts::of(line).ok_or(Flaw::NotAnEntry)?;
        let hash = EntryHash::of(parts.hashed);
        if hash.hex() != parts.own {
            return Err(Flaw::Content);
        }
        if parts.sequence != self.sequence + 1 {
            return Err(Flaw::Sequence { found: parts.sequence });
        }
        if self.hash.hex() != parts.previous {
            return Err(Flaw::Chain);
        }
        Ok(Self { sequence: parts.sequence, hash })
    }
}

/// Returns the position of a line that is whole in itself, and that of the entry before it.
pub(crate) fn whole(line: &[u8]) -> Option<(Position, Position)> {
    let parts = Parts::of(line)?;
    let hash = EntryHash::of(parts.hashed);
    let before = Position {
        sequence: parts.sequence.checked_sub(1)?,
        hash: EntryHash::parse(parts.previous)?,
    };
    (hash.hex() == parts.own).then_some((before, Position { sequence: parts.sequence, hash }))
}

/// Says whether a good line tells that the oldest entries are removed, and up to which.
pub(crate) fn removed_through(line: &[u8]) -> Option<u64> {
    // The type stands at a fixed distance behind the hash; no text of an entry can reach there.
    let parts = Parts::of(line)?;
    let after_stamp = parts.rest.strip_prefix(b"\"timestamp\":\"")?.get(24..)?;
    after_stamp.strip_prefix(b"\",\"event_type\":\"audit.retention\"")?;
    let entry: EntryView = serde_json::from_slice(line).ok()?;
    entry.details.get("removed_through")?.as_u64()
}

/// A line's parts, not yet checked against anything.
struct Parts<'a> {
    hashed: &'a [u8],
    sequence: u64,
    previous: &'a [u8],
    rest: &'a [u8],
    own: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(line: &'a [u8]) -> Option<Self> {
        let body = line.strip_suffix(END)?;
        let (body, own) = body.split_at_checked(body.len().checked_sub(HASH_DIGITS)?)?;
        let hashed = body.strip_suffix(OWN)?;
        let number = hashed.strip_prefix(HEAD)?;
        let digits = number.iter().position(|byte| !byte.is_ascii_digit())?;
        let (digits, rest) = number.split_at_checked(digits)?;
        let sequence = std::str::from_utf8(digits).ok()?.parse().ok()?;
        let (previous, rest) = rest.strip_prefix(PREVIOUS)?.split_at_checked(HASH_DIGITS)?;
        let rest = rest.strip_prefix(b"\",")?;
        Some(Self { hashed, sequence, previous, rest, own })
    }
}

/// An entry as readers see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryView {
    /// Its number; the first one is 1.
    pub sequence: u64,
    /// The hash of the entry before.
    pub previous_hash: String,
    /// When it happened, RFC 3339, UTC.
    pub timestamp: String,
    /// What happened.
    pub event_type: String,
    /// Which daemon wrote it down.
    pub service: String,
    /// How it came out.
    pub outcome: String,
    /// Who did it.
    pub actor: ActorView,
    /// On behalf of which request.
    pub request_id: Option<String>,
    /// What it was done to.
    pub subject: Option<SubjectView>,
    /// What else is to be said.
    pub details: Map<String, Value>,
    /// Its own hash.
    pub entry_hash: String,
}

/// Who did it, as readers see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActorView {
    /// What kind of caller.
    pub kind: String,
    /// The fingerprint of the credential.
    pub key: Option<String>,
    /// The other end of the connection.
    pub address: Option<String>,
}

/// What it was done to, as readers see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SubjectView {
    /// What kind of thing.
    pub kind: String,
    /// Which one.
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Kind, Outcome};

    #[test]
    fn an_entry_has_the_fields_that_are_documented() {
        let body = Event::new(Kind::Start, Outcome::Success).with_number("pid", 7).body("s");
        let mut line = Vec::new();
        let position = Position::START.append(&body, &mut line);
        let view: EntryView = serde_json::from_slice(&line).unwrap();
        assert_eq!((view.sequence, view.previous_hash), (1, "0".repeat(64)));
        assert_eq!(view.entry_hash, position.hash.to_string());
        assert_eq!((view.event_type.as_str(), view.service.as_str()), ("daemon.start", "s"));
        assert_eq!(view.timestamp.len(), 24, "{}", view.timestamp);
        assert!(view.timestamp.ends_with('Z'));
        let without_end = line.strip_suffix(b"\n").unwrap();
        assert_eq!(Position::START.next(without_end), Ok(position));
        assert_eq!(whole(without_end), Some((Position::START, position)));
    }

    #[test]
    fn only_a_retention_entry_tells_what_was_removed() {
        let line = |kind| {
            let event = Event::new(kind, Outcome::Success).with_number("removed_through", 9);
            let mut line = Vec::new();
            Position::START.append(&event.body("s"), &mut line);
            line.pop();
            line
        };
        assert_eq!(removed_through(&line(Kind::Retention)), Some(9));
        assert_eq!(removed_through(&line(Kind::Lost)), None);
    }
}
