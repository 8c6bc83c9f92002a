//! How fast a model's requests are served, measured, and what follows from it:
//! how long so many of them take. Whole nanoseconds; never looks at a clock.

use std::time::Duration;

/// Requests over which the mean is taken: enough to be steady between long and
/// short replies, few enough to follow a load that changes.
const WINDOW: u64 = 16;

/// The mean time for which a request holds its slots.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    service_ns: Option<u64>,
}

impl Pace {
    /// Notes that a request ended which held its slots for `held`.
    pub(super) fn note(&mut self, held: Duration) {
        let held = u64::try_from(held.as_nanos()).unwrap_or(u64::MAX);
        self.service_ns = Some(match self.service_ns {
            Some(mean) => mean - mean / WINDOW + held / WINDOW,
            None => held,
        });
    }

    /// Returns the mean time, once a request has ended.
    pub(super) fn service(self) -> Option<Duration> {
        self.service_ns.map(Duration::from_nanos)
    }

    /// Returns how long it takes until `slots` have become free of `places`
    /// that are all taken: by Little's law, places divided by the mean time is
    /// what becomes free in a unit of time. `None` while nothing is known.
    pub(super) fn wait(self, slots: u32, places: u32) -> Option<Duration> {
        let service = u128::from(self.service_ns?);
        let nanos = (service * u128::from(slots)).checked_div(u128::from(places))?;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_follows_from_the_mean_and_the_places() {
        let mut pace = Pace::default();
        assert_eq!((pace.service(), pace.wait(1, 8)), (None, None));
        pace.note(Duration::from_secs(2));
        assert_eq!(pace.service(), Some(Duration::from_secs(2)));
        assert_eq!(pace.wait(1, 8), Some(Duration::from_millis(250)));
        assert_eq!(pace.wait(16, 8), Some(Duration::from_secs(4)));
        assert_eq!(pace.wait(1, 0), None, "nobody serves");
    }

    #[test]
    fn the_mean_follows_a_load_that_changes() {
        let mut pace = Pace::default();
        pace.note(Duration::from_secs(10));
        for _ in 0..100 {
            pace.note(Duration::from_secs(1));
        }
        let mean = pace.service().unwrap();
        assert!(mean > Duration::from_secs(1) && mean < Duration::from_millis(1100), "{mean:?}");
        pace.note(Duration::MAX);
        pace.note(Duration::MAX);
        assert!(pace.wait(u32::MAX, 1).is_some(), "nothing overflows");
    }
}
