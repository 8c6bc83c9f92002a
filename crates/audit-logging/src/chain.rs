//! The files of one log, as their only writer sees them. Owns that what is in them is whole entries in one chain, over
//! restarts, full disks and changes of file; decides nothing about what is written.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::entry::{LINE_BYTES_MAX, Position, whole};
use crate::error::AuditError;
use crate::segments::{self, SegmentPath, sync_directory};

/// How a log was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// New, or with a good end.
    Good,
    /// So many bytes after the last line end, cut off: a write that a crash broke off.
    Torn { bytes: u64 },
    /// Whole lines at its end are not good entries. They are left as they are.
    Damaged { lines: u64 },
}

/// What becomes of old files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) segment_bytes: u64,
    pub(crate) segments_max: usize,
    pub(crate) age_max: Duration,
}

/// The chain, open at its end.
#[derive(Debug)]
pub(crate) struct Chain {
    directory: PathBuf,
    limits: Limits,
    last: Position,
    file: File,
    path: PathBuf,
    /// Bytes of whole entries in the file.
    bytes: u64,
    /// The file may hold more than that, left by a write that failed.
    has_remains: bool,
    is_synced: bool,
}

impl Chain {
    /// Opens the log in `directory`, which is made where it is missing. A damaged one is opened at a new file.
    pub(crate) fn open(directory: &Path, limits: Limits) -> Result<(Self, Found), AuditError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(AuditError::io("create directory", directory))?;
        let list = segments::list(directory).map_err(AuditError::io("list", directory))?;
        let end = match list.last() {
            Some(segment) => {
                End::of(segment).map_err(AuditError::io("read audit log", &segment.path))?
            }
            None => End::of_nothing(),
        };
        let segment = match (list.last(), end.found) {
            (Some(last), Found::Good | Found::Torn { .. }) => last.clone(),
            (Some(_), Found::Damaged { .. }) | (None, _) => {
                SegmentPath::in_directory(directory, end.last.sequence + 1)
            }
        };
        let open = || -> io::Result<Self> {
            let file = segments::open(&segment.path)?;
            let (is_damaged, length) =
                (matches!(end.found, Found::Damaged { .. }), file.metadata()?.len());
            let bytes = if is_damaged { length } else { end.bytes };
            file.set_len(bytes)?;
            file.sync_all()?;
            sync_directory(directory)?;
            Ok(Self {
                directory: directory.to_owned(),
                limits,
                last: end.last,
                file,
                path: segment.path.clone(),
                bytes,
                has_remains: false,
                is_synced: true,
            })
        };
        let chain = open().map_err(AuditError::io("open audit log", &segment.path))?;
        Ok((chain, end.found))
    }

    /// Returns the last entry.
    pub(crate) const fn last(&self) -> Position {
        self.last
    }

    /// Appends whole lines, of which the last is at `last`. Either all of them are in the file then, or none.
    pub(crate) fn append(&mut self, lines: &[u8], last: Position) -> io::Result<()> {
        self.clear_remains()?;
        self.has_remains = true;
        self.file.write_all(lines).inspect_err(|_| self.try_to_clear())?;
        self.has_remains = false;
        self.is_synced = false;
        self.bytes = self.bytes.saturating_add(u64::try_from(lines.len()).unwrap_or(u64::MAX));
        self.last = last;
        Ok(())
    }

    /// Appends as [`Self::append`], on the disk when this returns. What is not there for sure is taken back.
    pub(crate) fn append_durably(&mut self, lines: &[u8], last: Position) -> io::Result<()> {
        let (before, bytes) = (self.last, self.bytes);
        self.append(lines, last)?;
        self.sync().inspect_err(|_| {
            (self.last, self.bytes, self.has_remains) = (before, bytes, true);
            self.try_to_clear();
        })
    }

    /// Makes all of it outlive a loss of power.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        if !self.is_synced {
            self.file.sync_data()?;
            self.is_synced = true;
        }
        Ok(())
    }

    fn clear_remains(&mut self) -> io::Result<()> {
        if self.has_remains {
            self.file.set_len(self.bytes)?;
            self.has_remains = false;
        }
        Ok(())
    }

    fn try_to_clear(&self) {
        if let Err(error) = self.file.set_len(self.bytes) {
            tracing::error!(%error, "the end of the audit log cannot be cleared; trying again later");
        }
    }

    /// Says whether the file is as large as it may become.
    pub(crate) const fn is_full(&self) -> bool {
        self.bytes >= self.limits.segment_bytes
    }

    /// Goes on in a new file.
    pub(crate) fn rotate(&mut self) -> io::Result<()> {
        self.clear_remains()?;
        self.sync()?;
        let next = SegmentPath::in_directory(&self.directory, self.last.sequence + 1);
        let file = segments::open(&next.path)?;
        sync_directory(&self.directory)?;
        (self.file, self.path, self.bytes) = (file, next.path, 0);
        Ok(())
    }

    /// Lists the files that are too many or too old, oldest first, and never the one that is being written.
    pub(crate) fn outdated(&self, now: SystemTime) -> io::Result<Vec<SegmentPath>> {
        let mut list = segments::list(&self.directory)?;
        list.retain(|segment| segment.path != self.path);
        let surplus = (list.len() + 1).saturating_sub(self.limits.segments_max);
        let is_old = |segment: &SegmentPath| {
            let modified = fs::metadata(&segment.path).and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
            age.is_some_and(|age| age > self.limits.age_max)
        };
        let old = list.iter().take_while(|segment| is_old(segment)).count();
        list.truncate(surplus.max(old));
        Ok(list)
    }

    /// Returns the numbers with which the files begin.
    pub(crate) fn firsts(&self) -> io::Result<Vec<u64>> {
        Ok(segments::list(&self.directory)?.iter().map(|segment| segment.first).collect())
    }

    /// Returns where the log lies.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// What the last file ends with.
struct End {
    last: Position,
    /// Bytes of whole lines.
    bytes: u64,
    found: Found,
}

impl End {
    const fn of_nothing() -> Self {
        Self { last: Position::START, bytes: 0, found: Found::Good }
    }

    /// Reads a file to its end. Only what follows the last line end was broken off by a crash; a whole line that is no
    /// good entry was made so, and is not for the writer to remove.
    fn of(segment: &SegmentPath) -> io::Result<Self> {
        let mut reader = BufReader::with_capacity(LINE_BYTES_MAX, File::open(&segment.path)?);
        let (mut last, mut bytes, mut bad_lines, mut torn) = (None, 0, 0, 0);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
            match line.strip_suffix(b"\n") {
                None => torn = length,
                Some(entry) => {
                    bytes += length;
                    match whole(entry) {
                        Some((_, position)) => (last, bad_lines) = (Some(position), 0),
                        None => bad_lines += 1,
                    }
                }
            }
            line.clear();
        }
        let found = match (bad_lines, torn) {
            (0, 0) => Found::Good,
            (0, bytes) => Found::Torn { bytes },
            (lines, _) => Found::Damaged { lines },
        };
        Ok(match last {
            Some(last) => Self { last, bytes, found },
            None => Self::without_entries(segment, found)?,
        })
    }

    /// A file may be new and empty: the last entry stands in the one before.
    fn without_entries(segment: &SegmentPath, found: Found) -> io::Result<Self> {
        let directory = segment.path.parent().unwrap_or(Path::new("."));
        let before = segments::list(directory)?.into_iter().rfind(|s| s.first < segment.first);
        let before = match before {
            Some(before) => Self::of(&before)?,
            None => Self::of_nothing(),
        };
        let is_whole = before.found == Found::Good && before.last.sequence + 1 == segment.first;
        let found = if is_whole { found } else { Found::Damaged { lines: 0 } };
        Ok(Self { last: before.last, bytes: 0, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Kind, Outcome};

    const LIMITS: Limits =
        Limits { segment_bytes: 2000, segments_max: 3, age_max: Duration::from_secs(3600) };

    fn add(chain: &mut Chain, count: usize) {
        for _ in 0..count {
            let mut line = Vec::new();
            let body = Event::new(Kind::ModelPull, Outcome::Success).body("s");
            let position = chain.last().append(&body, &mut line);
            chain.append_durably(&line, position).unwrap();
        }
    }

    #[test]
    fn a_chain_goes_on_after_a_restart_and_over_files() {
        let directory = tempfile::tempdir().unwrap();
        for round in 1..=3 {
            let (mut chain, found) = Chain::open(directory.path(), LIMITS).unwrap();
            assert_eq!((found, chain.last().sequence), (Found::Good, (round - 1) * 5));
            add(&mut chain, 5);
            chain.rotate().unwrap();
        }
        let (chain, found) = Chain::open(directory.path(), LIMITS).unwrap();
        assert_eq!((found, chain.last().sequence), (Found::Good, 15));
        assert_eq!(chain.firsts().unwrap(), [1, 6, 11, 16]);
        let outdated = chain.outdated(SystemTime::now()).unwrap();
        assert_eq!(outdated.iter().map(|segment| segment.first).collect::<Vec<_>>(), [1]);
        let later = SystemTime::now() + Duration::from_secs(7200);
        assert_eq!(chain.outdated(later).unwrap().len(), 3);
    }

    #[test]
    fn a_torn_end_is_cut_and_a_damaged_one_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let (mut chain, _) = Chain::open(directory.path(), LIMITS).unwrap();
        add(&mut chain, 2);
        let path = chain.path.clone();
        drop(chain);
        let good = fs::read(&path).unwrap();
        for cut in 1..good.len() / 2 - 1 {
            fs::write(&path, &good[..good.len() - cut]).unwrap();
            let (chain, found) = Chain::open(directory.path(), LIMITS).unwrap();
            assert_eq!(chain.last().sequence, 1);
            assert!(matches!(found, Found::Torn { .. }), "{cut}");
            assert_eq!(fs::read(&path).unwrap().len(), good.len() / 2);
        }
        fs::write(&path, [good.as_slice(), b"what is this\n"].concat()).unwrap();
        let (mut chain, found) = Chain::open(directory.path(), LIMITS).unwrap();
        assert_eq!((found, chain.last().sequence), (Found::Damaged { lines: 1 }, 2));
        assert_ne!(chain.path, path);
        add(&mut chain, 1);
        assert!(fs::read(&path).unwrap().ends_with(b"what is this\n"));
    }
}
