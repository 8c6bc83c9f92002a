//! Why the worker ends, and the exit code that tells its hive.

use std::error::Error;
use std::process::ExitCode;

/// The model file is missing or cannot be read: `EX_NOINPUT`.
const EXIT_NO_INPUT: u8 = 66;
/// The model file is not a usable model: `EX_DATAERR`.
const EXIT_BAD_MODEL: u8 = 65;
/// The arguments are wrong.
const EXIT_USAGE: u8 = 2;
/// A defect, such as a panic of the engine: `EX_SOFTWARE`.
const EXIT_SOFTWARE: u8 = 70;
/// Memory, threads or other means of the system are short: `EX_OSERR`.
const EXIT_SYSTEM: u8 = 71;
/// The worker has been without a hive for too long: `EX_TEMPFAIL`.
const EXIT_LEASE_OVER: u8 = 75;
/// What the hive handed over cannot be used: `EX_CONFIG`.
const EXIT_CONFIG: u8 = 78;

/// Writes an error and what caused it in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Why the worker cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The arguments contradict each other or lack something.
    #[error("wrong usage: {reason}")]
    Usage {
        /// What is wrong.
        reason: String,
    },
    /// No socket was handed over.
    #[error("no listening socket was passed")]
    NoListener,
    /// The socket that was handed over cannot be used.
    #[error("the passed listening socket cannot be used: {reason}")]
    BadListener {
        /// What is wrong with it.
        reason: String,
    },
    /// Standard input does not hold the secrets.
    #[error("standard input does not hold this worker's secrets: {reason}")]
    Secrets {
        /// What is wrong; never what was read.
        reason: String,
    },
    /// Something of rbee's own set-up failed.
    #[error("cannot start {what}")]
    Setup {
        /// What was to be started.
        what: &'static str,
        /// Why it was not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The model that was asked about does not fit.
    #[error("the model does not fit into the memory that is free")]
    DoesNotFit,
    /// No hive has answered for the time of the lease.
    #[error("no hive has answered for as long as the worker goes on without one")]
    LeaseOver,
    /// The engine ended.
    #[error("the engine failed")]
    Engine(#[from] EngineFailure),
}

/// Why the engine thread ended on its own.
#[derive(Debug, thiserror::Error)]
pub enum EngineFailure {
    /// The model could not be loaded.
    #[error("the model was not loaded")]
    Load(#[from] LoadFailure),
    /// Its code panicked.
    #[error("the engine thread panicked")]
    Panicked,
    /// A step went wrong in a way that spoils all that follow.
    #[error("a computation failed: {reason}")]
    Computation {
        /// What the backend said.
        reason: String,
    },
    /// A step has taken longer than any step may.
    #[error("the engine thread hangs")]
    Hung,
}

/// Why a model was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadFailure {
    /// The file is missing or cannot be read.
    #[error("the model file cannot be read: {reason}")]
    Unreadable {
        /// What the operating system said.
        reason: String,
    },
    /// The file is no model, damaged, or of an unknown kind.
    #[error("the model file is not usable: {reason}")]
    Invalid {
        /// What the backend said.
        reason: String,
    },
    /// A GPU was asked for that is not there.
    #[error("there is no GPU {name:?} here; there are: {there}")]
    NoSuchDevice {
        /// The name asked for.
        name: String,
        /// The names of those that are there.
        there: String,
    },
    /// There is not enough memory, or another means of the system.
    #[error("the model cannot be run here: {reason}")]
    Resources {
        /// What the backend said.
        reason: String,
    },
    /// The worker was told to stop meanwhile.
    #[error("the load was stopped")]
    Stopped,
}

impl WorkerError {
    /// Returns the exit code that tells the hive what happened.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_number())
    }

    /// Returns the same as a number.
    pub(crate) const fn exit_number(&self) -> u8 {
        match self {
            Self::Usage { .. } | Self::NoListener => EXIT_USAGE,
            Self::BadListener { .. } | Self::Secrets { .. } => EXIT_CONFIG,
            Self::Setup { .. } | Self::DoesNotFit => EXIT_SYSTEM,
            Self::LeaseOver => EXIT_LEASE_OVER,
            Self::Engine(EngineFailure::Load(failure)) => match failure {
                LoadFailure::Unreadable { .. } => EXIT_NO_INPUT,
                LoadFailure::Invalid { .. } => EXIT_BAD_MODEL,
                LoadFailure::NoSuchDevice { .. } => EXIT_CONFIG,
                LoadFailure::Resources { .. } | LoadFailure::Stopped => EXIT_SYSTEM,
            },
            Self::Engine(
                EngineFailure::Panicked | EngineFailure::Computation { .. } | EngineFailure::Hung,
            ) => EXIT_SOFTWARE,
        }
    }

    /// Returns what to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Usage { .. } => "run `llm-worker-rbee --help`",
            Self::NoListener | Self::BadListener { .. } | Self::Secrets { .. } => {
                "a worker is started by rbee-hive; use `rbee run -m MODEL`"
            }
            Self::LeaseOver => "start rbee-hive again; it starts workers as they are needed",
            Self::DoesNotFit => "use fewer slots, a shorter context or a smaller model",
            Self::Setup { .. } => "look at the system's limits on threads, files and memory",
            Self::Engine(EngineFailure::Load(failure)) => match failure {
                LoadFailure::Unreadable { .. } => "check the path and its permissions",
                LoadFailure::Invalid { .. } => "fetch the model again, or another one",
                LoadFailure::NoSuchDevice { .. } => {
                    "name another in --device, or build with the feature of its kind, such as vulkan"
                }
                LoadFailure::Resources { .. } | LoadFailure::Stopped => {
                    "use fewer slots, a shorter context or a smaller model"
                }
            },
            Self::Engine(
                EngineFailure::Panicked | EngineFailure::Computation { .. } | EngineFailure::Hung,
            ) => "the lines above say where; please report it",
        }
    }
}
