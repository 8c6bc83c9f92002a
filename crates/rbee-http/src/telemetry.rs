//! Logs of a daemon: to standard error, which whoever starts the daemon points
//! at a file, in a form for people or for machines.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

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
    let filter = EnvFilter::try_new(filter).map_err(LogError::Filter)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Human => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).try_init(),
    }
    .map_err(|source| LogError::Running { source })
}

/// Logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
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
