//! Decides whether a machine can be given work, from how it was last reached and when it was last heard of. Pure: takes
//! the time, looks at no clock and calls nobody.

use std::time::Duration;

use rbee_api::error::{ErrorCode, ErrorDetail};
use tokio::time::Instant;

use crate::cluster::Reach;

/// Heartbeats that may be missing, one of them on its way, before a machine gets no new work.
const SUSPECT_INTERVALS: u32 = 2;
/// Heartbeats that may be missing before what a machine told last is not to be relied on.
const STALE_INTERVALS: u32 = 4;

/// How a machine was last reached.
#[derive(Debug)]
pub(super) enum Contact {
    /// It answers, or has reported.
    Up,
    /// It is being started, found or checked.
    Awaited {
        /// When that is given up.
        until: Instant,
    },
    /// It cannot be had, for this reason.
    Lost(ErrorDetail),
}

/// What is known of a machine, all of the same moment.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) contact: &'a Contact,
    /// When its process last reported; `None` before the first report of a new one.
    pub(super) heard_at: Option<Instant>,
    /// Whether it said that it is shutting down.
    pub(super) is_draining: bool,
}

/// Returns the last moment at which a machine that was heard of at `heard_at` is not stale.
pub(super) fn stale_at(heard_at: Instant, interval: Duration) -> Instant {
    heard_at + interval * STALE_INTERVALS
}

/// Says whether what a machine told at `heard_at` is not to be relied on any more.
pub(super) fn is_stale(heard_at: Option<Instant>, interval: Duration, now: Instant) -> bool {
    heard_at.is_some_and(|at| now > stale_at(at, interval))
}

/// Judges a machine that reports every `interval`.
pub(super) fn judge(facts: &Facts<'_>, interval: Duration, now: Instant) -> Reach {
    let silence = facts.heard_at.map(|at| now.saturating_duration_since(at));
    let is_stale = is_stale(facts.heard_at, interval, now);
    let is_suspect = silence.is_none_or(|silence| silence > interval * SUSPECT_INTERVALS);
    match facts.contact {
        Contact::Awaited { until } if *until > now => Reach::Awaited { until: *until },
        Contact::Awaited { .. } | Contact::Up if is_stale => {
            Reach::Stale(unreachable("has not been heard of for four heartbeat intervals"))
        }
        Contact::Lost(reason) => Reach::Lost(reason.clone()),
        Contact::Awaited { .. } => Reach::Lost(unreachable("does not report to the queen")),
        Contact::Up if is_suspect => {
            Reach::Suspect(unreachable("has not been heard of for two heartbeat intervals"))
        }
        Contact::Up if facts.is_draining => Reach::Draining,
        Contact::Up => Reach::Online,
    }
}

fn unreachable(what: &str) -> ErrorDetail {
    let message = format!("the machine {what}; `rbee status` shows the machines");
    ErrorDetail::new(ErrorCode::HiveUnreachable, message)
}

#[cfg(test)]
mod tests {
    use rbee_api::hive::HiveState;

    use super::*;
    use crate::cluster::HiveView;

    const INTERVAL: Duration = Duration::from_secs(30);

    /// The state of a machine that was heard of so many milliseconds ago.
    fn state(
        contact: &Contact,
        heard_ms: Option<u64>,
        is_draining: bool,
        now: Instant,
    ) -> HiveState {
        let heard_at = heard_ms.map(|ms| now - Duration::from_millis(ms));
        let facts = Facts { contact, heard_at, is_draining };
        let name = "attic".parse().unwrap();
        let reach = judge(&facts, INTERVAL, now);
        HiveView { name, reach, snapshot: None, noted: Vec::new(), is_stale: false }.state()
    }

    #[test]
    fn silence_makes_a_machine_suspect_and_then_stale() {
        let now = Instant::now() + INTERVAL * 10;
        for (heard_ms, expected) in [
            (0, HiveState::Online),
            (60_000, HiveState::Online),
            (60_001, HiveState::Suspect),
            (120_000, HiveState::Suspect),
            (120_001, HiveState::Stale),
        ] {
            assert_eq!(state(&Contact::Up, Some(heard_ms), false, now), expected, "{heard_ms}");
        }
        assert_eq!(state(&Contact::Up, Some(1), true, now), HiveState::Draining);
        assert_eq!(state(&Contact::Up, Some(60_001), true, now), HiveState::Suspect);
    }

    #[test]
    fn one_that_is_looked_for_is_waited_for_and_then_lost_or_stale() {
        let now = Instant::now() + INTERVAL * 10;
        let awaited = Contact::Awaited { until: now + INTERVAL };
        let facts =
            Facts { contact: &awaited, heard_at: Some(now - INTERVAL * 9), is_draining: false };
        assert_eq!(judge(&facts, INTERVAL, now), Reach::Awaited { until: now + INTERVAL });
        let given_up = Contact::Awaited { until: now };
        assert_eq!(state(&given_up, None, false, now), HiveState::Unreachable);
        assert_eq!(state(&given_up, Some(1), false, now), HiveState::Unreachable);
        assert_eq!(state(&given_up, Some(120_001), false, now), HiveState::Stale);
    }

    #[test]
    fn a_known_reason_is_told_however_long_ago_it_was_heard_of() {
        let now = Instant::now() + INTERVAL * 10;
        let reason = ErrorDetail::new(ErrorCode::HiveUnreachable, "its configuration is wrong");
        let lost = Contact::Lost(reason.clone());
        for heard_at in [None, Some(now), Some(now - INTERVAL * 9)] {
            let facts = Facts { contact: &lost, heard_at, is_draining: false };
            assert_eq!(judge(&facts, INTERVAL, now), Reach::Lost(reason.clone()));
        }
    }
}
