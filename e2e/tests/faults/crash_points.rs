//! One operation, killed at each of its points: counts them, kills at as many as the
//! volume asks for, and has what is left checked each time. Knows no operation itself.

use std::fs;

use crate::tracing::{Point, Trace, points};
use crate::volume;

/// How an attempt went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// The daemon was killed at the point.
    Killed,
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
    let directory = tempfile::tempdir().expect("a folder");
    let log = directory.path().join("calls").to_str().expect("UTF-8").to_owned();
    if attempt(&Trace::Count { log: log.clone() }, "counting") == Attempt::Refused {
        volume::not_run(operation, "this user may not trace processes");
        return;
    }
    let points = spread(points(&fs::read_to_string(&log).expect("a log of calls")));
    let wanted = volume::of(quota.short, points.len());
    let mut killed = 0;
    for point in &points {
        if killed == wanted {
            break;
        }
        let context = format!("{operation}, killed at {point}");
        killed += usize::from(attempt(&Trace::Kill(point.clone()), &context) == Attempt::Killed);
    }
    volume::figure(operation, format!("killed at {killed} of {} points", points.len()));
    let least = volume::of(quota.short, quota.full);
    assert!(killed >= least, "{operation}: killed at {killed} points only: {points:?}");
}

/// Orders points so that the first few of them are spread over all.
fn spread(points: Vec<Point>) -> Vec<Point> {
    let count = points.len().max(1);
    // A step near the golden section visits all and keeps neighbours apart.
    let step = (count * 382 / 1000..count).find(|step| gcd(*step, count) == 1).unwrap_or(1);
    (0..points.len()).map(|at| points[at * step % count].clone()).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
