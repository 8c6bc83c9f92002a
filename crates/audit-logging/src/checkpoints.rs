//! The checkpoints of one log, beside it in `checkpoints.jsonl`. Owns how they are kept: the one at the end of each file
//! for as long as the file after it is there, and the newest of the others.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rbee_api::audit::AuditCheckpoint;

use crate::segments::{self, sync_directory};

/// Where they lie, in the directory of the log.
pub(crate) const CHECKPOINTS_FILE: &str = "checkpoints.jsonl";
/// Checkpoints kept besides those at the ends of files: a day and a half of one a minute.
const KEPT: usize = 2048;

/// The file of checkpoints of a log that is being written.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    path: PathBuf,
    all: Vec<AuditCheckpoint>,
}

impl Checkpoints {
    /// Reads what is there. An end that is no whole line, left by a crash, is cut off.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(CHECKPOINTS_FILE);
        let all = read(&path)?;
        let mut checkpoints = Self { path, all };
        checkpoints.cut_torn_end()?;
        Ok(checkpoints)
    }

    fn cut_torn_end(&mut self) -> io::Result<()> {
        let content = match fs::read(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if content.last().is_some_and(|byte| *byte != b'\n') {
            let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            segments::open(&self.path)?.set_len(u64::try_from(whole).unwrap_or(0))?;
        }
        Ok(())
    }

    pub(crate) fn newest(&self) -> Option<&AuditCheckpoint> {
        self.all.last()
    }

    /// Adds one, on the disk when this returns.
    pub(crate) fn add(&mut self, checkpoint: AuditCheckpoint) -> io::Result<()> {
        let mut line = serde_json::to_vec(&checkpoint).map_err(io::Error::from)?;
        line.push(b'\n');
        let mut file = segments::open(&self.path)?;
        let before = file.metadata()?.len();
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        if written.is_err() {
            // Half a line would hide the next one.
            file.set_len(before)?;
        }
        written?;
        self.all.push(checkpoint);
        Ok(())
    }

    /// Forgets those that nobody needs any more. `firsts` are the numbers with which files begin.
    pub(crate) fn prune(&mut self, directory: &Path, firsts: &[u64]) -> io::Result<()> {
        let boundaries: BTreeSet<u64> =
            firsts.iter().map(|first| first.saturating_sub(1)).collect();
        let oldest = boundaries.first().copied().unwrap_or(0);
        let is_kept = |checkpoint: &AuditCheckpoint| checkpoint.sequence >= oldest;
        let others = self.all.iter().filter(|c| is_kept(c) && !boundaries.contains(&c.sequence));
        let mut surplus = others.count().saturating_sub(KEPT);
        let before = self.all.len();
        if surplus < KEPT && self.all.iter().all(is_kept) {
            return Ok(());
        }
        self.all.retain(|checkpoint| {
            let is_other = !boundaries.contains(&checkpoint.sequence);
            if is_kept(checkpoint) && is_other && surplus > 0 {
                surplus -= 1;
                return false;
            }
            is_kept(checkpoint)
        });
        if self.all.len() == before {
            return Ok(());
        }
        let mut lines = Vec::new();
        for checkpoint in &self.all {
            serde_json::to_writer(&mut lines, checkpoint).map_err(io::Error::from)?;
            lines.push(b'\n');
        }
        replace(&self.path, &lines)?;
        sync_directory(directory)
    }
}

/// Puts new content in the place of a file, whole or not at all.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    match fs::remove_file(&draft) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = segments::open(&draft)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

/// Reads a file of checkpoints, oldest first. Lines that are none are passed over; the end may be torn.
pub(crate) fn read(path: &Path) -> io::Result<Vec<AuditCheckpoint>> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let lines = content.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(sequence: u64) -> AuditCheckpoint {
        let text = |c: &str| c.to_owned();
        AuditCheckpoint {
            service: text("s"),
            sequence,
            entry_hash: text("h"),
            timestamp: text("t"),
            key: text("k"),
            signature: text("x"),
        }
    }

    #[test]
    fn a_torn_end_is_cut_and_the_next_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::open(directory.path()).unwrap();
        checkpoints.add(checkpoint(1)).unwrap();
        let path = directory.path().join(CHECKPOINTS_FILE);
        segments::open(&path).unwrap().write_all(b"{\"service\":\"s\",\"seq").unwrap();
        let mut checkpoints = Checkpoints::open(directory.path()).unwrap();
        assert_eq!(checkpoints.newest(), Some(&checkpoint(1)));
        checkpoints.add(checkpoint(2)).unwrap();
        assert_eq!(read(&path).unwrap(), [checkpoint(1), checkpoint(2)]);
    }

    #[test]
    fn the_ends_of_files_are_kept_and_the_rest_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::open(directory.path()).unwrap();
        let many = 2 * KEPT as u64 + 10;
        checkpoints.all = (1..=many).map(checkpoint).collect();
        checkpoints.prune(directory.path(), &[6, 11]).unwrap();
        let kept: Vec<u64> = checkpoints.all.iter().map(|c| c.sequence).collect();
        assert_eq!(kept.len(), KEPT + 2);
        assert_eq!((kept[0], kept[1], *kept.last().unwrap()), (5, 10, many));
        let path = directory.path().join(CHECKPOINTS_FILE);
        assert_eq!(read(&path).unwrap(), checkpoints.all);
    }
}
