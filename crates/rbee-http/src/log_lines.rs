//! Lines of log that cannot be forged: whatever text an event holds, it stays
//! one line, and nothing in it steers a terminal or hides what stands there.

use std::io::{self, IsTerminal as _, Stderr, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use input_validation::{sanitize_for_log, sanitize_for_terminal, sanitize_json_line};
use tracing_subscriber::fmt::MakeWriter;

use crate::log_file;
use crate::telemetry::LogFormat;

/// Standard error, for whole lines of log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogLines {
    format: LogFormat,
    is_terminal: bool,
}

impl LogLines {
    pub(crate) fn new(format: LogFormat) -> Self {
        Self { format, is_terminal: io::stderr().is_terminal() }
    }

    /// Whether lines are coloured.
    pub(crate) const fn is_terminal(self) -> bool {
        self.is_terminal
    }

    /// Returns a line made harmless, with its end.
    fn clean(self, line: &str) -> String {
        let text = line.strip_suffix('\n').unwrap_or(line);
        let clean = match (self.format, self.is_terminal) {
            (LogFormat::Json, _) => sanitize_json_line(text).into_owned(),
            (LogFormat::Human, false) => sanitize_for_log(text).into_owned(),
            (LogFormat::Human, true) => clean_but_colours(text),
        };
        format!("{clean}\n")
    }
}

/// Escapes all but changes of colour, which a line for a terminal has of its own.
fn clean_but_colours(line: &str) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut pieces = line.split("\u{1b}[");
    clean.push_str(&sanitize_for_log(pieces.next().unwrap_or_default()));
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_digit() && c != ';');
        match end.filter(|end| piece.get(*end..).is_some_and(|rest| rest.starts_with('m'))) {
            Some(end) => {
                let (colour, rest) = piece.split_at(end + 1);
                clean.push_str("\u{1b}[");
                clean.push_str(colour);
                clean.push_str(&sanitize_for_log(rest));
            }
            None => {
                clean.push_str(&sanitize_for_terminal("\u{1b}"));
                clean.push('[');
                clean.push_str(&sanitize_for_log(piece));
            }
        }
    }
    clean
}

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = LogWriter;

    fn make_writer(&'a self) -> Self::Writer {
        LogWriter { lines: *self, stderr: Counted(io::stderr()) }
    }
}

/// Takes one line, which is how an event is written.
#[derive(Debug)]
pub(crate) struct LogWriter {
    lines: LogLines,
    stderr: Counted<Stderr>,
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let clean = self.lines.clean(&String::from_utf8_lossy(line));
        self.stderr.write_all(clean.as_bytes())?;
        log_file::wrote(clean.len());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stderr.flush()
    }
}

/// Log lines of this process that could not be written.
static LINES_LOST: AtomicU64 = AtomicU64::new(0);

/// Returns how many log lines of this process could not be written.
pub(crate) fn log_lines_lost() -> u64 {
    LINES_LOST.load(Ordering::Relaxed)
}

/// Counts the lines that cannot be written; a line comes in one piece.
#[derive(Debug)]
struct Counted<W>(W);

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.0.write_all(line).inspect_err(|_| {
            LINES_LOST.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk without room.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_once() {
        let before = log_lines_lost();
        Counted(Vec::new()).write_all(b"a line\n").unwrap();
        assert_eq!(log_lines_lost(), before);
        Counted(Full).write_all(b"another\n").unwrap_err();
        assert_eq!(log_lines_lost(), before + 1);
    }

    fn clean(format: LogFormat, is_terminal: bool, line: &str) -> String {
        LogLines { format, is_terminal }.clean(line)
    }

    #[test]
    fn an_event_stays_one_line_that_says_what_it_is() {
        let hostile = "told error=x\r\n2030-01-01 INFO forged\u{1b}[2J\u{202e}\n";
        let shown = clean(LogFormat::Human, false, hostile);
        assert_eq!(shown, "told error=x\\r\\n2030-01-01 INFO forged\\u{1b}[2J\\u{202e}\n");
        let json = clean(LogFormat::Json, false, "{\"m\":\"\u{202e}\u{7f}\"}\n");
        assert_eq!(json, "{\"m\":\"\\u202e\\u007f\"}\n");
    }

    #[test]
    fn on_a_terminal_colours_are_all_that_is_left() {
        let shown = clean(
            LogFormat::Human,
            true,
            "\u{1b}[32m INFO\u{1b}[0m a\u{1b}[2Jb\u{1b}]0;t\u{7}\nc\n",
        );
        assert_eq!(shown, "\u{1b}[32m INFO\u{1b}[0m a\\u{1b}[2Jb\\u{1b}]0;t\\u{7}\\nc\n");
        assert_eq!(clean(LogFormat::Human, true, "\u{1b}[31"), "\\u{1b}[31\n");
    }
}
