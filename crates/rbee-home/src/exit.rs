//! How a program ends: the table of exit codes, and the form in which the reason is told. Never prints and never exits.

use std::error::Error;
use std::process::ExitCode;

/// What a program's exit code says. The numbers are those of `sysexits.h`, which scripts and service managers know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// Everything asked for was done.
    Success,
    /// Failed for a reason without a number of its own.
    Failure,
    /// The command line is wrong.
    Usage,
    /// The input is wrong, such as a model file that is none.
    DataError,
    /// Something needed is not there: a port is taken, a daemon cannot be reached.
    Unavailable,
    /// The operating system refused something that it usually grants, such as memory.
    OsError,
    /// Trying again later may help, such as when another daemon holds the home directory.
    TryAgain,
    /// A file or directory may not be used by this user.
    NoPermission,
    /// The configuration is wrong.
    Config,
}

impl ExitStatus {
    /// Returns the number.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::Usage => 2,
            Self::DataError => 65,
            Self::Unavailable => 69,
            Self::OsError => 71,
            Self::TryAgain => 75,
            Self::NoPermission => 77,
            Self::Config => 78,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// Writes out why a program ends: `error:` with the error and all its sources on one line, and a `hint:` line that says
/// what to do. Ends with a line end.
#[must_use]
pub fn report_error(error: &dyn Error, hint: Option<&str>) -> String {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text.push('\n');
    if let Some(hint) = hint {
        text.push_str("hint: ");
        text.push_str(hint);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open {name}")]
    struct Outer {
        name: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn a_report_names_every_cause_once_and_then_the_way_out() {
        let source = std::io::Error::other("disk on fire");
        let report = report_error(&Outer { name: "models.db", source }, Some("call someone"));
        assert_eq!(report, "error: cannot open models.db: disk on fire\nhint: call someone\n");
    }
}
