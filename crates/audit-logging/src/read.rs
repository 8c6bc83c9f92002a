//! Reading logs: which there are, their entries from the first to the last, their end, and what comes after it. Checks
//! nothing; that is the verifier's.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::entry::LINE_BYTES_MAX;
use crate::error::AuditError;
use crate::held::HELD_DIRECTORY;
use crate::segments::{self, SegmentPath};

/// Lists the logs in the directory of all logs, by their directories' names: those of daemons, and below the one of
/// worker programs those of workers.
///
/// # Errors
/// [`AuditError::Io`].
pub fn services(audit_directory: &Path) -> Result<Vec<String>, AuditError> {
    let mut found = Vec::new();
    for name in directories(audit_directory)? {
        let directory = audit_directory.join(&name);
        let is_log =
            !segments::list(&directory).map_err(AuditError::io("list", &directory))?.is_empty();
        if is_log {
            found.push(name);
        } else if name != HELD_DIRECTORY {
            found.extend(
                directories(&directory)?.into_iter().map(|inner| format!("{name}/{inner}")),
            );
        }
    }
    Ok(found)
}

fn directories(directory: &Path) -> Result<Vec<String>, AuditError> {
    let list = || -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    };
    list().map_err(AuditError::io("list", directory))
}

/// The lines of one log, oldest first.
#[derive(Debug)]
pub struct LogReader {
    left: std::vec::IntoIter<SegmentPath>,
    open: Option<BufReader<File>>,
}

impl LogReader {
    /// Opens the log in `directory`.
    ///
    /// # Errors
    /// [`AuditError::Io`].
    pub fn open(directory: &Path) -> Result<Self, AuditError> {
        let list = segments::list(directory).map_err(AuditError::io("list", directory))?;
        Ok(Self { left: list.into_iter(), open: None })
    }

    /// Reads the next whole line, without its line end; `None` after the last one.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn next_line(&mut self) -> io::Result<Option<String>> {
        loop {
            let Some(reader) = &mut self.open else {
                let Some(next) = self.left.next() else { return Ok(None) };
                self.open = Some(BufReader::new(File::open(&next.path)?));
                continue;
            };
            let mut line = Vec::new();
            let longest = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
            reader.by_ref().take(longest).read_until(b'\n', &mut line)?;
            match line.strip_suffix(b"\n") {
                Some(line) => return Ok(Some(String::from_utf8_lossy(line).into_owned())),
                None => self.open = None,
            }
        }
    }
}

/// The end of a log, and what is added to it.
#[derive(Debug)]
pub struct Follower {
    directory: PathBuf,
    segment: Option<SegmentPath>,
    position: u64,
}

impl Follower {
    /// Starts at the end of the log in `directory`, and returns its last lines.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn at_end(directory: &Path, lines: usize) -> io::Result<(Self, Vec<String>)> {
        let list = segments::list(directory)?;
        let mut last: Vec<String> = Vec::new();
        let mut follower = Self { directory: directory.to_owned(), segment: None, position: 0 };
        for segment in list.into_iter().rev() {
            let is_newest = follower.segment.is_none();
            if !is_newest && last.len() >= lines {
                break;
            }
            let mut whole = Vec::new();
            File::open(&segment.path)?.read_to_end(&mut whole)?;
            let (read, bytes) = whole_lines(&whole);
            if is_newest {
                follower.position = bytes;
                follower.segment = Some(segment);
            }
            let skipped = read.len().saturating_sub(lines.saturating_sub(last.len()));
            last.splice(0..0, read.into_iter().skip(skipped));
        }
        Ok((follower, last))
    }

    /// Reads the lines that were added since the last call.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn new_lines(&mut self) -> io::Result<Vec<String>> {
        // Listed first: what the newer file follows is complete then.
        let list = segments::list(&self.directory)?;
        let mut lines = Vec::new();
        let current = self.segment.as_ref().map_or(0, |segment| segment.first);
        for segment in list.into_iter().filter(|segment| segment.first >= current) {
            if segment.first != current {
                self.position = 0;
            }
            let mut file = File::open(&segment.path)?;
            file.seek(SeekFrom::Start(self.position))?;
            let mut added = Vec::new();
            file.read_to_end(&mut added)?;
            let (read, bytes) = whole_lines(&added);
            self.position += bytes;
            self.segment = Some(segment);
            lines.extend(read);
        }
        Ok(lines)
    }
}

/// Returns the whole lines of `content` and the bytes they take.
fn whole_lines(content: &[u8]) -> (Vec<String>, u64) {
    let end = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(content.get(..end).unwrap_or_default());
    (text.lines().map(str::to_owned).collect(), u64::try_from(end).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_end_and_what_is_added_are_read_over_files() {
        let directory = tempfile::tempdir().unwrap();
        let write = |first, text: &str| {
            let path = SegmentPath::in_directory(directory.path(), first).path;
            segments::open(&path).unwrap().write_all(text.as_bytes()).unwrap();
        };
        write(1, "a\nb\nc\n");
        write(4, "d\ntor");
        let (mut follower, last) = Follower::at_end(directory.path(), 3).unwrap();
        assert_eq!(last, ["b", "c", "d"]);
        assert_eq!(follower.new_lines().unwrap(), Vec::<String>::new());
        write(4, "n\ne\n");
        write(6, "f\n");
        assert_eq!(follower.new_lines().unwrap(), ["torn", "e", "f"]);
        write(6, "g\n");
        assert_eq!(follower.new_lines().unwrap(), ["g"]);
        let mut reader = LogReader::open(directory.path()).unwrap();
        let mut all = Vec::new();
        while let Some(line) = reader.next_line().unwrap() {
            all.push(line);
        }
        assert_eq!(all, ["a", "b", "c", "d", "torn", "e", "f", "g"]);
    }

    #[test]
    fn logs_are_found_and_what_is_held_for_others_is_none() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(services(&root.path().join("none")).unwrap(), Vec::<String>::new());
        for name in ["queen-rbee", "llm-worker-rbee/w-1", "llm-worker-rbee/w-2", "held"] {
            let directory = root.path().join(name);
            fs::create_dir_all(&directory).unwrap();
            let file = if name == "held" { "x.jsonl" } else { "00000000000000000001.jsonl" };
            fs::write(directory.join(file), b"").unwrap();
        }
        assert_eq!(
            services(root.path()).unwrap(),
            ["llm-worker-rbee/w-1", "llm-worker-rbee/w-2", "queen-rbee"]
        );
    }
}
