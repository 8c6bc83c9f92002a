//! Logs of a daemon: to standard error, which whoever starts the daemon points
//! at a file, in a form for people or for machines.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The form of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text an event.
    #[default]
    Human,
    /// One JSON object an event.
    Json,
}

/// Starts logging. `filter` is a level, or `tracing`'s directives such as `info,rbee_hive=debug`.
///
/// # Errors
/// Fails if the filter cannot be parsed or logging runs already.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let filter = parse(filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Counted(io::stderr()))
        // It would tell of a line that cannot be written where that line cannot be written, and panic over it.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
    }
    .map_err(|source| LogError::Running { source })
}

/// Log lines of this process that could not be written.
static LINES_LOST: AtomicU64 = AtomicU64::new(0);

/// Returns how many log lines of this process could not be written.
pub(crate) fn log_lines_lost() -> u64 {
    LINES_LOST.load(Ordering::Relaxed)
}

/// Counts the lines that cannot be written; a line comes in one piece.
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

/// Says whether a filter would be taken.
///
/// # Errors
/// [`LogError::Level`] and [`LogError::Filter`].
pub fn check_log_filter(filter: &str) -> Result<(), LogError> {
    parse(filter).map(drop)
}

/// A word alone is a level. `tracing` would take a misspelt one for the name of
/// a module, and log nothing.
fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let words = filter.split(',').map(str::trim).filter(|word| !word.contains(['=', '[']));
    for word in words {
        if word.is_empty() || word.parse::<LevelFilter>().is_err() {
            return Err(LogError::Level { word: word.to_owned() });
        }
    }
    EnvFilter::try_new(filter).map_err(LogError::Filter)
}

/// Logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A word is no level.
    #[error("{word:?} is not a log level; there are error, warn, info, debug, trace and off")]
    Level {
        /// The word.
        word: String,
    },
    /// The filter is not one.
    #[error("the log filter is not understood")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The process logs already.
    #[error("logging runs already")]
    Running {
        /// Where it says so.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
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

    #[test]
    fn a_misspelt_level_is_refused_and_directives_are_not() {
        for good in ["info", "OFF", "debug,hyper=warn", "info,rbee_hive[request]=trace"] {
            assert!(check_log_filter(good).is_ok(), "{good}");
        }
        for bad in ["loud", "", "info,", "info,rbee_hive", "rbee_hive=loud"] {
            assert!(check_log_filter(bad).is_err(), "{bad}");
        }
    }
}
