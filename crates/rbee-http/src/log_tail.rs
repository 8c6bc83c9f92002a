//! Where a log is begun to be read that is to show its last lines. One that was begun anew lately has them in the file
//! before it, too.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::log_file::former_log;

/// A file is searched backwards in blocks of this size.
const BLOCK_BYTES: u64 = 64 * 1024;

/// Opens a log where its last `lines` lines begin. Where they begin in what was moved aside, that file is opened, and the log
/// goes on in the one at `path`. Blocks.
///
/// # Errors
/// The operating system's reason why the log at `path` cannot be read.
pub fn open_at_last_lines(path: &Path, lines: usize) -> io::Result<File> {
    let mut file = File::open(path)?;
    let missing = seek_to_last_lines(&mut file, lines)?;
    if missing > 0
        && let Ok(mut before) = File::open(former_log(path))
    {
        seek_to_last_lines(&mut before, missing)?;
        return Ok(before);
    }
    Ok(file)
}

/// Goes to where the last `lines` lines begin, and returns how many of them the file does not have.
fn seek_to_last_lines(file: &mut File, lines: usize) -> io::Result<usize> {
    let length = file.seek(SeekFrom::End(0))?;
    let (mut left, mut end) = (lines, length);
    while end > 0 && left > 0 {
        let start = end.saturating_sub(BLOCK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut block = Vec::new();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        let breaks = block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
        // The break that ends the file ends its last line; it begins none.
        let begins = breaks.map(|(index, _)| start + index as u64 + 1).filter(|at| *at < length);
        for begin in begins {
            left -= 1;
            if left == 0 {
                file.seek(SeekFrom::Start(begin))?;
                return Ok(0);
            }
        }
        end = start;
    }
    if lines == 0 {
        file.seek(SeekFrom::Start(length))?;
        return Ok(0);
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(left - usize::from(length > 0))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn last(path: &Path, lines: usize) -> String {
        let mut text = String::new();
        open_at_last_lines(path, lines).unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn the_last_lines_are_found_whatever_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let long = "x".repeat(50_000);
        let three = format!("{long}1\n{long}2\n{long}3\n");
        let two = format!("{long}2\n{long}3\n");
        for (content, lines, expected) in [
            ("", 3, ""),
            ("a\nb\nc\n", 1, "c\n"),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\n", 2, "a\nb\n"),
            ("a\nb\n", 5, "a\nb\n"),
            ("a\nb\n", 0, ""),
            ("\n\n\n", 1, "\n"),
            (&three, 2, &two),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(last(&path, lines), expected, "{content:.9} {lines}");
        }
    }

    #[test]
    fn lines_that_were_moved_aside_are_among_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(former_log(&path), "1\n2\n3\n").unwrap();
        for (content, lines, expected) in [
            ("4\n5\n", 2, "4\n5\n"),
            ("4\n5\n", 3, "3\n"),
            ("4\n5\n", 9, "1\n2\n3\n"),
            ("", 1, "3\n"),
            ("", 0, ""),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(last(&path, lines), expected, "{content:?} {lines}");
        }
    }
}
