//! What can be typed after `rbee key` and `rbee usage`.

use clap::{Args, Subcommand};
use input_validation::{KeyName, ModelRef};
use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};
use rbee_api::key::{RouteGroup, USAGE_DAYS_MAX};

pub(super) const KEY_EXAMPLES: &str = "\
Examples:
  rbee key create ci --models smollm2:135m --expires 30d
  rbee key create alice --requests-per-minute 60 --tokens-per-day 1000000 --streams 4
  rbee key create grafana --read-only
  rbee key list
  rbee key revoke ci

A key is shown once, when it is made. Clients send it as they send the token: as OPENAI_API_KEY,
or in `Authorization: Bearer KEY`.";

pub(super) const CREATE_JSON: &str = "\
With --json: what the queen answers to POST /api/v1/keys; \"key\" is the value, shown only here";

/// `rbee key`.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// What to do with keys.
    #[command(subcommand)]
    pub(crate) action: KeyAction,
}

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyAction {
    /// Make a key and show it, once
    #[command(after_help = CREATE_JSON)]
    Create(CreateArgs),
    /// List the keys
    #[command(visible_alias = "ls")]
    #[command(after_help = "With --json: what the queen answers to GET /api/v1/keys")]
    List,
    /// Show what one key may do
    #[command(after_help = "With --json: one entry of `rbee key list --json`")]
    Show(OneKey),
    /// Take a key back; what runs under it ends
    #[command(after_help = "With --json: the key, as in `rbee key list --json`")]
    Revoke(OneKey),
}

/// `rbee key create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What to call it: 1 to 64 letters, digits and . _ -
    #[arg(value_name = "NAME")]
    pub(crate) name: KeyName,
    /// The models it may ask for [default: all]
    #[arg(long, value_name = "MODEL,…", value_delimiter = ',')]
    pub(crate) models: Vec<ModelRef>,
    /// What it opens: inference, models, status, admin [default: inference,models]
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',', value_parser = group)]
    pub(crate) routes: Vec<RouteGroup>,
    /// Let it look at everything and ask for nothing: models,status
    #[arg(long, conflicts_with_all = ["routes", "admin"])]
    pub(crate) read_only: bool,
    /// Let it do everything that the token of the home directory can
    #[arg(long, conflicts_with = "routes")]
    pub(crate) admin: bool,
    /// When it ends: such as 12h, 30d, 2027-01-31, or a time like 2027-01-31T18:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = expiry)]
    pub(crate) expires: Option<Timestamp>,
    /// Most requests in a minute
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) requests_per_minute: Option<u32>,
    /// Most tokens of prompts and replies in a day, which begins at 00:00 UTC
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    pub(crate) tokens_per_day: Option<u64>,
    /// Most requests at the same time, streamed or not
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) streams: Option<u32>,
}

/// `rbee key show` and `rbee key revoke`.
#[derive(Debug, Args)]
pub(crate) struct OneKey {
    /// The key's name, or its id from `rbee key list`
    #[arg(value_name = "NAME|ID")]
    pub(crate) key: String,
}

/// `rbee usage`.
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// How many days to go back, today included
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=i64::from(USAGE_DAYS_MAX)))]
    pub(crate) days: u32,
}

fn group(text: &str) -> Result<RouteGroup, String> {
    RouteGroup::from_name(text)
        .ok_or_else(|| "must be inference, models, status or admin".to_owned())
}

fn expiry(text: &str) -> Result<Timestamp, String> {
    expiry_after(text, Timestamp::now())
}

/// Reads when a key ends: a span from `now`, the beginning of a day in UTC, or a time.
fn expiry_after(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let form = || "must be like 12h, 30d, 2027-01-31 or 2027-01-31T18:00:00Z".to_owned();
    let end = if let Some((hours, count)) = span(text) {
        let hours = count.checked_mul(hours).ok_or_else(form)?;
        now.checked_add(hours.hours()).map_err(|_too_far| "is too far away".to_owned())?
    } else if let Ok(time) = text.parse::<Timestamp>() {
        // Before days, as a time reads as its day, too.
        time
    } else {
        let day = text.parse::<Date>().map_err(|_no_time| form())?;
        day.to_zoned(TimeZone::UTC).map_err(|_no_such_day| form())?.timestamp()
    };
    if end <= now { Err("is in the past".to_owned()) } else { Ok(end) }
}

/// Splits a span such as `30d` into the hours of its unit and their count.
fn span(text: &str) -> Option<(i64, i64)> {
    let unit = [("h", 1), ("d", 24), ("w", 7 * 24)];
    unit.iter().find_map(|(letter, hours)| {
        // Five digits of weeks are more than a thousand years, and no span overflows.
        let count = text.strip_suffix(letter)?;
        let is_count = !count.is_empty() && count.len() <= 5;
        let count = count.parse::<u32>().ok().filter(|_| is_count)?;
        Some((*hours, i64::from(count)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_is_a_span_a_day_or_a_time_to_come() {
        let now: Timestamp = "2026-01-30T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("12h", "2026-01-31T00:00:00Z"),
            ("30d", "2026-03-01T12:00:00Z"),
            ("2w", "2026-02-13T12:00:00Z"),
            ("2026-02-01", "2026-02-01T00:00:00Z"),
            ("2026-02-01T06:30:00+02:00", "2026-02-01T04:30:00Z"),
        ] {
            assert_eq!(expiry_after(text, now), Ok(expected.parse().unwrap()), "{text}");
        }
        for bad in [
            "",
            "30",
            "d",
            "-1d",
            "0h",
            "30m",
            "1.5d",
            "999999d",
            "2026-02-30",
            "2026-01-30",
            "soon",
        ] {
            assert!(expiry_after(bad, now).is_err(), "{bad}");
        }
    }
}
