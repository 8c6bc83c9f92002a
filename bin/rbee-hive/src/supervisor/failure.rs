//! Why a worker is gone, told from the way its process ended. Reads nothing that the worker wrote.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use input_validation::WorkerId;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rustix::process::Signal;
use serde_json::json;

use super::cause::{EXIT_BAD_MODEL, EXIT_CONFIG, EXIT_NO_INPUT, EXIT_SOFTWARE, EXIT_SYSTEM};
use crate::liveness::Condemned;

/// How far a worker had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It had not said that its model is loaded.
    Loading,
    /// It had: it was serving, or waiting for requests.
    Serving,
}

/// Describes the end of a worker that nobody asked for.
pub(super) fn of_exit(id: &WorkerId, phase: Phase, status: ExitStatus) -> ErrorDetail {
    let during = match phase {
        Phase::Loading => "while it loaded its model",
        Phase::Serving => "while it was ready",
    };
    let code = match phase {
        Phase::Loading => ErrorCode::WorkerStartFailed,
        Phase::Serving => ErrorCode::WorkerFailed,
    };
    let logs = format!("`rbee logs {id}` shows its log");
    if let Some(signal) = status.signal() {
        let message = if signal == Signal::ABORT.as_raw() {
            format!(
                "the worker gave itself up (signal {signal}) {during}: its engine failed, or one step of it did not end; \
                 raise hang_timeout_seconds where a step may take that long; {logs}"
            )
        } else {
            format!("the worker was ended by signal {signal} {during}; {logs}")
        };
        return ErrorDetail::new(code, message).with_details(json!({"signal": signal}));
    }
    let exit_code = status.code().unwrap_or(-1);
    let figures = json!({"exit_code": exit_code});
    match (phase, exit_code) {
        (Phase::Loading, EXIT_BAD_MODEL) => ErrorDetail::new(
            ErrorCode::InvalidModelFile,
            "the model file is not usable; remove it with `rbee rm` and pull it again, or pull another",
        ),
        (Phase::Loading, EXIT_NO_INPUT) => {
            ErrorDetail::new(code, "the worker cannot read its model file; remove it with `rbee rm` and pull it again")
        }
        (Phase::Loading, EXIT_SYSTEM) => ErrorDetail::new(
            code,
            format!("the system refused the worker memory or threads {during}; stop another with `rbee stop`; {logs}"),
        ),
        (Phase::Loading, EXIT_CONFIG) => ErrorDetail::new(
            code,
            format!("the worker cannot run as it is configured, such as on a GPU in worker.device that is not there; {logs}"),
        ),
        (Phase::Serving, EXIT_SOFTWARE) => ErrorDetail::new(
            code,
            format!("the worker's engine failed {during}, or one step of it did not end; raise hang_timeout_seconds where a step may take that long; {logs}"),
        ),
        _ => ErrorDetail::new(code, format!("the worker ended with exit code {exit_code} {during}; {logs}")),
    }
    .with_details(figures)
}

/// Describes the end of a worker that was serving, that nobody asked for, and whose exit code went to no hive.
pub(super) fn of_adopted(id: &WorkerId) -> ErrorDetail {
    let message = format!(
        "the worker ended; how is not known, because it was started by an earlier run of the hive; `rbee logs {id}` \
         shows its log"
    );
    ErrorDetail::new(ErrorCode::WorkerFailed, message)
}

/// Describes the end of a worker that took more memory than its control group allows.
pub(super) fn of_memory(id: &WorkerId, phase: Phase) -> ErrorDetail {
    let (code, during) = match phase {
        Phase::Loading => (ErrorCode::WorkerStartFailed, "while it loaded its model"),
        Phase::Serving => (ErrorCode::WorkerFailed, "while it was ready"),
    };
    let message = format!(
        "the worker used up the memory it is limited to {during} and was ended by the kernel; raise \
         worker.memory_limit_mib, or lower worker.context_tokens; `rbee logs {id}` shows its log"
    );
    ErrorDetail::new(code, message).with_details(json!({"cause": "out_of_memory"}))
}

/// Describes a worker that did not load in time.
pub(super) fn of_slow_load(limit: std::time::Duration) -> ErrorDetail {
    let seconds = limit.as_secs();
    let message = format!(
        "the worker did not load its model within {seconds} s and was ended; raise load_timeout_seconds for a large \
         model on a slow disk"
    );
    ErrorDetail::new(ErrorCode::WorkerStartFailed, message)
        .with_details(json!({"load_timeout_seconds": seconds}))
}

/// Describes a worker that did nothing any more and was killed.
pub(super) fn of_condemned(id: &WorkerId, why: Condemned) -> ErrorDetail {
    let logs = format!("`rbee logs {id}` shows its log");
    match why {
        Condemned::Stale => {
            let message =
                format!("the worker neither reported nor answered, and was killed; {logs}");
            ErrorDetail::new(ErrorCode::WorkerFailed, message)
        }
        Condemned::Hung => {
            let message = format!(
                "one step of the worker's engine did not end, and it was killed; raise hang_timeout_seconds where a \
                 step may take that long; {logs}"
            );
            ErrorDetail::new(ErrorCode::WorkerFailed, message)
        }
        Condemned::LoadStalled => {
            let message = format!(
                "the worker's load no longer came on, and it was killed; raise load_stall_seconds for a slow disk; {logs}"
            );
            ErrorDetail::new(ErrorCode::WorkerStartFailed, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn the_way_a_process_ended_decides_the_code() {
        for (phase, status, code, figure) in [
            (Phase::Loading, exited(65), ErrorCode::InvalidModelFile, ("exit_code", 65)),
            (Phase::Loading, exited(66), ErrorCode::WorkerStartFailed, ("exit_code", 66)),
            (Phase::Loading, exited(71), ErrorCode::WorkerStartFailed, ("exit_code", 71)),
            (Phase::Loading, exited(0), ErrorCode::WorkerStartFailed, ("exit_code", 0)),
            (Phase::Loading, ExitStatus::from_raw(9), ErrorCode::WorkerStartFailed, ("signal", 9)),
            (Phase::Serving, exited(65), ErrorCode::WorkerFailed, ("exit_code", 65)),
            (Phase::Serving, exited(0), ErrorCode::WorkerFailed, ("exit_code", 0)),
            (Phase::Serving, ExitStatus::from_raw(6), ErrorCode::WorkerFailed, ("signal", 6)),
        ] {
            let detail = of_exit(&"w-1".parse().unwrap(), phase, status);
            assert_eq!(detail.code, code, "{phase:?} {status}");
            assert_eq!(detail.details.unwrap()[figure.0], figure.1, "{phase:?} {status}");
        }
    }
}
