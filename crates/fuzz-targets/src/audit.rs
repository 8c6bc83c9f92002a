//! The verifier of audit logs: whatever becomes of the file, what it takes for whole is what was written. Input is a
//! list of changes to a good log, since each process that fuzzes writes a log of its own.

mod edits;

use std::cell::OnceCell;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use audit_logging::{AuditSettings, Auditor, Event, Kind, Options, Outcome, Signer, verify};
use edits::edited;
use secrets_management::Secret;
use tempfile::TempDir;

use crate::Target;

/// Entries between the first and the last.
const ENTRIES: usize = 4;

/// The verifier of audit logs.
pub const AUDIT_LOG: Target = Target {
    name: "audit_log",
    run: |data| {
        LOG.with(|log| log.get_or_init(Log::write).check(data));
    },
    seeds: || {
        let changes: [&[u8]; 8] = [
            b"",
            b"\x00\x00\x20\x04five",
            b"\x01\x01\x00\x01 ",
            b"\x02\x02\x00\x10",
            b"\x03\x03\x00",
            b"\x04\x02{}\x05\x01\x00",
            b"\x06\x01\x02\x06\x01\x02",
            b"\x07\x05\x05",
        ];
        changes.map(<[u8]>::to_vec).into()
    },
    words: &[
        "\x0e{\"sequence\":1,",
        "\",\"previous_hash\":\"",
        "\",\"event_type\":\"audit.retention\"",
        "\"removed_through\":1",
        ",\"entry_hash\":\"",
        "\x03\"}\n",
        "\x400000000000000000000000000000000000000000000000000000000000000000",
    ],
};

thread_local! {
    static LOG: OnceCell<Log> = const { OnceCell::new() };
}

/// A real log with its signed checkpoints.
struct Log {
    _directory: TempDir,
    path: PathBuf,
    file: File,
    content: Vec<u8>,
    key: String,
}

impl Log {
    #[expect(clippy::expect_used, reason = "without a log there is nothing to fuzz")]
    fn write() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let secret = Secret::from_bytes(b"the-same-every-time", "seed").expect("a secret");
        let signer = Signer::new(&secret, "queen-rbee");
        let key = signer.key();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(write_entries(&path, signer));
        let segment = path.join(format!("{:020}.jsonl", 1));
        let content = fs::read(&segment).expect("the log");
        let file = File::options().write(true).open(&segment).expect("the log");
        // The last checkpoint covers all; to look at the others too takes as long each time.
        let checkpoints = path.join("checkpoints.jsonl");
        let all = fs::read_to_string(&checkpoints).expect("the checkpoints");
        let last = all.lines().last().map(|line| format!("{line}\n")).unwrap_or_default();
        fs::write(&checkpoints, last).expect("the checkpoints");
        Self { _directory: directory, path, file, content, key }
    }

    #[expect(clippy::expect_used, reason = "a disk that fails is no finding")]
    fn check(&self, changes: &[u8]) {
        let data = edited(&self.content, changes);
        self.file.write_all_at(&data, 0).expect("the file");
        self.file.set_len(data.len() as u64).expect("the file");
        let found = verify(&self.path, Some(&self.key), &[]).expect("a log that can be read");
        let is_whole = data.strip_prefix(self.content.as_slice());
        // What a crash leaves of an entry that nobody was told of.
        let is_torn = is_whole.is_some_and(|rest| !rest.contains(&b'\n') && !rest.is_empty());
        let is_good = is_torn || is_whole.is_some_and(<[u8]>::is_empty);
        assert_eq!(found.problem.is_none(), is_good, "{found:?}");
        assert_eq!(found.is_torn && is_good, is_torn, "{found:?}");
    }
}

#[expect(clippy::expect_used, reason = "without a log there is nothing to fuzz")]
async fn write_entries(path: &Path, signer: Signer) {
    let options = Options {
        directory: path.to_owned(),
        service: "queen-rbee".to_owned(),
        settings: AuditSettings::default(),
        signer,
    };
    let audit = Auditor::open(options, Event::of_daemon(Kind::Start, "1.0.0")).expect("a log");
    for number in 0..ENTRIES {
        let event = Event::new(Kind::ModelPull, Outcome::Success);
        let event = event.with_number("number", number as u64);
        audit.record(event).await.expect("an entry");
    }
    audit.close(Event::of_daemon(Kind::Stop, "1.0.0")).await;
}
