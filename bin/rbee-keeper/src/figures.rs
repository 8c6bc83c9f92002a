//! Figures for people: sizes, durations, ages. Pure; never decides what is shown.

use std::time::Duration;

/// Writes bytes in decimal units with about three digits, as disks and downloads are labelled.
pub(crate) fn bytes(count: u64) -> String {
    decimal(count, &["B", "kB", "MB", "GB", "TB", "PB", "EB"], " ")
}

/// Writes a count such as the number of weights: `135M`.
pub(crate) fn count(count: u64) -> String {
    decimal(count, &["", "K", "M", "B", "T", "Q", "E"], "")
}

fn decimal(count: u64, units: &[&str], space: &str) -> String {
    let mut value = count;
    let mut rest = 0;
    let mut units = units.iter();
    let mut unit = units.next();
    while value >= 1000 {
        rest = value % 1000;
        value /= 1000;
        unit = units.next();
    }
    let unit = unit.copied().unwrap_or_default();
    if value < 10 && rest >= 100 {
        format!("{value}.{}{space}{unit}", rest / 100)
    } else {
        format!("{value}{space}{unit}")
    }
}

/// Writes how long something has lasted, in its largest unit.
pub(crate) fn lasting(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (value, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if value == 1 { "" } else { "s" };
    format!("{value} {unit}{plural}")
}

/// Writes how long ago `then_ms` was; both are milliseconds since the epoch.
pub(crate) fn ago(then_ms: u64, now_ms: u64) -> String {
    format!("{} ago", lasting(Duration::from_millis(now_ms.saturating_sub(then_ms))))
}

/// Writes a short duration in seconds.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_or_three_digits() {
        for (size, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1 kB"),
            (1500, "1.5 kB"),
            (98_362_432, "98 MB"),
            (4_700_000_000, "4.7 GB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(bytes(size), expected);
        }
        assert_eq!(count(134_515_008), "134M");
        assert_eq!(count(8_030_000_000), "8B");
        assert_eq!(count(1_500_000_000), "1.5B");
    }

    #[test]
    fn ages_name_their_largest_unit() {
        for (age_ms, expected) in [
            (0, "0 seconds ago"),
            (1_999, "1 second ago"),
            (120_000, "2 minutes ago"),
            (3_600_000, "1 hour ago"),
            (260_000_000, "3 days ago"),
        ] {
            assert_eq!(ago(0, age_ms), expected);
        }
        assert_eq!(ago(5, 0), "0 seconds ago", "clocks differ");
    }
}
