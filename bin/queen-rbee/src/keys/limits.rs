//! Decides whether a key may do one more request: pace, tokens of the day,
//! requests at the same time. Pure: takes the moment, touches no I/O, and
//! holds a few numbers for each key.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbee_api::key::KeyLimits;
use tokio::time::Instant;

/// The length of a day, in milliseconds.
pub(crate) const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// What requests are counted over.
const MINUTE: Duration = Duration::from_secs(60);
/// When to come back where only the end of another request helps.
const SOON: Duration = Duration::from_secs(1);

/// A point in time, on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// For what is measured.
    pub(crate) at: Instant,
    /// For what people agree on: milliseconds since the epoch.
    pub(crate) unix_ms: u64,
}

impl Moment {
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at: Instant::now(), unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Days since the epoch, in UTC.
    pub(crate) const fn day(self) -> u64 {
        self.unix_ms / DAY_MS
    }

    const fn rest_of_day(self) -> Duration {
        Duration::from_millis(DAY_MS - self.unix_ms % DAY_MS)
    }
}

/// Which limit is used up, and when there is room again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    /// The field of [`KeyLimits`].
    pub(crate) limit: &'static str,
    pub(crate) max: u64,
    pub(crate) used: u64,
    pub(crate) retry_after: Duration,
}

/// What one key has used of its limits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    /// When the requests so far would have ended, had each taken its share of a minute.
    paced_until: Option<Instant>,
    day: u64,
    tokens: u64,
    running: u32,
}

impl Meter {
    /// Goes on with what was used of `day` before this process began.
    pub(crate) fn resumed(day: u64, tokens: u64) -> Self {
        Self { day, tokens, ..Self::default() }
    }

    /// Lets one request in; one that is refused changes nothing.
    ///
    /// # Errors
    /// The limit that is used up.
    pub(crate) fn begin(&mut self, limits: &KeyLimits, now: Moment) -> Result<(), Exceeded> {
        self.turn_to(now);
        if let Some(max) = limits.streams_max
            && self.running >= max
        {
            let used = u64::from(self.running);
            let limit = "streams_max";
            return Err(Exceeded { limit, max: max.into(), used, retry_after: SOON });
        }
        if let Some(max) = limits.tokens_per_day
            && self.tokens >= max
        {
            let (limit, used) = ("tokens_per_day", self.tokens);
            return Err(Exceeded { limit, max, used, retry_after: now.rest_of_day() });
        }
        if let Some(max) = limits.requests_per_minute {
            self.paced_until = Some(paced(self.paced_until, max.max(1), now.at)?);
        }
        self.running = self.running.saturating_add(1);
        Ok(())
    }

    /// Notes the end of a request that was let in.
    pub(crate) fn end(&mut self) {
        self.running = self.running.saturating_sub(1);
    }

    /// Notes tokens; what a request uses after midnight is the new day's.
    pub(crate) fn spend(&mut self, tokens: u64, now: Moment) {
        self.turn_to(now);
        self.tokens = self.tokens.saturating_add(tokens);
    }

    /// Requests at this moment.
    pub(crate) const fn running(&self) -> u32 {
        self.running
    }

    fn turn_to(&mut self, now: Moment) {
        if now.day() != self.day {
            self.day = now.day();
            self.tokens = 0;
        }
    }
}

/// Each request takes its share of a minute, and up to a whole minute may be
/// taken in advance: so `max` come at once, and then one each share.
fn paced(until: Option<Instant>, max: u32, now: Instant) -> Result<Instant, Exceeded> {
    let share = MINUTE / max;
    let begun = until.map_or(now, |until| until.max(now));
    let ahead = begun.saturating_duration_since(now);
    let room = share * max.saturating_sub(1);
    match ahead.checked_sub(room).filter(|over| !over.is_zero()) {
        None => Ok(begun + share),
        Some(retry_after) => {
            let used = ahead.as_nanos().div_ceil(share.as_nanos().max(1));
            let used = u64::try_from(used).unwrap_or(u64::MAX);
            let limit = "requests_per_minute";
            Err(Exceeded { limit, max: max.into(), used, retry_after })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn moment(start: Instant, after: Duration) -> Moment {
        let unix_ms = 20_000 * DAY_MS + u64::try_from(after.as_millis()).unwrap();
        Moment { at: start + after, unix_ms }
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_minutes_requests_may_come_at_once_and_then_one_each_share() {
        let (start, mut meter) = (Instant::now(), Meter::default());
        let limits = KeyLimits { requests_per_minute: Some(3), ..KeyLimits::default() };
        let mut begin = |after| meter.begin(&limits, moment(start, ms(after)));
        assert_eq!([begin(0), begin(0), begin(0)], [Ok(()); 3]);
        let exceeded = begin(0).unwrap_err();
        assert_eq!((exceeded.limit, exceeded.max, exceeded.used), ("requests_per_minute", 3, 3));
        assert_eq!(exceeded.retry_after, Duration::from_secs(20));
        assert_eq!(begin(19_999).unwrap_err().retry_after, ms(1));
        assert_eq!(begin(20_000), Ok(()));
        assert!(begin(20_001).is_err());
        assert_eq!([begin(90_000), begin(90_000), begin(90_000)], [Ok(()); 3]);
        assert!(begin(90_000).is_err());
    }

    #[test]
    fn the_tokens_of_a_day_end_with_it() {
        let (start, mut meter) = (Instant::now(), Meter::resumed(20_000, 90));
        let limits = KeyLimits { tokens_per_day: Some(100), ..KeyLimits::default() };
        let evening = moment(start, ms(DAY_MS - 1000));
        assert_eq!(meter.begin(&limits, evening), Ok(()));
        meter.spend(15, evening);
        let exceeded = meter.begin(&limits, evening).unwrap_err();
        let expected =
            Exceeded { limit: "tokens_per_day", max: 100, used: 105, retry_after: ms(1000) };
        assert_eq!(exceeded, expected);
        let midnight = moment(start, ms(DAY_MS));
        assert_eq!(meter.begin(&limits, midnight), Ok(()));
        meter.spend(100, midnight);
        assert!(meter.begin(&limits, midnight).is_err());
    }

    #[test]
    fn a_refused_request_takes_nothing() {
        let (start, mut meter) = (Instant::now(), Meter::default());
        let limits =
            KeyLimits { requests_per_minute: Some(2), tokens_per_day: None, streams_max: Some(1) };
        let now = moment(start, ms(0));
        assert_eq!(meter.begin(&limits, now), Ok(()));
        for _ in 0..5 {
            assert_eq!(meter.begin(&limits, now).unwrap_err().limit, "streams_max");
        }
        meter.end();
        assert_eq!(meter.begin(&limits, now), Ok(()), "refusals used up the pace");
        meter.end();
        assert_eq!(meter.begin(&limits, now).unwrap_err().limit, "requests_per_minute");
        assert_eq!(meter.running(), 0);
    }

    proptest! {
        /// Over any window, no more are let in than a minute's worth and what the window adds.
        #[test]
        fn the_pace_is_never_exceeded(
            max in 1_u32..500, gaps in proptest::collection::vec(0_u64..5_000, 1..300),
        ) {
            let (start, mut meter) = (Instant::now(), Meter::default());
            let limits = KeyLimits { requests_per_minute: Some(max), ..KeyLimits::default() };
            let mut now = 0;
            let mut let_in: Vec<u64> = Vec::new();
            for gap in gaps {
                now += gap;
                match meter.begin(&limits, moment(start, ms(now))) {
                    Ok(()) => let_in.push(now),
                    Err(exceeded) => {
                        prop_assert!(exceeded.retry_after <= MINUTE);
                        // One that comes back when it was told to is let in.
                        let later = moment(start, ms(now) + exceeded.retry_after);
                        prop_assert_eq!(meter.clone().begin(&limits, later), Ok(()));
                    }
                }
            }
            for (first, from) in let_in.iter().enumerate() {
                for (index, until) in let_in.iter().enumerate().skip(first) {
                    let window = until - from;
                    let most = u64::from(max) + window * u64::from(max) / 60_000 + 1;
                    prop_assert!(((index - first) as u64) < most);
                }
            }
        }

        #[test]
        fn what_began_and_ended_leaves_nothing(begun in 0_u32..200, max in 1_u32..100) {
            let (now, mut meter) = (moment(Instant::now(), ms(0)), Meter::default());
            let limits = KeyLimits { streams_max: Some(max), ..KeyLimits::default() };
            let let_in = (0..begun).filter(|_| meter.begin(&limits, now).is_ok()).count();
            prop_assert_eq!(let_in, begun.min(max) as usize);
            (0..let_in).for_each(|_| meter.end());
            prop_assert_eq!(meter.running(), 0);
        }
    }
}
