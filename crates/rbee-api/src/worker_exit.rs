//! How a worker's process ended, in words that programs can tell apart, and
//! whether it is started again. Owns the list of causes; never says which of
//! them a retry cures.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Declares the causes once, so that name and text cannot drift apart.
macro_rules! exit_causes {
    ($($variant:ident = $text:literal, $doc:literal;)*) => {
        /// Why a worker's process ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum ExitCause {
            $(#[doc = $doc] #[serde(rename = $text)] $variant,)*
        }

        impl ExitCause {
            /// All causes.
            pub const ALL: &'static [ExitCause] = &[$(ExitCause::$variant),*];

            /// Returns the cause as it stands on the wire and in metrics, lower_snake.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(ExitCause::$variant => $text,)* }
            }
        }
    };
}

exit_causes! {
    Stopped = "stopped", "It was asked to end.";
    Exited = "exited", "It ended with exit code 0, though nobody asked it to.";
    BadUsage = "bad_usage", "It does not know its arguments (exit code 2).";
    BadModel = "bad_model", "Its model file is not usable (exit code 65).";
    ModelUnreadable = "model_unreadable", "Its model file cannot be read (exit code 66).";
    EngineFailed = "engine_failed", "Its engine failed (exit code 70).";
    NoResources = "no_resources", "The system refused it memory or threads (exit code 71).";
    LeaseEnded = "lease_ended", "It had not heard from its hive for the time of its lease (exit code 75).";
    BadConfig = "bad_config", "It cannot run as it is configured (exit code 78).";
    Panicked = "panicked", "It panicked (exit code 101).";
    ExitCode = "exit_code", "It ended with another exit code.";
    Segfault = "segfault", "It touched memory that is not its own (SIGSEGV or SIGBUS).";
    Aborted = "aborted", "It gave itself up (SIGABRT).";
    Killed = "killed", "Somebody else killed it (SIGKILL).";
    Signalled = "signalled", "Another signal ended it.";
    OutOfMemory = "out_of_memory", "The kernel killed it because memory was short.";
    LoadTimeout = "load_timeout", "It was killed because its load took too long in all.";
    LoadStalled = "load_stalled", "It was killed because its load no longer came on.";
    Stale = "stale", "It was killed because it had fallen silent.";
    Hung = "hung", "It was killed because one step of its engine did not end.";
    NotStarted = "not_started", "Its process could not be started.";
    ProgramMissing = "program_missing", "The worker program is not there or cannot be run.";
    PortTaken = "port_taken", "No port was free for it.";
    Lost = "lost", "Its process could not be waited for.";
    Unknown = "unknown", "A former hive had started it and it said nothing, so nobody knows.";
}

impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a worker's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerExit {
    /// The class.
    pub cause: ExitCause,
    /// The exit code, where it ended with one.
    pub exit_code: Option<i32>,
    /// The signal, where one ended it.
    pub signal: Option<i32>,
    /// When, milliseconds since the epoch.
    pub at_ms: u64,
}

/// Whether a worker that failed is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Breaker {
    /// Yes, after a short pause.
    #[default]
    Closed,
    /// It has failed too often, or for a reason that a retry does not cure: one try after each long pause.
    Open,
    /// Such a try is under way, or has not been healthy for long.
    HalfOpen,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_has_the_same_name_in_json_and_in_text() {
        for cause in ExitCause::ALL {
            assert_eq!(serde_json::to_string(cause).unwrap(), format!("\"{cause}\""));
        }
    }
}
