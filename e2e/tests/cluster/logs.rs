//! Logs that do not fill the disk: each program begins its own anew at its bound, loses no line over it, and who follows
//! it goes on reading.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::{Cluster, Http, wait_until};
use serde_json::json;

/// The bound, and a line's length more.
const BYTES_MAX: u64 = (1 << 20) + (64 << 10);
/// Requests between two looks at the files, a small part of what fills one.
const BETWEEN_LOOKS: usize = 40;
/// Longer than it takes to log that much of everything.
const LONG: Duration = Duration::from_secs(90);

fn text_of(log: &Path) -> String {
    let read = |path: &Path| fs::read(path).unwrap_or_default();
    let bytes = [read(&log.with_extension("log.1")), read(log)].concat();
    String::from_utf8(bytes).expect("lines of text")
}

/// Asks once, and returns the id under which all three programs log that.
fn ask(queen: &Http) -> String {
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}]});
    let reply = queen.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let id = reply.headers.iter().find(|(name, _)| name == "x-request-id");
    id.expect("an id").1.clone()
}

#[test]
fn logs_keep_to_their_bound_and_lose_no_line() {
    let cluster = Cluster::echo()
        .env("RBEE_LOG", "trace")
        .config("queen-rbee", "[log]\nmax_mib = 1\n")
        .config("rbee-hive", "[log]\nmax_mib = 1\n");
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let queen = cluster.queen();
    let worker = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    let logs = ["queen-rbee", "rbee-hive", &worker]
        .map(|name| cluster.home().join("logs").join(format!("{name}.log")));
    let followers = ["queen", "hive", &worker].map(|name| Follower::of(&cluster, name));

    let was_moved = |log: &Path| log.with_extension("log.1").exists();
    for log in &logs {
        // Read while its first file still is its only other one, so all of it is there.
        let mut asked = Vec::new();
        wait_until("the log is begun anew", LONG, || {
            asked.extend((0..BETWEEN_LOOKS).map(|_| ask(&queen)));
            was_moved(log)
        });
        asked.push(ask(&queen));
        wait_until("the last request stands in the log", LONG, || {
            text_of(log).contains(asked.last().expect("one"))
        });
        let text = text_of(log);
        let lost =
            asked.iter().rev().take(BETWEEN_LOOKS + 20).filter(|id| !text.contains(*id)).count();
        assert_eq!(lost, 0, "of the last requests, in {}", log.display());
        for file in [log, &log.with_extension("log.1")] {
            let bytes = fs::metadata(file).expect("a file").len();
            assert!(bytes <= BYTES_MAX, "{} has {bytes} bytes", file.display());
        }
        assert!(!log.with_extension("log.new").exists(), "{}", log.display());
    }
    for (name, log) in ["queen", "hive", &worker].into_iter().zip(&logs) {
        let of_both = fs::read_to_string(log).expect("a log").lines().count() + 50;
        let shown = cluster.rbee(&["logs", name, "-n", &of_both.to_string()]).ok();
        assert!(shown.lines().count() >= of_both, "{name}: {of_both}");
    }
    let last = ask(&queen);
    for follower in followers {
        wait_until("the follower reads the new file", LONG, || follower.has_read(&last));
    }
}

/// `rbee logs -f`.
struct Follower {
    child: std::process::Child,
    read: Arc<Mutex<String>>,
}

impl Follower {
    fn of(cluster: &Cluster, name: &str) -> Self {
        let mut command = cluster.command("rbee", &["logs", "-f", name]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("rbee logs");
        let mut output = child.stdout.take().expect("its output");
        let read = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&read);
        std::thread::spawn(move || {
            let mut piece = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = output.read(&mut piece) {
                kept.lock().expect("text").push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        });
        Self { child, read }
    }

    fn has_read(&self, words: &str) -> bool {
        self.read.lock().expect("text").contains(words)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("the end of rbee logs");
    }
}
