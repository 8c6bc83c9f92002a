//! The class of a process's end, told from its exit status and from who ended it. Pure; reads nothing that the worker
//! wrote, except for the code it chose to end with.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rbee_api::worker_exit::{ExitCause, WorkerExit};
use rustix::process::Signal;

use crate::clock::wall_clock_ms;

/// Exit code of a worker that does not know its arguments.
const EXIT_USAGE: i32 = 2;
/// Exit code of a worker whose model file is not usable (`EX_DATAERR`).
pub(super) const EXIT_BAD_MODEL: i32 = 65;
/// Exit code of a worker that cannot read its model file (`EX_NOINPUT`).
pub(super) const EXIT_NO_INPUT: i32 = 66;
/// Exit code of a worker whose engine failed, or did not end a step (`EX_SOFTWARE`).
pub(super) const EXIT_SOFTWARE: i32 = 70;
/// Exit code of a worker to which the system refused memory or threads (`EX_OSERR`).
pub(super) const EXIT_SYSTEM: i32 = 71;
/// Exit code of a worker that has not heard from its hive for too long (`EX_TEMPFAIL`).
const EXIT_LEASE_ENDED: i32 = 75;
/// Exit code of a worker that was told to use what is not there (`EX_CONFIG`).
pub(super) const EXIT_CONFIG: i32 = 78;
/// Exit code of a Rust program that panicked.
const EXIT_PANIC: i32 = 101;

/// Whether the kernel has lately killed a process of this machine because memory was short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryWas {
    Enough,
    Short,
}

/// An end of which no exit status tells.
pub(super) fn exit_of(cause: ExitCause) -> WorkerExit {
    WorkerExit { cause, exit_code: None, signal: None, at_ms: wall_clock_ms() }
}

/// The end that an exit status tells of, where this hive has not brought it about.
pub(super) fn exit_by(status: ExitStatus, memory_was: MemoryWas) -> WorkerExit {
    let cause = match (status.code(), status.signal()) {
        (Some(code), _) => by_code(code),
        (None, Some(signal)) => by_signal(signal, memory_was),
        (None, None) => ExitCause::Lost,
    };
    WorkerExit { exit_code: status.code(), signal: status.signal(), ..exit_of(cause) }
}

const fn by_code(code: i32) -> ExitCause {
    match code {
        0 => ExitCause::Exited,
        EXIT_USAGE => ExitCause::BadUsage,
        EXIT_BAD_MODEL => ExitCause::BadModel,
        EXIT_NO_INPUT => ExitCause::ModelUnreadable,
        EXIT_SOFTWARE => ExitCause::EngineFailed,
        EXIT_SYSTEM => ExitCause::NoResources,
        EXIT_LEASE_ENDED => ExitCause::LeaseEnded,
        EXIT_CONFIG => ExitCause::BadConfig,
        EXIT_PANIC => ExitCause::Panicked,
        _ => ExitCause::ExitCode,
    }
}

fn by_signal(signal: i32, memory_was: MemoryWas) -> ExitCause {
    let is = |known: Signal| known.as_raw() == signal;
    if is(Signal::KILL) {
        match memory_was {
            MemoryWas::Short => ExitCause::OutOfMemory,
            MemoryWas::Enough => ExitCause::Killed,
        }
    } else if is(Signal::SEGV) || is(Signal::BUS) {
        ExitCause::Segfault
    } else if is(Signal::ABORT) {
        ExitCause::Aborted
    } else {
        ExitCause::Signalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exit_code_and_signal_has_its_cause() {
        for (code, cause) in [
            (0, "exited"),
            (1, "exit_code"),
            (2, "bad_usage"),
            (65, "bad_model"),
            (66, "model_unreadable"),
            (70, "engine_failed"),
            (71, "no_resources"),
            (75, "lease_ended"),
            (78, "bad_config"),
            (101, "panicked"),
            (255, "exit_code"),
        ] {
            let exit = exit_by(ExitStatus::from_raw(code << 8), MemoryWas::Short);
            assert_eq!(
                (exit.cause.as_str(), exit.exit_code, exit.signal),
                (cause, Some(code), None)
            );
        }
        for (signal, memory_was, cause) in [
            (9, MemoryWas::Enough, "killed"),
            (9, MemoryWas::Short, "out_of_memory"),
            (11, MemoryWas::Short, "segfault"),
            (7, MemoryWas::Enough, "segfault"),
            (6, MemoryWas::Enough, "aborted"),
            (15, MemoryWas::Short, "signalled"),
        ] {
            let exit = exit_by(ExitStatus::from_raw(signal), memory_was);
            assert_eq!(exit.cause.as_str(), cause, "{signal}");
            assert_eq!((exit.exit_code, exit.signal), (None, Some(signal)));
        }
    }
}
