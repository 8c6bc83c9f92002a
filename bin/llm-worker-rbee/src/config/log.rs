//! What the worker logs, and which file its hive has given it to log to.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rbee_http::{LogError, LogFormat, LogSettings, bound_log, init_logs};

/// The arguments of the log.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArguments {
    /// Form of the log on standard error
    #[arg(long, value_enum, default_value = "human", env = "RBEE_LOG_FORMAT")]
    log_format: LogForm,
    /// Level of the log, or directives such as info,llm_worker_rbee=debug
    #[arg(long, default_value = "info", env = "RBEE_LOG")]
    log_level: String,
    /// The file that standard error is, if it is to be bounded
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Mebibytes after which that file is begun anew; the one before is kept
    #[arg(long, value_name = "MIB", default_value_t = LogSettings::default().max_mib, value_parser = clap::value_parser!(u64).range(LOG_MIB))]
    log_max_mib: u64,
}

const LOG_MIB: std::ops::RangeInclusive<u64> = LogSettings::MAX_MIB;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogForm {
    Human,
    Json,
}

impl LogArguments {
    /// Starts logging.
    pub(crate) fn start(&self) -> Result<(), LogError> {
        let format = match self.log_format {
            LogForm::Human => LogFormat::Human,
            LogForm::Json => LogFormat::Json,
        };
        let (level, max_mib) = (self.log_level.clone(), self.log_max_mib);
        init_logs(&LogSettings { format, level, max_mib })?;
        if let Some(file) = &self.log_file {
            bound_log(file, max_mib);
        }
        Ok(())
    }
}
