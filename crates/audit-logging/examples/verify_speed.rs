//! How many entries a second the verifier checks: a log of half a million, written by the writer, verified several
//! times. Prints one JSON object. Run by `make bench`.

#![expect(clippy::disallowed_types, reason = "measures real time")]

use std::io::Write as _;
use std::time::Instant;

use audit_logging::{
    AuditSettings, Auditor, Event, Kind, Options, Outcome, Signer, SubjectKind, verify,
};
use secrets_management::Secret;
use serde_json::json;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const ENTRIES: u64 = 500_000;
/// Entries that are handed over before the last of them is waited for.
const AT_ONCE: u64 = 100;
const ROUNDS: usize = 5;

fn event(number: u64) -> Event {
    Event::new(Kind::ModelPull, Outcome::Success)
        .on(SubjectKind::Model, format!("hf:owner/model-{number}"))
        .with_number("size_bytes", number)
}

async fn measure() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let signer = Signer::new(&Secret::generate()?, "queen-rbee");
    let key = signer.key();
    let options = Options {
        directory: directory.path().to_owned(),
        service: "queen-rbee".to_owned(),
        settings: AuditSettings::default(),
        signer,
    };
    let audit = Auditor::open(options, Event::new(Kind::Start, Outcome::Success))?;
    for number in 1..=ENTRIES {
        match number % AT_ONCE {
            0 => audit.record(event(number)).await?,
            _ => audit.note(event(number)),
        }
    }
    audit.close(Event::new(Kind::Stop, Outcome::Success)).await;
    let mut rates = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let found = verify(directory.path(), Some(&key), &[])?;
        let took = begun.elapsed().as_secs_f64();
        if let Some(problem) = found.problem {
            return Err(problem.into());
        }
        rates.push(f64::from(u32::try_from(found.entries)?) / took);
    }
    rates.sort_by(f64::total_cmp);
    let median = rates.get(ROUNDS / 2);
    let found = json!({"entries": ENTRIES, "rounds": ROUNDS, "entries_per_second": median});
    writeln!(std::io::stdout(), "{found}")?;
    Ok(())
}

fn main() -> Result<(), Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure())
}
