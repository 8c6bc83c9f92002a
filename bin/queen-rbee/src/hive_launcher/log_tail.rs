//! The last words of a hive that did not start, for the queen's own log.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use input_validation::sanitize_for_log;
use rbee_home::{Daemon, Home};

/// How much of the end of a log is told.
const BYTES_MAX: u64 = 2048;
/// How many lines of it.
const LINES_MAX: usize = 8;

/// Reads the last lines a hive wrote after `start`, made harmless for a log.
pub(super) async fn log_tail(home: &Home, start: u64) -> String {
    let path = home.daemon_log(Daemon::Hive);
    let read = tokio::task::spawn_blocking(move || read_tail(&path, start));
    match read.await {
        Ok(Ok(tail)) if !tail.is_empty() => tail,
        Ok(Ok(_)) => "(nothing)".to_owned(),
        Ok(Err(error)) => format!("(unreadable: {error})"),
        Err(_) => "(unreadable)".to_owned(),
    }
}

fn read_tail(path: &Path, start: u64) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(end.saturating_sub(BYTES_MAX))))?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LINES_MAX)..).unwrap_or_default();
    Ok(sanitize_for_log(&last.join(" | ")).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_is_short_harmless_and_of_this_start() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "an earlier start\nfirst\n\u{1b}[31msecond\n").unwrap();
        assert_eq!(read_tail(&path, 17).unwrap(), "first | \\u{1b}[31msecond");
        let long: String = (0..5000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, long).unwrap();
        let tail = read_tail(&path, 0).unwrap();
        assert!(tail.starts_with("line 4992 | ") && tail.ends_with("| line 4999"), "{tail}");
    }
}
