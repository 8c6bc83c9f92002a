//! Secrets that change while everything runs: the chapter of docs/SECRETS.md,
//! followed word for word, and what it promises.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use e2e::{Cluster, Http, wait_for, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Longer than any daemon takes to read a file again.
const SOON: Duration = Duration::from_secs(10);

/// The lines of shell under `## Rotation`, block by block.
fn blocks() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/SECRETS.md");
    let page = fs::read_to_string(page).expect("docs/SECRETS.md");
    let chapter = page.split("\n## Rotation\n").nth(1).expect("a chapter about rotation");
    let chapter = chapter.split("\n## ").next().expect("its end");
    let after = chapter.split("```sh\n").skip(1);
    after.map(|rest| rest.split("```").next().expect("an end of the block").to_owned()).collect()
}

fn status(url: &str, token: &str) -> u16 {
    Http::new(url, Some(token)).get("/api/v1/status").status
}

fn ask() -> Value {
    json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}]})
}

#[test]
fn the_chapter_about_rotation_can_be_followed_and_the_service_stays_up() {
    let blocks = blocks();
    assert_eq!(blocks.len(), 5, "{blocks:?}");
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let pids = || ["queen-rbee", "rbee-hive"].map(|program| cluster.process(program).pid);
    let (queen, before) = (cluster.url("queen"), pids());
    let mut seen: Vec<String> =
        ["client.token", "hive.token"].map(|file| cluster.secret(file)).to_vec();
    for block in &blocks {
        let old = ["client.token", "hive.token"].map(|file| cluster.secret(file));
        let revokes = block.contains("revoke") || block.contains("kill -HUP");
        let stop = AtomicBool::new(false);
        let answered = AtomicU32::new(0);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                // A client with the old token goes on through a rotation; a revoked one does not.
                let http = Http::new(&queen, Some(&old[0]));
                while !revokes && !stop.load(Ordering::SeqCst) {
                    let reply = http.post("/v1/chat/completions", &ask());
                    assert_eq!(reply.status, 200, "{block}: {}", reply.body);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
            if !revokes {
                wait_until("the client is served", SOON, || answered.load(Ordering::SeqCst) > 0);
            }
            drop(cluster.shell(block).ok());
            if !revokes {
                let so_far = answered.load(Ordering::SeqCst);
                wait_until("it still is", SOON, || answered.load(Ordering::SeqCst) > so_far + 3);
            }
            stop.store(true, Ordering::SeqCst);
            client.join().expect("every request was answered");
        });
        let new = ["client.token", "hive.token"].map(|file| cluster.secret(file));
        wait_until("the new token is taken", SOON, || status(&queen, &new[0]) == 200);
        if old[0] != new[0] && revokes {
            wait_until("the old one is refused", SOON, || status(&queen, &old[0]) == 401);
        } else if old[0] != new[0] {
            assert_eq!(status(&queen, &old[0]), 200, "within the overlap");
        }
        wait_for("the chain works with the new tokens", SOON, || {
            let reply = cluster.queen().post("/v1/chat/completions", &ask());
            (reply.status == 200).then_some(())
        });
        seen.extend(new);
    }
    let former =
        ["client.token", "hive.token"].map(|file| seen[..2].contains(&cluster.secret(file)));
    assert_eq!(former, [false, false], "both tokens were replaced");
    assert_eq!(pids(), before, "nothing was restarted");
    for entry in fs::read_dir(cluster.home().join("logs")).expect("logs").flatten() {
        let log = fs::read_to_string(entry.path()).expect("a log");
        assert!(seen.iter().all(|token| !log.contains(token)), "{}", entry.path().display());
    }
}

#[test]
fn an_overlap_ends_and_a_file_that_cannot_be_used_changes_nothing() {
    let cluster = Cluster::echo().config("queen-rbee", "[auth]\ntoken_overlap_seconds = 1\n");
    drop(cluster.rbee(&["queen", "start"]).ok());
    let (url, old) = (cluster.url("queen"), cluster.secret("client.token"));
    drop(cluster.rbee(&["token", "rotate"]).ok());
    let new = cluster.secret("client.token");
    assert_eq!(status(&url, &new), 200);
    // Both are read again; what has not changed is not said to have.
    let rotated = || -> Vec<Value> {
        let entries = crate::audit::entries(&cluster.home(), "queen-rbee").into_iter();
        entries.filter(|entry| entry["event_type"] == "key.rotate").collect()
    };
    wait_until("it stands in the audit log", SOON, || !rotated().is_empty());
    let subjects: Vec<Value> =
        rotated().iter().map(|entry| entry["subject"]["id"].clone()).collect();
    assert_eq!(subjects, ["client"], "{:?}", rotated());
    wait_until("the overlap ends", SOON, || status(&url, &old) == 401);

    let file = cluster.home().join("secrets/client.token");
    fs::write(&file, "another-token-of-good-length").expect("a token");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("chmod");
    cluster.process("queen-rbee").signal(Signal::HUP);
    let log = || fs::read_to_string(cluster.home().join("logs/queen-rbee.log")).expect("a log");
    wait_until("it is told", SOON, || log().contains("stays in force"));
    assert!(log().contains("expected 0600"), "{}", log());
    assert_eq!([status(&url, &new), status(&url, "another-token-of-good-length")], [200, 401]);
}

#[test]
fn tokens_come_from_files_and_credentials_that_are_named_and_from_nothing_else() {
    let given = tempfile::TempDir::new().expect("a folder");
    let put = |name: &str, token: &str| {
        let path = given.path().join(name);
        fs::write(&path, token).expect("a token");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("chmod");
        path.to_str().expect("UTF-8").to_owned()
    };
    let client = put("client", "a-client-token-from-a-file\n");
    let cluster =
        Cluster::echo().env("RBEE_CLIENT_TOKEN_FILE", &client).env("RBEE_TOKEN_FILE", &client);
    drop(cluster.rbee(&["queen", "start"]).ok());
    assert_eq!(status(&cluster.url("queen"), "a-client-token-from-a-file"), 200);
    assert!(!cluster.home().join("secrets/client.token").exists(), "none is made beside it");

    put("api-token", "a-client-token-from-systemd");
    put("hive", "a-hive-token-from-systemd");
    let named = |client: &str| {
        let directory = given.path().to_str().expect("UTF-8");
        let auth = format!(
            "[auth]\nhive_token_credential = 'hive'\nclient_token_credential = '{client}'\n"
        );
        Cluster::echo()
            .env("CREDENTIALS_DIRECTORY", directory)
            .env("RBEE_TOKEN_FILE", &format!("{directory}/{client}"))
            .config("queen-rbee", &auth)
            .config("rbee-hive", "[auth]\nhive_token_credential = 'hive'\n")
    };
    let cluster = named("api-token");
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    assert_eq!(status(&cluster.url("queen"), "a-client-token-from-systemd"), 200);
    assert_eq!(status(&cluster.url("hive"), "a-hive-token-from-systemd"), 200);
    for missing in ["other", "../client", ".hidden"] {
        let cluster = named(missing);
        let refused = cluster.finish(cluster.command("queen-rbee", &[]));
        assert_eq!(refused.code, 78, "{missing}: {}", refused.stderr);
        assert!(refused.stderr.contains(missing), "{missing}: {}", refused.stderr);
    }
}

#[test]
fn fingerprints_are_shown_and_tokens_are_not() {
    let cluster = Cluster::echo();
    drop(cluster.rbee(&["queen", "start"]).ok());
    let (token, before) =
        (cluster.secret("client.token"), cluster.rbee(&["token", "show-fingerprint"]).ok());
    let rotated = cluster.rbee(&["token", "rotate", "--json"]).ok();
    let told: Value = serde_json::from_str(&rotated).expect("JSON");
    let former = told["former"].as_str().expect("a fingerprint");
    assert!(former.len() == 6 && before.contains(former), "{before} {rotated}");
    assert_eq!(told["told"][0]["program"], "queen-rbee");
    let shown: Value =
        serde_json::from_str(&cluster.rbee(&["token", "show-fingerprint", "--json"]).ok())
            .expect("JSON");
    assert_eq!(
        (&shown["client"]["fingerprint"], &shown["client"]["former"]),
        (&told["fingerprint"], &told["former"])
    );
    for text in [before, rotated, shown.to_string()] {
        assert!(
            !text.contains(&token) && !text.contains(&cluster.secret("client.token")),
            "{text}"
        );
    }
    let elsewhere = cluster.rbee(&["token", "rotate", "--queen", "http://127.0.0.1:1"]);
    assert_eq!(elsewhere.code, 2, "{}", elsewhere.stderr);
}
