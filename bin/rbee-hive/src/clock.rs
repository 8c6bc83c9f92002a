//! The wall clock, for times that are shown and compared across restarts. Never for measuring: it can be set back.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the milliseconds since 1970.
pub(crate) fn wall_clock_ms() -> u64 {
    wall_clock_micros() / 1000
}

/// Returns the microseconds since 1970.
pub(crate) fn wall_clock_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
