//! Logs of a daemon: to standard error, which whoever starts the daemon points
//! at a file, in a form for people or for machines.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::log_lines::LogLines;

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

/// What is logged: the keys under `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// `human` or `json`. Default `human`.
    pub format: LogFormat,
    /// A level, or `tracing`'s directives such as `info,rbee_hive=debug`. Default `info`.
    pub level: String,
    /// MiB after which a log in the home directory is begun anew, 1 to 10240; the one before is kept. Default 64.
    pub max_mib: u64,
}

impl LogSettings {
    /// What `max_mib` may be.
    pub const MAX_MIB: RangeInclusive<u64> = 1..=10_240;
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { format: LogFormat::Human, level: "info".to_owned(), max_mib: 64 }
    }
}

/// Starts logging.
///
/// # Errors
/// Fails if the level cannot be parsed or logging runs already.
pub fn init_logs(settings: &LogSettings) -> Result<(), LogError> {
    let filter = parse(&settings.level)?;
    let lines = LogLines::new(settings.format);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        // It would tell of a line that cannot be written where that line cannot be written, and panic over it.
        .log_internal_errors(false)
        .with_ansi(lines.is_terminal());
    match settings.format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
    }
    .map_err(|source| LogError::Running { source })
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
