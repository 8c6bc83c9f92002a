//! One operation, killed at each of its points, or with a call failing there: counts
//! them, breaks as many as the volume asks for, and has what is left checked each time.
//! Knows no operation itself.

use std::fs;

use crate::failing_calls::failings;
use crate::tracing::{Trace, points};
use crate::volume;

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The daemon was killed at the point, or the call failed.
    Hit,
    /// The operation took another way this time, and was over before.
    Missed,
    /// This user may not trace.
    Refused,
}

/// How many points of an operation have to be hit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    pub(crate) short: usize,
    pub(crate) full: usize,
}

/// Runs an operation once undisturbed and then killed at its points. `attempt` prepares
/// the operation, performs it traced, and checks what is left.
pub(crate) fn kill_at_points(
    operation: &str,
    quota: Quota,
    mut attempt: impl FnMut(&Trace, &str) -> Attempt,
) {
    let Some(log) = calls_of(operation, &mut attempt) else { return };
    let kills = points(&log)
        .into_iter()
        .map(|point| (format!("{operation}, killed at {point}"), Trace::Kill(point)));
    break_at(operation, "killed", quota, spread(kills.collect()), attempt);
}

/// As `kill_at_points`, with one call failing at a time, of those that are not spared. It
/// has failed when the injector says so in its log.
pub(crate) fn fail_at_points(
    operation: &str,
    quota: Quota,
    spared: &[&str],
    mut attempt: impl FnMut(&Trace, &str) -> Attempt,
) {
    let Some(log) = calls_of(operation, &mut attempt) else { return };
    let directory = tempfile::tempdir().expect("a folder");
    let told = directory.path().join("failed").to_str().expect("UTF-8").to_owned();
    let failures =
        failings(&log).into_iter().filter(|failing| !spared.contains(&failing.calls.as_str()));
    let failures = failures.map(|failing| {
        (format!("{operation}, {failing}"), Trace::Fail { failing, log: told.clone() })
    });
    let failures = spread(failures.collect());
    break_at(operation, "a call failed", quota, failures, |trace, context| {
        fs::write(&told, []).expect("a log");
        let attempt = attempt(trace, context);
        let has_failed = || fs::read_to_string(&told).is_ok_and(|log| log.contains("(INJECTED)"));
        if has_failed() { attempt } else { Attempt::Missed }
    });
}

/// Runs an operation undisturbed and returns its calls.
fn calls_of(operation: &str, attempt: &mut impl FnMut(&Trace, &str) -> Attempt) -> Option<String> {
    let directory = tempfile::tempdir().expect("a folder");
    let log = directory.path().join("calls").to_str().expect("UTF-8").to_owned();
    if attempt(&Trace::Count { log: log.clone() }, "counting") == Attempt::Refused {
        volume::not_run(operation, "this user may not trace processes");
        return None;
    }
    Some(fs::read_to_string(&log).expect("a log of calls"))
}

fn break_at(
    operation: &str,
    how: &str,
    quota: Quota,
    traces: Vec<(String, Trace)>,
    mut attempt: impl FnMut(&Trace, &str) -> Attempt,
) {
    let wanted = volume::of(quota.short, traces.len());
    let mut hit = 0;
    for (context, trace) in &traces {
        if hit == wanted {
            break;
        }
        let _told = ToldOnPanic(context);
        hit += usize::from(attempt(trace, context) == Attempt::Hit);
    }
    volume::figure(operation, format!("{how} at {hit} of {} points", traces.len()));
    let least = volume::of(quota.short, quota.full);
    assert!(hit >= least, "{operation}: {how} at {hit} points only");
}

/// Says where it was, when a test fails in a place that does not know.
struct ToldOnPanic<'a>(&'a str);

impl Drop for ToldOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            volume::figure("failed", self.0);
        }
    }
}

/// Orders points so that the first few of them are spread over all.
fn spread<T: Clone>(points: Vec<T>) -> Vec<T> {
    let count = points.len().max(1);
    // A step near the golden section visits all and keeps neighbours apart.
    let step = (count * 382 / 1000..count).find(|step| gcd(*step, count) == 1).unwrap_or(1);
    (0..points.len()).map(|at| points[at * step % count].clone()).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
