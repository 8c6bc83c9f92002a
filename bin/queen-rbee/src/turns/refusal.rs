//! What a request is answered that may not wait, or waited in vain: 429 where
//! the queue is full, 503 where it is only too slow, and always when to try again.

use std::time::Duration;

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::ApiError;
use serde_json::json;

use crate::queue::{RETRY_AFTER_MAX, Reason, Refusal};
use crate::telemetry;

/// Returns the answer to a request for `model`, and counts it.
pub(super) fn told(refusal: &Refusal, model: &str) -> ApiError {
    let Refusal { reason, waiting, expected_wait, retry_after } = *refusal;
    let again = again(retry_after);
    let (reason, code, message) = match reason {
        Reason::Requests => {
            let why = format!("{waiting} requests for {model} wait already");
            ("requests", ErrorCode::QueueFull, format!("{why}; {again}"))
        }
        Reason::Bytes => {
            let why = "the requests that wait are too large together";
            ("bytes", ErrorCode::QueueFull, format!("{why}; {again}"))
        }
        Reason::GaveWay => {
            let why = format!(
                "the queue for {model} is full, and this request gave way to one of a client \
                 with fewer waiting"
            );
            ("gave_way", ErrorCode::QueueFull, format!("{why}; {again}"))
        }
        Reason::Time => {
            let seconds = expected_wait.unwrap_or(retry_after).as_secs_f64().ceil();
            let why = format!(
                "every slot for {model} is taken, and the turn of this request would come in \
                 about {seconds} s, too late for the time it has"
            );
            let more = "or give it more with X-Request-Timeout-Ms";
            ("time", ErrorCode::AllSlotsBusy, format!("{why}; {again}, {more}"))
        }
    };
    telemetry::queue_refused(reason);
    let expected_wait_ms = expected_wait.map(super::ms);
    let figures = json!({"requests_waiting": waiting, "expected_wait_ms": expected_wait_ms});
    let detail = ErrorDetail::new(code, message).with_details(figures);
    ApiError::from(detail).with_retry_after(spread(retry_after))
}

/// Returns the answer to a request whose time was over before its turn came.
pub(super) fn out_of_time(model: &str, retry_after: Duration) -> ApiError {
    telemetry::queue_refused("deadline");
    let message = format!(
        "every slot for {model} was taken until the time for this request was over; {}, or give \
         it more with X-Request-Timeout-Ms",
        again(retry_after)
    );
    ApiError::new(ErrorCode::AllSlotsBusy, message).with_retry_after(spread(retry_after))
}

fn again(after: Duration) -> String {
    format!("try again in about {} s", after.as_secs_f64().ceil())
}

/// Adds up to a quarter, so that those who are refused together do not come
/// back together.
fn spread(time: Duration) -> Duration {
    time.mul_f64(1.0 + fastrand::f64() / 4.0).min(RETRY_AFTER_MAX)
}
