//! The files of one log: named after the number of their first entry, so that their names are their order. Owns how they
//! are listed, made and synced.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const EXTENSION: &str = "jsonl";
/// Digits of a name: those of the largest number.
const NAME_DIGITS: usize = 20;

/// One file of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentPath {
    /// The number of its first entry, as its name says.
    pub(crate) first: u64,
    pub(crate) path: PathBuf,
}

impl SegmentPath {
    pub(crate) fn in_directory(directory: &Path, first: u64) -> Self {
        Self { first, path: directory.join(format!("{first:020}.{EXTENSION}")) }
    }
}

/// Lists the files of a log in order; none where there is no log. Files with other names are none of its.
pub(crate) fn list(directory: &Path) -> io::Result<Vec<SegmentPath>> {
    let mut segments = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(segments),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_segment = path.extension().is_some_and(|extension| extension == EXTENSION)
            && stem.len() == NAME_DIGITS;
        if let (true, Ok(first)) = (is_segment, stem.parse()) {
            segments.push(SegmentPath { first, path });
        }
    }
    segments.sort_by_key(|segment| segment.first);
    Ok(segments)
}

/// Opens a file for appending, made for this user alone where it is missing.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Makes names in a directory outlive a loss of power.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_listed_in_order_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        for first in [1_000_000, 1, 20] {
            fs::write(SegmentPath::in_directory(directory.path(), first).path, b"").unwrap();
        }
        for other in ["checkpoints.jsonl", "00000000000000000001.txt", "1.jsonl", "x"] {
            fs::write(directory.path().join(other), b"").unwrap();
        }
        let firsts: Vec<u64> =
            list(directory.path()).unwrap().iter().map(|segment| segment.first).collect();
        assert_eq!(firsts, [1, 20, 1_000_000]);
    }
}
