//! Every error code that a client can see, with its status, its OpenAI type
//! and whether trying again can help, and the one JSON body that carries it.
//! Each code has a page in `docs/errors/`.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Declares the codes once, so that name, status and list cannot drift apart.
macro_rules! error_codes {
    ($($variant:ident = $text:literal, $status:literal, $retryable:literal, $doc:literal;)*) => {
        /// A stable, machine-readable reason for a failed request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum ErrorCode {
            $(#[doc = $doc] #[serde(rename = $text)] $variant,)*
        }

        impl ErrorCode {
            /// All codes, in the order of their status.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant),*];

            /// Returns the code as it stands on the wire, lower_snake.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $text,)* }
            }

            /// Returns the HTTP status that goes with the code.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(ErrorCode::$variant => $status,)* }
            }

            /// Says whether the same request may succeed later, unchanged.
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(ErrorCode::$variant => $retryable,)* }
            }
        }
    };
}

error_codes! {
    ValidationFailed = "validation_failed", 400, false, "The request is wrong in itself.";
    UnsupportedParameter = "unsupported_parameter", 400, false, "The request asks for something rbee does not do.";
    ContextLengthExceeded = "context_length_exceeded", 400, false, "The prompt does not fit the model's context.";
    InvalidModelFile = "invalid_model_file", 400, false, "The file is not a usable GGUF model.";
    ChecksumMismatch = "checksum_mismatch", 400, false, "The file's content is not what was promised.";
    TlsRequired = "tls_required", 400, false, "The request came in plain HTTP, and the port speaks TLS.";
    Unauthorized = "unauthorized", 401, false, "The credential is missing, malformed or wrong.";
    Forbidden = "forbidden", 403, false, "The credential is good but does not allow this.";
    HostNotAllowed = "host_not_allowed", 403, false, "The request names a host that is not this daemon, or comes from a foreign web page.";
    RouteNotFound = "route_not_found", 404, false, "No such path.";
    ModelNotFound = "model_not_found", 404, false, "No machine has this model.";
    FileNotFound = "file_not_found", 404, false, "The file to import does not exist or cannot be read.";
    HiveNotFound = "hive_not_found", 404, false, "No such machine.";
    WorkerNotFound = "worker_not_found", 404, false, "No such worker.";
    KeyNotFound = "key_not_found", 404, false, "No such key.";
    RequestNotFound = "request_not_found", 404, false, "No such request is running.";
    MethodNotAllowed = "method_not_allowed", 405, false, "The path exists, the method does not.";
    RequestTimeout = "request_timeout", 408, true, "The request did not arrive in time.";
    ModelInUse = "model_in_use", 409, true, "A worker still runs this model.";
    AliasTaken = "alias_taken", 409, false, "Another model already has this name.";
    KeyTaken = "key_taken", 409, false, "Another key already has this name.";
    RequestCancelled = "request_cancelled", 409, false, "Somebody cancelled the request.";
    PayloadTooLarge = "payload_too_large", 413, false, "The body is larger than the limit.";
    UnsupportedMediaType = "unsupported_media_type", 415, false, "The body is not application/json.";
    QueueFull = "queue_full", 429, true, "As many requests wait for the model as may.";
    RateLimitExceeded = "rate_limit_exceeded", 429, true, "The key has used up one of its limits.";
    TooManyFailures = "too_many_failures", 429, true, "Too many refused credentials came from this address.";
    InternalError = "internal_error", 500, false, "A defect in rbee.";
    HiveUnreachable = "hive_unreachable", 502, true, "The machine that should answer does not.";
    WorkerFailed = "worker_failed", 502, true, "The worker died or broke off.";
    WorkerStartFailed = "worker_start_failed", 502, true, "The worker could not be started.";
    NoWorkerAvailable = "no_worker_available", 503, true, "No machine can take the request now.";
    AllSlotsBusy = "all_slots_busy", 503, true, "The worker has no free slot and its queue is full.";
    InsufficientMemory = "insufficient_memory", 503, true, "Not enough memory to load the model.";
    InsufficientDisk = "insufficient_disk", 503, true, "Not enough room on the model disk.";
    WorkerLimitReached = "worker_limit_reached", 503, true, "The machine runs as many workers as it may.";
    WorkerFailing = "worker_failing", 503, true, "The model's workers keep failing; the next try is not due yet.";
    AuditUnavailable = "audit_unavailable", 503, true, "It cannot be written into the audit log, so it is not done.";
    Loading = "loading", 503, true, "The program or its model is still loading.";
    Draining = "draining", 503, true, "The program is shutting down and takes no new work.";
    DeadlineExceeded = "deadline_exceeded", 504, false, "The time the request had is over.";
}

impl ErrorCode {
    /// Returns the `type` that OpenAI's clients expect beside the code.
    #[must_use]
    pub const fn openai_type(self) -> &'static str {
        match self.status() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            408 | 504 => "timeout_error",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500 | 502 => "api_error",
            _ => "invalid_request_error",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The figure of `worker_failed` that is `false` where the request never came to its
/// worker, so that it has no part in that one's end.
pub const TAKEN: &str = "taken";

/// The figure of `worker_failed` that tells how the worker's process ended, as an
/// [`ExitCause`](crate::worker_exit::ExitCause), where that is known in time.
pub const CAUSE: &str = "cause";

/// The figure of `worker_failed` that is `true` where only the connection to the worker broke
/// and its process lives, so that it can go on with the request itself.
pub const LIVES: &str = "lives";

/// The body of every reply that is not a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// What failed.
    pub error: ErrorDetail,
}

/// What failed, for people (`message`) and for programs (`code`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDetail {
    /// One sentence that says what is wrong and what to do.
    pub message: String,
    /// The class that OpenAI's clients know.
    #[serde(rename = "type")]
    pub kind: String,
    /// The stable reason.
    pub code: ErrorCode,
    /// The field that is at fault, as a JSON path, where one is.
    pub param: Option<String>,
    /// The request's id, to find it in the logs.
    pub request_id: Option<String>,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// Figures that belong to the code, such as required and available bytes.
    pub details: Option<serde_json::Value>,
}

impl ErrorDetail {
    /// Builds the detail that goes with `code`.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            kind: code.openai_type().to_owned(),
            code,
            param: None,
            request_id: None,
            retryable: code.retryable(),
            details: None,
        }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Adds figures.
    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }
}

impl fmt::Display for ErrorDetail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for ErrorDetail {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_the_same_name_in_json_and_in_text() {
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
        }
    }

    #[test]
    fn only_the_server_side_is_worth_retrying() {
        for code in ErrorCode::ALL.iter().filter(|c| c.retryable()) {
            assert!(
                code.status() >= 500 || matches!(code.status(), 408 | 409 | 429),
                "{code} is retryable but blames the client"
            );
        }
    }
}
