//! What can be typed after `rbee audit`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};

pub(super) const EXAMPLES: &str = "\
Examples:
  rbee audit verify                        is every entry the one that was written, and is none missing?
  rbee audit verify --checkpoints FILE     also against the checkpoints that another machine holds
  rbee audit tail -f                       what the queen writes down, as it happens
  rbee audit tail --service hive -n 50
  rbee audit export --since 24h --format csv > audit.csv

The logs are files of this computer. A service is queen, hive, or a worker's id.";

const VERIFY_JSON: &str = "\
Exit code 1 when something is wrong with a log.

With --json: {\"good\":BOOL,\"logs\":[{\"service\",\"good\",\"problem\":{\"entry\",\"what\"},\"entries\",\"first\",
\"last\",\"files\",\"signed_through\",\"checkpoints\",\"torn\",\"suspect_lines\",\"duration_ms\"}]}";

/// `rbee audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// What to do with the logs.
    #[command(subcommand)]
    pub(crate) action: AuditAction,
}

/// What to do with audit logs.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditAction {
    /// Check that nothing was changed, removed or put in
    #[command(after_help = VERIFY_JSON)]
    Verify(VerifyArgs),
    /// Show the last entries
    #[command(after_help = "With --json: the entries, one a line")]
    Tail(TailArgs),
    /// Print entries for other programs
    Export(ExportArgs),
}

/// `rbee audit verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The log of this program alone: queen, hive, or a worker's id
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    /// Compare with the checkpoints in this file too, such as one copied from audit/held on another machine
    #[arg(long, value_name = "FILE")]
    pub(crate) checkpoints: Vec<PathBuf>,
}

/// `rbee audit tail`.
#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// The log of this program: queen, hive, or a worker's id
    #[arg(long, value_name = "SERVICE", default_value = "queen")]
    pub(crate) service: String,
    /// How many of the last entries to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = super::lines)]
    pub(crate) lines: usize,
    /// Go on showing new entries until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// `rbee audit export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The log of this program alone: queen, hive, or a worker's id [default: all, one after another]
    #[arg(long, value_name = "SERVICE")]
    pub(crate) service: Option<String>,
    /// Entries from then on: a time such as 2026-01-31T12:00:00Z, or how long ago, such as 90s, 15m, 24h or 7d
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub(crate) since: Option<Timestamp>,
    /// How to print them
    #[arg(long, value_name = "FORMAT", default_value = "jsonl")]
    pub(crate) format: ExportFormat,
}

/// How entries are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// As they are, one JSON object a line.
    Jsonl,
    /// A table for spreadsheets.
    Csv,
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let wrong = || "it must be like 2026-01-31T12:00:00Z, 90s, 15m, 24h or 7d".to_owned();
    let (count, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let count: u32 = count.parse().map_err(|_| wrong())?;
    let ago = SignedDuration::from_secs(i64::from(count) * seconds);
    Timestamp::now().checked_sub(ago).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_points_or_spans() {
        assert_eq!(since("2026-01-31T12:00:00Z").unwrap().as_second(), 1_769_860_800);
        for (text, seconds) in [("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)] {
            let passed = Timestamp::now().as_second() - since(text).unwrap().as_second();
            assert!((seconds..=seconds + 1).contains(&passed), "{text}");
        }
        for bad in ["", "h", "-1h", "1w", "yesterday", "99999999999d", "4294967295d", "é"] {
            assert!(since(bad).unwrap_err().contains("24h"), "{bad}");
        }
    }
}
