//! The verifier: reads a log from its first entry to its last and says whether every entry is the one that was written,
//! whether none is missing, and where not, which one is the first. Changes nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::Path;

use rbee_api::audit::AuditCheckpoint;

use crate::checkpoints::{self, CHECKPOINTS_FILE};
use crate::entry::{LINE_BYTES_MAX, Position, removed_through};
use crate::error::AuditError;
use crate::hash::EntryHash;
use crate::segments::{self, SegmentPath};
use crate::signature::is_signed;
use crate::writer::{BATCH_MAX, CHECKPOINT_ENTRIES};

/// Entries that a log may have after its last checkpoint: those between two and what may have been written with them.
const UNSIGNED_MAX: u64 = CHECKPOINT_ENTRIES + 4 * BATCH_MAX as u64;

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// A line has not the form of an entry.
    #[error("is not an entry")]
    NotAnEntry,
    /// The entry's own hash is not that of its content.
    #[error("was changed after it was written")]
    Content,
    /// Another number stands where this one belongs.
    #[error("is missing or moved: entry {found} stands in its place")]
    Sequence {
        /// The number that was found.
        found: u64,
    },
    /// The entry does not hold the hash of the one before.
    #[error("does not follow the entry before it")]
    Chain,
    /// The file that should begin with this entry has another name.
    #[error("is missing: the next file begins with entry {first}")]
    File {
        /// The number in the file's name.
        first: u64,
    },
    /// The log begins with a later entry than the first, and nothing signed tells why.
    #[error(
        "is the first that is left, and no signed checkpoint tells that those before it were removed as configured"
    )]
    Beginning,
    /// A signed checkpoint names another hash.
    #[error("or one up to entry {through} was written anew: a signed checkpoint tells otherwise")]
    Rewritten {
        /// The entry that the checkpoint covers.
        through: u64,
    },
    /// A signed checkpoint covers entries that are not there.
    #[error(
        "and all after it up to entry {through} are missing at the end: a signed checkpoint covers them"
    )]
    Cut {
        /// The last entry covered.
        through: u64,
    },
    /// A checkpoint is not signed with the log's key.
    #[error("has a checkpoint that is not signed with this log's key")]
    Signature,
    /// There are more entries without a checkpoint than the writer ever leaves.
    #[error("and those after it have no signed checkpoint")]
    Unsigned,
}

/// The first thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry} {flaw}")]
pub struct Problem {
    /// The number of the entry.
    pub entry: u64,
    /// What is wrong with it.
    pub flaw: Flaw,
}

/// What a log is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Files.
    pub segments: usize,
    /// Good entries from the first one on.
    pub entries: u64,
    /// The first one's number; 0 without any.
    pub first: u64,
    /// The last good one's number; 0 without any.
    pub last: u64,
    /// The last entry that a good checkpoint covers; 0 without any.
    pub signed_through: u64,
    /// Checkpoints that were compared.
    pub checkpoints: usize,
    /// Whether the log ends in the middle of an entry: one that is being written, or a crash.
    pub is_torn: bool,
    /// Lines from the first problem on; none of them can be relied on.
    pub suspect_lines: u64,
    /// The first problem.
    pub problem: Option<Problem>,
}

/// Reads a file of checkpoints.
///
/// # Errors
/// [`AuditError::Io`].
pub fn read_checkpoints(path: &Path) -> Result<Vec<AuditCheckpoint>, AuditError> {
    checkpoints::read(path).map_err(AuditError::io("read", path))
}

/// Verifies the log in `directory` against its own checkpoints and those of `elsewhere`. `key` is the key that must have
/// signed them, 64 hex digits; without it, they must all have the same.
///
/// # Errors
/// [`AuditError::Io`]; whatever is wrong with the log itself is in the answer.
pub fn verify(
    directory: &Path,
    key: Option<&str>,
    elsewhere: &[AuditCheckpoint],
) -> Result<Verification, AuditError> {
    // Before the entries: the log may grow meanwhile, and never covers less than this.
    let own = read_checkpoints(&directory.join(CHECKPOINTS_FILE))?;
    let list = segments::list(directory).map_err(AuditError::io("list", directory))?;
    let key = key.or_else(|| own.first().map(|first| first.key.as_str()));
    let mut all: Vec<&AuditCheckpoint> = own.iter().collect();
    all.extend(elsewhere.iter().filter(|checkpoint| Some(checkpoint.key.as_str()) == key));
    all.sort_by_key(|checkpoint| checkpoint.sequence);
    let mut verifier = Verifier::new(&list, &all);
    let bad = all
        .iter()
        .find(|checkpoint| Some(checkpoint.key.as_str()) != key || !is_signed(checkpoint));
    for segment in &list {
        verifier.segment(segment).map_err(AuditError::io("read", &segment.path))?;
    }
    verifier.end(bad.map(|checkpoint| checkpoint.sequence));
    Ok(verifier.found)
}

struct Verifier<'a> {
    found: Verification,
    at: Position,
    /// Those that are still to come, the next first.
    checkpoints: VecDeque<&'a AuditCheckpoint>,
    newest: u64,
    removed_through: u64,
    is_beginning_signed: bool,
}

impl<'a> Verifier<'a> {
    fn new(list: &[SegmentPath], checkpoints: &[&'a AuditCheckpoint]) -> Self {
        Self {
            found: Verification {
                segments: list.len(),
                entries: 0,
                first: 0,
                last: 0,
                signed_through: 0,
                checkpoints: checkpoints.len(),
                is_torn: false,
                suspect_lines: 0,
                problem: None,
            },
            at: Position::START,
            newest: checkpoints.last().map_or(0, |checkpoint| checkpoint.sequence),
            checkpoints: checkpoints.iter().copied().collect(),
            removed_through: 0,
            is_beginning_signed: true,
        }
    }

    fn segment(&mut self, segment: &SegmentPath) -> io::Result<()> {
        self.end_of_segment();
        if self.found.entries == 0 && self.found.problem.is_none() {
            self.begin(segment);
        }
        if self.found.problem.is_none() && segment.first != self.at.sequence + 1 {
            self.fail(self.at.sequence + 1, Flaw::File { first: segment.first });
        }
        let mut reader = BufReader::with_capacity(1 << 18, File::open(&segment.path)?);
        let mut line = Vec::with_capacity(1024);
        let line_bytes_max = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
        while reader.by_ref().take(line_bytes_max).read_until(b'\n', &mut line)? > 0 {
            match line.strip_suffix(b"\n") {
                Some(entry) => self.line(entry),
                None => {
                    self.found.is_torn = true;
                    self.found.suspect_lines += u64::from(self.found.problem.is_some());
                }
            }
            line.clear();
        }
        Ok(())
    }

    /// A log that does not begin with its first entry begins where its files say, if something signed says so too.
    fn begin(&mut self, segment: &SegmentPath) {
        let before = segment.first.saturating_sub(1);
        if before == 0 {
            return;
        }
        let signed = self.checkpoints.iter().find(|checkpoint| checkpoint.sequence == before);
        let hash = signed.and_then(|checkpoint| EntryHash::parse(checkpoint.entry_hash.as_bytes()));
        self.is_beginning_signed = hash.is_some();
        match hash {
            Some(hash) => self.at = Position { sequence: before, hash },
            None => self.fail(segment.first, Flaw::Beginning),
        }
    }

    /// Only the last file may end in the middle of an entry.
    fn end_of_segment(&mut self) {
        if std::mem::take(&mut self.found.is_torn) && self.found.problem.is_none() {
            self.fail(self.at.sequence + 1, Flaw::NotAnEntry);
        }
    }

    fn line(&mut self, line: &[u8]) {
        if self.found.problem.is_some() {
            self.found.suspect_lines += 1;
            return;
        }
        // What follows a torn piece that is longer than any line is none either.
        if std::mem::take(&mut self.found.is_torn) {
            return self.fail_at(Flaw::NotAnEntry);
        }
        match self.at.next(line) {
            Ok(position) => self.good(line, position),
            Err(flaw) => self.fail_at(flaw),
        }
    }

    fn good(&mut self, line: &[u8], position: Position) {
        if self.found.entries == 0 {
            self.found.first = position.sequence;
        }
        if let Some(removed) = removed_through(line) {
            self.removed_through = self.removed_through.max(removed);
        }
        self.at = position;
        self.found.entries += 1;
        self.found.last = position.sequence;
        while let Some(next) = self.checkpoints.front()
            && next.sequence <= position.sequence
        {
            let is_this = next.sequence == position.sequence;
            if is_this && next.entry_hash.as_bytes() != position.hash.hex() {
                let from = self.found.signed_through.max(self.found.first.saturating_sub(1)) + 1;
                self.found.suspect_lines += 1;
                return self.fail(from, Flaw::Rewritten { through: position.sequence });
            }
            if is_this {
                self.found.signed_through = position.sequence;
            }
            self.checkpoints.pop_front();
        }
    }

    fn end(&mut self, badly_signed: Option<u64>) {
        if self.found.problem.is_none() {
            let (first, last) = (self.found.first, self.found.last);
            if self.newest > last {
                let through = self.newest;
                self.fail(self.at.sequence + 1, Flaw::Cut { through });
            } else if first > 1 && (first - 1 > self.removed_through || !self.is_beginning_signed) {
                self.fail(first, Flaw::Beginning);
            } else if last > 0 && (self.found.signed_through == 0 || self.is_unsigned()) {
                let from = self.found.signed_through.max(first.saturating_sub(1)) + 1;
                self.fail(from, Flaw::Unsigned);
            }
        }
        // A checkpoint that is not this log's proves nothing about entries, so that what they say themselves comes first.
        if let (Some(sequence), true) = (badly_signed, self.is_fault_of_checkpoint()) {
            self.fail(sequence, Flaw::Signature);
        }
    }

    fn is_unsigned(&self) -> bool {
        self.found.last.saturating_sub(self.found.signed_through) > UNSIGNED_MAX
    }

    fn is_fault_of_checkpoint(&self) -> bool {
        self.found.problem.as_ref().is_none_or(|problem| {
            matches!(problem.flaw, Flaw::Cut { .. } | Flaw::Rewritten { .. } | Flaw::Beginning)
        })
    }

    fn fail_at(&mut self, flaw: Flaw) {
        self.found.suspect_lines += 1;
        self.fail(self.at.sequence + 1, flaw);
    }

    fn fail(&mut self, entry: u64, flaw: Flaw) {
        self.found.problem = Some(Problem { entry, flaw });
    }
}
