//! Why a command failed: the words and the JSON form. Prints nothing.

mod advice;

use std::error::Error;
use std::io;
use std::path::PathBuf;

use audit_logging::AuditError;
use input_validation::ValidationError;
use rbee_api::error::ErrorDetail;
use rbee_home::{ConfigError, ExitStatus, HomeError};
use rbee_http::CallError;
use rbee_tls::TlsError;
use secrets_management::SecretError;
use serde_json::{Value, json};

use crate::interrupt::Stop;

/// Says why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeeperError {
    /// What was typed cannot be meant.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to type instead.
        hint: String,
    },
    /// Something typed has the wrong form.
    #[error("{what} cannot be used")]
    Invalid {
        /// What was typed, as the user knows it.
        what: String,
        /// What is wrong with it.
        #[source]
        source: ValidationError,
    },
    /// The file to add is not there.
    #[error("there is no file {}", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
    },
    /// What is to be added as a file is something else.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What it is called.
        path: PathBuf,
    },
    /// No queen runs, and the command does not start one.
    #[error("no queen runs on this computer")]
    NoQueen,
    /// Nothing runs that could be stopped.
    #[error("no worker and no model in memory is called {target}")]
    NoSuchWorker {
        /// What was typed.
        target: String,
    },
    /// The queen, or what stands behind it, refused.
    #[error("{}", .0.message)]
    Refused(Box<ErrorDetail>),
    /// Nobody answers at the queen's address.
    #[error("cannot reach the queen at {url}: {reason}")]
    Unreachable {
        /// The address.
        url: String,
        /// The operating system's words.
        reason: String,
    },
    /// The queen took too long.
    #[error("no answer within {seconds} s")]
    TimedOut {
        /// How long it was given.
        seconds: u64,
    },
    /// Something else answers at the queen's address.
    #[error("what answers at {url} is not a queen")]
    Foreign {
        /// The address.
        url: String,
        /// What it said.
        #[source]
        source: CallError,
    },
    /// A stream ended before its end.
    #[error("the answer broke off")]
    BrokenOff,
    /// The answer is not what this program knows.
    #[error("cannot understand the answer")]
    Garbled(#[source] serde_json::Error),
    /// The HTTP client could not be set up.
    #[error("cannot set up the connection")]
    Client(#[source] CallError),
    /// The certificates by which the queen is known cannot be used.
    #[error("cannot tell the queen from a stranger")]
    Tls(#[source] TlsError),
    /// There is no certificate by which a queen on another computer, or a server under measurement, is known.
    #[error("{} is not there, and without it the server cannot be told from a stranger", path.display())]
    NoCa {
        /// The file.
        path: PathBuf,
    },
    /// The queen's program is not where it belongs.
    #[error("cannot find {}", path.display())]
    QueenMissing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The queen's program could not be started.
    #[error("cannot start queen-rbee")]
    QueenSpawn(#[source] io::Error),
    /// The queen ended while it was being waited for.
    #[error("queen-rbee could not start: {reason}")]
    QueenDied {
        /// The last words in its log.
        reason: String,
        /// What its log says to do.
        hint: String,
        /// Its exit code, where that says something.
        status: ExitStatus,
    },
    /// The queen did not get ready, or did not end.
    #[error("queen-rbee {verb} for {seconds} s and is not done")]
    QueenSlow {
        /// What it does.
        verb: &'static str,
        /// How long it was given.
        seconds: u64,
    },
    /// The home directory cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The settings cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The token cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A log file cannot be read.
    #[error("cannot read {}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An audit log cannot be read.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// There is no such audit log.
    #[error("there is no audit log of {service} here")]
    NoAuditLog {
        /// What was asked for.
        service: String,
    },
    /// Audit logs are not as they were written.
    #[error("{logs} audit logs are not as they were written")]
    AuditBroken {
        /// How many.
        logs: usize,
    },
    /// An endpoint answers no request at all.
    #[error("{name} does not answer as an OpenAI endpoint: {reason}")]
    EndpointUnusable {
        /// What the report calls it.
        name: String,
        /// The first failure.
        reason: String,
    },
    /// A measurement is whole, but not all of its requests were answered.
    #[error("{failed} requests failed: {why}")]
    BenchFailures {
        /// How many.
        failed: usize,
        /// How many of which kind, where, with an example.
        why: String,
    },
    /// The file for a report cannot be written.
    #[error("cannot write {}", path.display())]
    ReportFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Standard input cannot be read.
    #[error("cannot read standard input")]
    Input(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The process cannot be set up.
    #[error("cannot {action}")]
    Setup {
        /// What was being done, as a verb.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A signal asked to stop.
    #[error("{0}")]
    Stopped(Stop),
}

impl KeeperError {
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// Takes over what clap says about the arguments: a paragraph of what is wrong, then perhaps tips.
    pub(crate) fn from_arguments(text: &str) -> Self {
        let wrong: Vec<&str> =
            text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        let message = wrong.join(" ");
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        let tip = text.lines().find_map(|line| line.trim().strip_prefix("tip: "));
        Self::usage(message, tip.unwrap_or("`rbee --help` tells what can be typed"))
    }

    /// Takes over why a call to the queen at `url` failed; `seconds` is the time it was given.
    pub(crate) fn from_call(error: CallError, url: &str, seconds: u64) -> Self {
        let url = url.to_owned();
        match error {
            CallError::Refused(detail) => Self::Refused(detail),
            CallError::Unreachable(source) => {
                Self::Unreachable { url, reason: root_cause(&source) }
            }
            CallError::TimedOut => Self::TimedOut { seconds },
            CallError::Foreign { .. } => Self::Foreign { url, source: error },
            CallError::Setup(_) | CallError::Tls(_) => Self::Client(error),
        }
    }

    /// Answers whether the reader of standard output has gone, of which nobody wants to hear.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Returns the error as it is printed with `--json`.
    pub(crate) fn to_json(&self) -> Value {
        let mut error = json!({
            "message": chain(self),
            "code": self.code(),
            "hint": self.hint(),
            "exit_code": self.exit_code(),
        });
        if let (Self::Refused(detail), Some(fields)) = (self, error.as_object_mut()) {
            fields.insert("type".to_owned(), json!(detail.kind));
            fields.insert("param".to_owned(), json!(detail.param));
            fields.insert("request_id".to_owned(), json!(detail.request_id));
            fields.insert("retryable".to_owned(), json!(detail.retryable));
            fields.insert("details".to_owned(), json!(detail.details));
        }
        json!({ "error": error })
    }
}

/// Joins an error and its sources.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Returns the innermost source, which is the operating system's word on the matter.
pub(crate) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use rbee_api::error::ErrorCode;

    use super::*;

    #[test]
    fn what_clap_says_becomes_one_line_and_its_tip_the_hint() {
        let error = KeeperError::from_arguments(
            "error: these are missing:\n  <A>\n  <B>\n\n  tip: type them\n\nUsage: rbee\n",
        );
        assert_eq!(error.to_string(), "these are missing: <A> <B>");
        assert_eq!(error.hint().as_deref(), Some("type them"));
        let error = KeeperError::from_arguments("error: no\n\nUsage: rbee\n");
        assert!(error.hint().unwrap().contains("rbee --help"));
    }

    #[test]
    fn the_json_form_keeps_what_the_queen_said() {
        let detail =
            ErrorDetail::new(ErrorCode::ModelNotFound, "no such model").with_param("model");
        let error = KeeperError::Refused(Box::new(detail)).to_json();
        assert_eq!(error["error"]["message"], "no such model");
        assert_eq!(error["error"]["param"], "model");
        assert_eq!(error["error"]["exit_code"], 1);
        assert!(error["error"]["hint"].as_str().unwrap().contains("rbee list"));
    }
}
