//! How often a source may show a wrong credential. Owns the count of refusals
//! by source, in memory of a fixed size, and how many lines of log they get.
//! Never sees a credential that is right, so it can lock nobody out.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Refusals that one source gets at once before it is told to slow down: more
/// than a scanner of routes or a broken client sends, less than a guesser.
const BURST: u32 = 600;
/// Time after which one more is forgiven.
const REFILL: Duration = Duration::from_millis(100);
/// Places for sources. Two that share one share its count, which costs them
/// nothing but a different status of a refusal.
const SOURCES_MAX: usize = 4096;
/// Lines of log that come at once before there is one a second.
const LINES_BURST: u32 = 10;
/// Time after which there is one more line.
const LINES_REFILL: Duration = Duration::from_secs(1);

/// A budget that fills up again with time.
#[derive(Debug, Clone, Copy)]
struct Budget {
    left: u32,
    /// When `left` was true.
    at: Instant,
}

impl Budget {
    fn full(max: u32, now: Instant) -> Self {
        Self { left: max, at: now }
    }

    /// Takes one, or says how long it is until there is one.
    fn take(&mut self, max: u32, refill: Duration, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.at).as_nanos() / refill.as_nanos();
        let gained = u32::try_from(passed).unwrap_or(u32::MAX);
        let filled = self.left.saturating_add(gained).min(max);
        // Time that is less than one refill counts the next time.
        self.at = if filled == max { now } else { self.at + refill * gained };
        match filled.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err((self.at + refill).saturating_duration_since(now))
            }
        }
    }
}

/// The refusals of one daemon.
#[derive(Debug)]
pub(crate) struct Refusals {
    /// Its key is secret, so that nobody can aim at another source's place.
    hasher: RandomState,
    sources: Mutex<Box<[Budget]>>,
    lines: Mutex<Lines>,
}

/// Lines of log about something that others can make happen at any rate.
#[derive(Debug)]
struct Lines {
    budget: Budget,
    /// What has happened since the last line.
    suppressed: u64,
}

impl Refusals {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        let sources = vec![Budget::full(BURST, now); SOURCES_MAX];
        let lines = Lines { budget: Budget::full(LINES_BURST, now), suppressed: 0 };
        Self {
            hasher: RandomState::new(),
            sources: Mutex::new(sources.into_boxed_slice()),
            lines: Mutex::new(lines),
        }
    }

    /// Counts a refusal of `source`. Where there were too many, says after what
    /// time the next one is an ordinary one again.
    pub(crate) fn count(&self, source: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let places = u64::try_from(sources.len()).unwrap_or(u64::MAX).max(1);
        let place = usize::try_from(self.hasher.hash_one(network_of(source)) % places);
        match place.ok().and_then(|place| sources.get_mut(place)) {
            Some(budget) => budget.take(BURST, REFILL, now),
            None => Ok(()),
        }
    }

    /// Says whether a refusal gets a line of log, and how many had none since the last line.
    pub(crate) fn line(&self, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.budget.take(LINES_BURST, LINES_REFILL, now).is_ok() {
            Some(std::mem::take(&mut lines.suppressed))
        } else {
            lines.suppressed += 1;
            None
        }
    }
}

/// Returns what one owner has: the address, or the /64 of an IPv6 one.
fn network_of(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_slowed_down_after_the_burst_and_forgiven_with_time() {
        let refusals = Refusals::new();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(refusals.count(ip("10.0.0.1"), start), Ok(()));
        }
        assert_eq!(refusals.count(ip("10.0.0.1"), start), Err(REFILL));
        assert_eq!(refusals.count(ip("::ffff:10.0.0.1"), start), Err(REFILL), "the same machine");
        let half = REFILL / 2;
        assert_eq!(refusals.count(ip("10.0.0.1"), start + half), Err(half));
        assert_eq!(refusals.count(ip("10.0.0.1"), start + REFILL), Ok(()));
        assert_eq!(refusals.count(ip("10.0.0.1"), start + REFILL), Err(REFILL));
        let later = start + REFILL * BURST * 2;
        for _ in 0..BURST {
            assert_eq!(refusals.count(ip("10.0.0.1"), later), Ok(()));
        }
        assert!(refusals.count(ip("10.0.0.1"), later).is_err(), "it is never more than the burst");
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_of_a_network_has_one_count_and_others_have_theirs() {
        let refusals = Refusals::new();
        let now = Instant::now();
        for host in 0..u64::from(BURST) {
            let address = IpAddr::from(Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(host)));
            assert_eq!(refusals.count(address, now), Ok(()));
        }
        assert!(refusals.count(ip("2001:db8::ffff"), now).is_err());
        // Two of so many may share a place; most do not.
        let others =
            (1..100_u8).filter(|net| refusals.count(IpAddr::from([10, 0, 0, *net]), now).is_ok());
        assert!(others.count() >= 95);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_refusals_is_a_line_a_second_that_counts_the_rest() {
        let refusals = Refusals::new();
        let start = Instant::now();
        let mut lines = 0;
        let mut told = 0;
        for step in 0..10_000_u32 {
            if let Some(suppressed) = refusals.line(start + Duration::from_millis(step.into())) {
                lines += 1;
                told += suppressed;
            }
        }
        assert_eq!(lines, LINES_BURST + 9, "ten seconds of a thousand refusals each");
        let after = refusals.line(start + Duration::from_secs(60)).unwrap();
        assert_eq!(u64::from(lines) + told + after, 10_000, "every one is told of once");
    }

    #[test]
    fn memory_is_fixed() {
        assert!(size_of::<Budget>() * SOURCES_MAX <= 128 * 1024);
    }
}
