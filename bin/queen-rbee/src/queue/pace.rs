//! How fast a model's requests are served, measured, and what follows from it:
//! how long so many of them take. Whole nanoseconds; never looks at a clock.

use std::time::Duration;

/// Requests over which the mean is taken: enough to be steady between long and
/// short replies, few enough to follow a load that changes.
const WINDOW: u64 = 16;

/// The mean time for which a request holds its slots, and how far from it they
/// are in the mean.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    service_ns: Option<u64>,
    deviation_ns: u64,
}

impl Pace {
    /// Notes that a request ended which held its slots for `held`.
    pub(super) fn note(&mut self, held: Duration) {
        let held = u64::try_from(held.as_nanos()).unwrap_or(u64::MAX);
        let follow = |mean: u64, value: u64| mean - mean / WINDOW + value / WINDOW;
        self.service_ns = Some(match self.service_ns {
            Some(mean) => {
                self.deviation_ns = follow(self.deviation_ns, mean.abs_diff(held));
                follow(mean, held)
            }
            None => held,
        });
    }

    /// Returns the mean time, once a request has ended.
    pub(super) fn service(self) -> Option<Duration> {
        self.service_ns.map(Duration::from_nanos)
    }

    /// Returns the time that nearly all requests get by with, if one is much
    /// like another: twice the deviation above the mean. Zero while nothing is known.
    pub(super) fn ample(self) -> Duration {
        let mean = self.service_ns.unwrap_or(0);
        Duration::from_nanos(mean.saturating_add(self.deviation_ns.saturating_mul(2)))
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
    fn requests_that_differ_need_more_than_the_mean() {
        let (mut steady, mut varied) = (Pace::default(), Pace::default());
        assert_eq!(steady.ample(), Duration::ZERO);
        for second in 0..200 {
            steady.note(Duration::from_secs(4));
            varied.note(Duration::from_secs(if second % 2 == 0 { 2 } else { 6 }));
        }
        assert!(steady.ample() <= Duration::from_millis(4001), "{:?}", steady.ample());
        let ample = varied.ample().as_secs_f64();
        assert!((7.5..8.5).contains(&ample), "a mean of four, two away from it: {ample}");
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
