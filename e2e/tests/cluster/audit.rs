//! The audit logs of the real daemons: what stands in them, that they are one chain whatever happens, what is refused
//! where they cannot be written, and what a verifier on another machine finds.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::{Cluster, Finished, Http, free_address, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const LIMIT: Duration = Duration::from_secs(30);

/// The entries of one log, oldest first.
pub(crate) fn entries(home: &Path, service: &str) -> Vec<Value> {
    let Ok(listing) = fs::read_dir(home.join("audit").join(service)) else { return Vec::new() };
    let mut files: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('0'))
    });
    files.sort();
    let text: String = files.iter().map(|path| fs::read_to_string(path).expect("text")).collect();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Waits for an entry of one kind and outcome that `is_it` accepts.
fn entry(home: &Path, service: &str, kind: &str, outcome: &str) -> Value {
    wait_for(&format!("{service} tells of {kind} {outcome}"), LIMIT, || {
        entries(home, service)
            .into_iter()
            .find(|entry| entry["event_type"] == kind && entry["outcome"] == outcome)
    })
}

/// The name of the one worker's log.
fn worker_log(home: &Path) -> String {
    let listing = fs::read_dir(home.join("audit/llm-worker-rbee")).expect("logs of workers");
    let names = listing.flatten().map(|entry| entry.file_name().into_string().expect("a name"));
    format!("llm-worker-rbee/{}", names.collect::<Vec<_>>().first().expect("a worker"))
}

fn chat(queen: &Http, content: &str) -> u16 {
    let messages = json!([{"role": "user", "content": content}]);
    queen.post(CHAT, &json!({"model": "tiny", "messages": messages})).status
}

fn verify(cluster: &Cluster) -> Finished {
    cluster.rbee(&["audit", "verify", "--json"])
}

fn is_good(cluster: &Cluster) -> Value {
    let report: Value = serde_json::from_str(&verify(cluster).ok()).expect("JSON");
    assert_eq!(report["good"], true, "{report}");
    report
}

fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a folder").flatten() {
        let path = entry.path();
        let mode = fs::metadata(&path).expect("metadata").permissions().mode() & 0o777;
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            files_below(&path, found);
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
            found.push(path);
        }
    }
}

/// The log of a daemon tells of its start, and of the request from its beginning to its end.
fn has_begun_and_served(home: &Path, service: &str, id: &str) {
    let done = entry(home, service, "inference.complete", "success");
    assert_eq!(done["request_id"], id, "{service}: {done}");
    let own: Vec<String> = entries(home, service)
        .iter()
        .filter(|entry| entry["request_id"] == id)
        .map(|entry| entry["event_type"].as_str().expect("a kind").to_owned())
        .collect();
    let expected: &[&str] = match service {
        "queen-rbee" | "rbee-hive" => &["inference.start", "worker.assigned", "inference.complete"],
        _ => &["inference.start", "inference.complete"],
    };
    assert_eq!(own, expected, "{service}");
    let start = entry(home, service, "daemon.start", "success");
    assert_eq!(
        (start["sequence"].as_u64(), start["previous_hash"].as_str()),
        (Some(1), Some("0".repeat(64).as_str()))
    );
}

#[test]
fn one_request_stands_in_the_logs_of_all_daemons_under_one_id_and_no_secret_does() {
    let cluster = Cluster::echo();
    let home = cluster.home();
    cluster.import_tiny("tiny");
    let queen = cluster.queen();
    assert_eq!(chat(&queen, "canary-prompt-4711"), 200);
    let wrong = "canary-wrong-token-0815";
    assert_eq!(Http::new(&cluster.url("queen"), Some(wrong)).get("/v1/models").status, 401);
    let hive_token = cluster.secret("hive.token");
    assert_eq!(Http::new(&cluster.url("queen"), Some(&hive_token)).get("/v1/models").status, 403);

    let begun = entry(&home, "queen-rbee", "inference.start", "requested");
    let id = begun["request_id"].as_str().expect("an id").to_owned();
    assert_eq!(
        (begun["actor"]["kind"].as_str(), begun["service"].as_str()),
        (Some("client"), Some("queen-rbee"))
    );
    assert_eq!(begun["actor"]["key"].as_str().map(str::len), Some(6), "{begun}");
    let worker = worker_log(&home);
    for service in ["queen-rbee", "rbee-hive", &worker] {
        has_begun_and_served(&home, service, &id);
    }
    let failure = entry(&home, "queen-rbee", "auth.failure", "denied");
    assert_eq!(failure["subject"]["id"], "GET /v1/models", "{failure}");
    assert!(failure["actor"]["address"].as_str().is_some_and(|a| a.starts_with("127.0.0.1:")));
    assert_eq!(failure["actor"]["key"].as_str().map(str::len), Some(6));
    assert_eq!(entry(&home, "queen-rbee", "auth.denied", "denied")["actor"]["kind"], "peer");
    let pull = entry(&home, "rbee-hive", "model.pull", "success");
    let asked = entry(&home, "queen-rbee", "model.pull", "requested");
    assert_eq!(pull["request_id"], asked["request_id"]);
    let spawn = entry(&home, "rbee-hive", "worker.spawn", "success");
    assert!(spawn["details"]["pid"].is_u64() && spawn["details"]["backend"] == "echo", "{spawn}");
    drop(cluster.rbee(&["stop", "--all"]).ok());
    let stop = entry(&home, "rbee-hive", "worker.stop", "success");
    assert!(
        stop["details"]["device"].is_string() && stop["details"]["model"].is_string(),
        "{stop}"
    );
    assert_eq!(entry(&home, "queen-rbee", "worker.stop", "requested")["actor"]["kind"], "client");
    drop(cluster.rbee(&["queen", "stop"]).ok());
    for service in ["queen-rbee", "rbee-hive", &worker] {
        let all = entries(&home, service);
        assert_eq!(all.last().expect("entries")["event_type"], "daemon.stop", "{service}");
    }

    let report = is_good(&cluster);
    assert_eq!(report["logs"].as_array().map(Vec::len), Some(3), "{report}");
    let mut files = Vec::new();
    files_below(&home.join("audit"), &mut files);
    let secrets: Vec<String> = ["client.token", "hive.token", "worker.key", "audit.key"]
        .iter()
        .map(|file| cluster.secret(file))
        .chain([wrong.to_owned(), "canary-prompt-4711".to_owned()])
        .collect();
    for file in files {
        let text = fs::read_to_string(&file).expect("text");
        assert!(!secrets.iter().any(|secret| text.contains(secret)), "{}", file.display());
    }
    let tail = cluster.rbee(&["audit", "tail", "-n", "3"]).ok();
    assert!(tail.lines().count() == 3 && tail.contains("daemon.stop success by system"), "{tail}");
    let table = cluster.rbee(&["audit", "export", "--since", "1h", "--format", "csv"]).ok();
    assert!(table.starts_with("\"sequence\",\"timestamp\"") && table.contains(&id), "{table}");
}

#[test]
fn restarts_kills_and_a_change_of_file_are_one_chain_and_an_edit_is_named() {
    let small = "[audit]\nsegment_mib = 1\nauth_success_sample = 1\n";
    let cluster = Cluster::echo().config("queen-rbee", small).config("rbee-hive", small);
    let directory = cluster.home().join("audit/queen-rbee");
    cluster.import_tiny("tiny");
    for round in 0..3 {
        let queen = cluster.queen();
        assert_eq!(chat(&queen, "hello"), 200);
        if round == 0 {
            wait_until("a second file is begun", Duration::from_secs(120), || {
                (0..50).for_each(|_| assert_eq!(queen.get("/v1/models").status, 200));
                files_of(&directory).len() > 1
            });
        }
        // In the middle of writing.
        let url = cluster.url("queen");
        let token = cluster.secret("client.token");
        let busy = std::thread::spawn(move || {
            let queen = Http::new(&url, Some(&token));
            (0..200).take_while(|_| queen.try_call("GET", "/v1/models", None).is_some()).count()
        });
        wait_until("entries are written", LIMIT, || is_growing(&directory));
        for program in ["queen-rbee", "rbee-hive"] {
            cluster.process(program).signal(Signal::KILL);
        }
        busy.join().expect("a client that ends");
        drop(cluster.rbee(&["queen", "start"]).ok());
    }
    drop(cluster.rbee(&["queen", "stop"]).ok());
    is_good(&cluster);
    let all = entries(&cluster.home(), "queen-rbee");
    let starts = all.iter().filter(|entry| entry["event_type"] == "daemon.start").count();
    assert_eq!(starts, 4, "one chain over four lives");

    let file = files_of(&directory).remove(0);
    let text = fs::read_to_string(&file).expect("text");
    let entry = line(&text, 17);
    let forged = text.replacen(entry, &entry.replace("\"outcome\":\"", "\"outcome\":\"no "), 1);
    assert_ne!(forged, text);
    fs::write(&file, forged).expect("a file to write");
    let refused = verify(&cluster);
    assert_eq!(refused.code, 1, "{}", refused.stdout);
    let report: Value = serde_json::from_str(&refused.stdout).expect("JSON");
    let queen =
        report["logs"].as_array().expect("logs").iter().find(|log| log["service"] == "queen-rbee");
    assert_eq!(queen.expect("the queen's")["problem"]["entry"], 17, "{report}");
}

/// The line of one entry.
fn line(text: &str, sequence: u64) -> &str {
    let head = format!("{{\"sequence\":{sequence},");
    text.lines().find(|line| line.starts_with(&head)).expect("the entry")
}

fn files_of(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(directory).expect("a log").flatten().map(|entry| entry.path()).collect();
    files.retain(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('0'))
    });
    files.sort();
    files
}

fn is_growing(directory: &Path) -> bool {
    let size = || -> u64 {
        files_of(directory).iter().map(|path| fs::metadata(path).map_or(0, |m| m.len())).sum()
    };
    let before = size();
    wait_until("an entry is written", LIMIT, || size() > before);
    true
}

/// A file system of a megabyte.
struct SmallDisk(PathBuf);

impl SmallDisk {
    #[expect(clippy::disallowed_methods, reason = "mount is a program")]
    fn mount(at: &Path) -> Self {
        let options = ["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(at).status().expect("mount");
        // Mounting needs root, which CI and a fresh machine have.
        assert!(mounted.success(), "cannot mount a small tmpfs at {}", at.display());
        Self(at.to_owned())
    }

    fn fill(&self) {
        let file = fs::File::create(self.0.join("filler")).expect("a file");
        for piece in [4096, 1] {
            while std::io::Write::write_all(&mut &file, &vec![0; piece]).is_ok() {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.0.join("filler")).expect("a file to remove");
    }
}

impl Drop for SmallDisk {
    #[expect(clippy::disallowed_methods, reason = "umount is a program")]
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

fn metric(queen: &Http, name: &str) -> f64 {
    let text = queen.get("/metrics").body;
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default();
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(-1.0)
}

#[test]
fn on_a_full_disk_commands_are_refused_and_requests_go_on_and_are_counted() {
    let cluster = Cluster::echo();
    let home = cluster.home();
    fs::create_dir_all(home.join("audit")).expect("a home");
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("chmod");
    let disk = SmallDisk::mount(&home.join("audit"));
    cluster.import_tiny("tiny");
    let queen = cluster.queen();
    assert_eq!(chat(&queen, "hello"), 200);
    assert!(metric(&queen, "rbee_audit_entries_lost_total").abs() < 0.5);
    disk.fill();
    let model = json!({"reference": "file:/nowhere.gguf"});
    wait_until("a command is refused", LIMIT, || {
        let refused = queen.post("/api/v1/models/pull", &model);
        (refused.status, refused.code().as_str()) == (503, "audit_unavailable")
    });
    for _ in 0..50 {
        assert_eq!(chat(&queen, "hello"), 200);
    }
    wait_until("lost entries are counted", LIMIT, || {
        metric(&queen, "rbee_audit_entries_lost_total") > 0.0
    });
    // What has room still is written, and makes the room less.
    let mut keys = 0;
    wait_until("the queen refuses a command herself", LIMIT, || {
        keys += 1;
        let key = json!({"name": format!("ci-{keys}")});
        queen.post("/api/v1/keys", &key).code() == "audit_unavailable"
    });
    assert!(metric(&queen, "rbee_audit_refusals_total") > 0.0);
    // What gives something back goes on.
    drop(cluster.rbee(&["stop", "--all"]).ok());
    drop(cluster.rbee(&["rm", "--yes", "tiny"]).ok());
    assert!(cluster.rbee(&["status"]).ok().contains("audit log: cannot be written"));
    disk.free();
    let lost = entry(&home, "queen-rbee", "audit.lost", "failure");
    assert!(lost["details"]["entries"].as_u64() > Some(0), "{lost}");
    drop(cluster.rbee(&["queen", "stop"]).ok());
    is_good(&cluster);
}

#[test]
fn without_an_audit_log_there_is_no_file_and_the_status_says_so() {
    let off = "[audit]\nmode = \"off\"\n";
    let cluster = Cluster::echo().config("queen-rbee", off).config("rbee-hive", off);
    cluster.import_tiny("tiny");
    let queen = cluster.queen();
    assert_eq!(chat(&queen, "hello"), 200);
    assert!(cluster.rbee(&["status"]).ok().contains("audit log: off"));
    assert_eq!(queen.get("/api/v1/status").json()["audit"]["mode"], "off");
    assert_eq!(cluster.hive().get("/api/v1/status").json()["audit"]["mode"], "off");
    assert!(!cluster.home().join("audit").exists());
    let none = cluster.rbee(&["audit", "verify"]);
    assert_eq!(none.code, 1, "{}", none.stdout);
}

#[test]
fn either_machine_holds_what_proves_that_the_others_log_was_cut() {
    let address = free_address();
    let cluster = Cluster::echo().env("RBEE_QUEEN_BIND", &address);
    cluster.import_tiny("tiny");
    let attic = cluster.add_machine("attic", &address);
    let attic_home = cluster.home().with_file_name("rbee-attic");
    let held = |home: &Path, prefix: &str| -> Option<PathBuf> {
        let listing = fs::read_dir(home.join("audit/held")).ok()?;
        let paths = listing.flatten().map(|entry| entry.path());
        paths.into_iter().find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        })
    };
    let of_attic =
        wait_for("the queen holds the attic's", LIMIT, || held(&cluster.home(), "attic."));
    wait_for("the attic holds the queen's", LIMIT, || held(&attic_home, "queen."));
    drop(attic.hive().post("/api/v1/shutdown", &json!({})));
    wait_until("the attic's hive has ended", LIMIT, || {
        let all = entries(&attic_home, "rbee-hive");
        all.last().is_some_and(|last| last["event_type"] == "daemon.stop")
    });
    let file = of_attic.to_str().expect("UTF-8").to_owned();
    let home = attic_home.to_str().expect("UTF-8").to_owned();
    let check = || {
        cluster.rbee(&[
            "--home",
            &home,
            "audit",
            "verify",
            "--service",
            "hive",
            "--checkpoints",
            &file,
        ])
    };
    drop(check().ok());
    let log = files_of(&attic_home.join("audit/rbee-hive")).remove(0);
    fs::write(&log, "").expect("a file to cut");
    fs::remove_file(attic_home.join("audit/rbee-hive/checkpoints.jsonl"))
        .expect("a file to remove");
    let found = check();
    assert_eq!(found.code, 1, "{}", found.stdout);
    assert!(found.stdout.contains("missing at the end"), "{}", found.stdout);
}
