//! Waiting for a condition with a deadline: the only way a test waits.

use std::time::{Duration, SystemTime};

/// How long between two looks.
const STEP: Duration = Duration::from_millis(10);

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not hold within `limit`; `what` says what was waited for.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, limit, || condition().then_some(()));
}

/// Says whether `condition` holds at some moment within `limit`.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = SystemTime::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed().is_ok_and(|waited| waited >= limit) {
            return false;
        }
        pause();
    }
}

/// Waits until `look` finds something, and returns it.
///
/// # Panics
/// When it finds nothing within `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = SystemTime::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed().is_ok_and(|waited| waited < limit), "waited {limit:?} for: {what}");
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "the one pause between two looks at a condition")]
pub(crate) fn pause() {
    std::thread::sleep(STEP);
}
