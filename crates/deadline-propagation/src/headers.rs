//! Deadlines in headers. Owns the two inbound forms and the one that is sent on; never trusts a header beyond the cap.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;

use crate::Deadline;

/// Carries the budget that remains, in whole milliseconds. The form used between the programs.
pub const TIMEOUT_HEADER: HeaderName = HeaderName::from_static("x-request-timeout-ms");

/// Carries a wall-clock end, RFC 3339. Accepted from clients only: clocks of two machines differ.
pub const WALL_CLOCK_HEADER: HeaderName = HeaderName::from_static("x-request-deadline");

/// Says which header could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeadlineError {
    /// `X-Request-Timeout-Ms` is not a whole number of milliseconds, or stands there twice.
    #[error("header x-request-timeout-ms is not one whole number of milliseconds")]
    BadTimeout,
    /// `X-Request-Deadline` is not a timestamp, or stands there twice.
    #[error("header x-request-deadline is not one RFC 3339 timestamp")]
    BadWallClock,
}

impl DeadlineError {
    /// Names the error for clients.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "validation_failed"
    }

    /// Answers whether the same request may pass later: never.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }

    /// Names the header that was refused.
    #[must_use]
    pub const fn header(&self) -> HeaderName {
        match self {
            Self::BadTimeout => TIMEOUT_HEADER,
            Self::BadWallClock => WALL_CLOCK_HEADER,
        }
    }
}

impl Deadline {
    /// Reads the deadline of an arriving request: what a header asks for, at most `cap`; `default` without one.
    ///
    /// With both headers the earlier end holds. A budget of 0 and a timestamp in the past are valid and expired.
    ///
    /// # Errors
    /// [`DeadlineError`] when a header is there and cannot be read.
    pub fn from_headers(
        headers: &HeaderMap,
        default: Duration,
        cap: Duration,
    ) -> Result<Self, DeadlineError> {
        Ok(Self::after(budget(headers, Timestamp::now())?.map_or(default, |asked| asked.min(cap))))
    }

    /// Returns the value of [`TIMEOUT_HEADER`] for the next hop: the milliseconds left, 0 only once expired.
    #[must_use]
    pub fn header_value(&self) -> HeaderValue {
        let remaining = self.remaining();
        let floor = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        HeaderValue::from(if remaining.is_zero() { 0 } else { floor.max(1) })
    }
}

fn budget(headers: &HeaderMap, now: Timestamp) -> Result<Option<Duration>, DeadlineError> {
    let relative = single(headers, &TIMEOUT_HEADER, DeadlineError::BadTimeout)?
        .map(|text| parse_timeout(text).ok_or(DeadlineError::BadTimeout))
        .transpose()?;
    let absolute = single(headers, &WALL_CLOCK_HEADER, DeadlineError::BadWallClock)?
        .map(|text| parse_wall_clock(text, now).ok_or(DeadlineError::BadWallClock))
        .transpose()?;
    Ok(match (relative, absolute) {
        (Some(relative), Some(absolute)) => Some(relative.min(absolute)),
        (one, other) => one.or(other),
    })
}

/// Finds a header's value as text; one that stands there twice could be read two ways and is refused.
fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    bad: DeadlineError,
) -> Result<Option<&'a str>, DeadlineError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_not_ascii| bad),
        (Some(_), Some(_)) => Err(bad),
    }
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number {
        return None;
    }
    text.parse().ok().map(Duration::from_millis)
}

fn parse_wall_clock(text: &str, now: Timestamp) -> Option<Duration> {
    let end: Timestamp = text.parse().ok()?;
    Some(Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEFAULT: Duration = Duration::from_secs(600);
    const CAP: Duration = Duration::from_secs(3600);

    fn headers(pairs: &[(&HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn read(pairs: &[(&HeaderName, &str)]) -> Result<Duration, DeadlineError> {
        Deadline::from_headers(&headers(pairs), DEFAULT, CAP).map(|deadline| deadline.remaining())
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_lowers_the_default_or_raises_it_to_the_cap() {
        assert_eq!(read(&[]), Ok(DEFAULT));
        for (text, expected_ms) in [
            ("0", 0),
            ("1", 1),
            ("007", 7),
            ("599999", 599_999),
            ("3599999", 3_599_999),
            ("3600000", 3_600_000),
            ("3600001", 3_600_000),
            ("18446744073709551615", 3_600_000),
        ] {
            assert_eq!(
                read(&[(&TIMEOUT_HEADER, text)]),
                Ok(Duration::from_millis(expected_ms)),
                "{text}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn garbage_is_an_error_that_names_the_header() {
        for text in [
            "",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "abc",
            "1 2",
            "0x10",
            "18446744073709551616",
            "NaN",
            "10ms",
        ] {
            let error = read(&[(&TIMEOUT_HEADER, text)]).unwrap_err();
            assert!(error.to_string().contains(error.header().as_str()), "{error}");
            assert_eq!(
                (error, error.header()),
                (DeadlineError::BadTimeout, TIMEOUT_HEADER),
                "{text:?}"
            );
        }
        for text in [
            "",
            "tomorrow",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "1893456000",
            "2030-13-01T00:00:00Z",
        ] {
            let error = read(&[(&WALL_CLOCK_HEADER, text)]).unwrap_err();
            assert!(error.to_string().contains(error.header().as_str()), "{error}");
            assert_eq!(
                (error, error.header()),
                (DeadlineError::BadWallClock, WALL_CLOCK_HEADER),
                "{text:?}"
            );
        }
        assert_eq!(
            read(&[(&TIMEOUT_HEADER, "1"), (&TIMEOUT_HEADER, "2")]),
            Err(DeadlineError::BadTimeout)
        );
    }

    #[test]
    fn a_wall_clock_end_counts_from_now_and_the_earlier_end_holds() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let at = |pairs: &[(&HeaderName, &str)]| budget(&headers(pairs), now).unwrap();
        for (text, seconds) in [
            ("2030-01-01T00:00:10Z", 10),
            ("2030-01-01T01:00:10+01:00", 10),
            ("2030-01-01T00:00:00Z", 0),
            ("2029-12-31T23:59:59Z", 0),
            ("1970-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(
                at(&[(&WALL_CLOCK_HEADER, text)]),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        let ten = (&WALL_CLOCK_HEADER, "2030-01-01T00:00:10Z");
        assert_eq!(at(&[ten, (&TIMEOUT_HEADER, "9000")]), Some(Duration::from_secs(9)));
        assert_eq!(at(&[ten, (&TIMEOUT_HEADER, "11000")]), Some(Duration::from_secs(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_value_sent_on_is_the_budget_left() {
        let deadline = Deadline::after(Duration::from_millis(100));
        assert_eq!(deadline.header_value(), "100");
        tokio::time::advance(Duration::from_micros(99_400)).await;
        assert_eq!(deadline.header_value(), "1");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(deadline.header_value(), "0");
    }

    proptest! {
        #[test]
        fn no_header_gives_more_than_the_cap(value in "[ -~]{0,40}") {
            let asked = budget(&headers(&[(&TIMEOUT_HEADER, &value)]), Timestamp::UNIX_EPOCH);
            prop_assert_eq!(asked.is_ok(), value.parse::<u64>().is_ok() && !value.starts_with('+'));
        }
    }
}
