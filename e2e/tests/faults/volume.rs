//! How much of each fault is tried, what this machine lets be tried, and the lines
//! that tell about both. The only reader of the suite's environment: `RBEE_FAULTS=full`
//! and `RBEE_SOAK_SECONDS`.

use std::io::Write as _;
use std::time::Duration;

/// Length of a soak where nobody says how long.
const SOAK_SHORT: Duration = Duration::from_secs(15);

/// Returns the figure of the form that is being run.
pub(crate) fn of<T>(short: T, full: T) -> T {
    if is_full() { full } else { short }
}

#[expect(clippy::disallowed_methods, reason = "the one reader of the suite's environment")]
pub(crate) fn is_full() -> bool {
    std::env::var_os("RBEE_FAULTS").is_some_and(|form| form == "full")
}

/// Returns how long the soak goes on.
#[expect(clippy::disallowed_methods, reason = "the one reader of the suite's environment")]
pub(crate) fn soak_time() -> Duration {
    let Ok(asked) = std::env::var("RBEE_SOAK_SECONDS") else { return SOAK_SHORT };
    Duration::from_secs(asked.parse().expect("RBEE_SOAK_SECONDS is a number of seconds"))
}

/// Says whether this user may do what only root may; if not, tells which row is not run.
pub(crate) fn is_root(row: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        not_run(row, "it needs root");
    }
    is_root
}

/// Tells that a row was not run, past the capture of the test harness.
pub(crate) fn not_run(row: &str, why: &str) {
    tell(&format!("NOT RUN: {row}: {why}"));
}

/// Tells a figure that was measured.
pub(crate) fn figure(what: &str, value: impl std::fmt::Display) {
    tell(&format!("{what}: {value}"));
}

fn tell(line: &str) {
    let mut stderr = std::io::stderr().lock();
    writeln!(stderr, "faults: {line}").expect("standard error");
}
