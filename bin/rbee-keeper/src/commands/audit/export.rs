//! `rbee audit export`: entries for other programs, as JSON lines or as a table for spreadsheets.

use audit_logging::{EntryView, LogReader};

use super::{chosen, directory};
use crate::cli::{ExportArgs, ExportFormat};
use crate::error::KeeperError;
use crate::keeper::Keeper;

/// Lines after which signals are looked at.
const LINES_AT_ONCE: usize = 1000;
const COLUMNS: [&str; 14] = [
    "sequence",
    "timestamp",
    "service",
    "event_type",
    "outcome",
    "actor",
    "key",
    "address",
    "request_id",
    "subject_kind",
    "subject",
    "details",
    "previous_hash",
    "entry_hash",
];

pub(super) async fn export(keeper: &Keeper, args: &ExportArgs) -> Result<(), KeeperError> {
    // All times are written alike, so that their order as text is theirs.
    let since = args.since.map(|since| format!("{since:.3}"));
    let services = chosen(keeper, args.service.as_deref())?;
    let all = directory(keeper)?;
    if args.format == ExportFormat::Csv {
        keeper.output.raw(row(&COLUMNS.map(str::to_owned)).as_bytes())?;
    }
    for service in services {
        let log = all.join(service);
        let failed = |source| KeeperError::Log { path: log.clone(), source };
        let mut reader = LogReader::open(&log)?;
        let mut count = 0_usize;
        while let Some(line) = reader.next_line().map_err(failed)? {
            count += 1;
            if count.is_multiple_of(LINES_AT_ONCE) {
                tokio::task::yield_now().await;
            }
            let Ok(entry) = serde_json::from_str::<EntryView>(&line) else {
                keeper.output.note(&format!("line {count} of {} is not an entry", log.display()));
                continue;
            };
            if since.as_ref().is_some_and(|since| entry.timestamp < *since) {
                continue;
            }
            let text = match args.format {
                ExportFormat::Jsonl => format!("{line}\n"),
                ExportFormat::Csv => row(&fields(entry)),
            };
            keeper.output.raw(text.as_bytes())?;
        }
    }
    Ok(())
}

fn fields(entry: EntryView) -> [String; 14] {
    let (subject_kind, subject) =
        entry.subject.map_or_else(Default::default, |subject| (subject.kind, subject.id));
    [
        entry.sequence.to_string(),
        entry.timestamp,
        entry.service,
        entry.event_type,
        entry.outcome,
        entry.actor.kind,
        entry.actor.key.unwrap_or_default(),
        entry.actor.address.unwrap_or_default(),
        entry.request_id.unwrap_or_default(),
        subject_kind,
        subject,
        serde_json::to_string(&entry.details).unwrap_or_default(),
        entry.previous_hash,
        entry.entry_hash,
    ]
}

/// Writes a row after RFC 4180. A field that a spreadsheet would compute gets an apostrophe before it.
fn row(fields: &[String]) -> String {
    let quoted = fields.iter().map(|field| {
        let guard = if field.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
        format!("\"{guard}{}\"", field.replace('"', "\"\""))
    });
    format!("{}\r\n", quoted.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_any_text_and_no_formula() {
        let fields = ["plain", "a,b", "say \"hi\"", "=1+1", "-2"].map(str::to_owned);
        assert_eq!(row(&fields), "\"plain\",\"a,b\",\"say \"\"hi\"\"\",\"'=1+1\",\"'-2\"\r\n");
    }
}
