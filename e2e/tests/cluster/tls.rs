//! TLS through the whole product: keeper, queen, hive and worker, a client from outside, and a keeper on another
//! computer.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use e2e::{Cluster, Http, address_of, raw, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Longest wait for a signal to be heeded.
const HEEDED: Duration = Duration::from_secs(10);

/// A cluster whose queen and hive speak TLS with certificates of a CA of their own.
fn local() -> Cluster {
    let cluster = Cluster::echo().env("RBEE_QUEEN_TLS", "local").env("RBEE_HIVE_TLS", "local");
    cluster.import_tiny("tiny");
    cluster
}

fn ask(queen: &Http) -> String {
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello there"}]});
    let reply = queen.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
}

#[test]
fn a_prompt_is_answered_over_tls_at_each_hop() {
    let cluster = local();
    let answer = cluster.rbee(&["run", "tiny", "hello there"]).ok();
    assert!(answer.contains("hello there"), "{answer}");
    for daemon in ["queen", "hive"] {
        assert!(cluster.url(daemon).starts_with("https://127.0.0.1:"), "{}", cluster.url(daemon));
    }
    assert!(ask(&cluster.queen()).contains("hello there"));
    assert_eq!(cluster.hive().get("/api/v1/status").status, 200);
    let status = cluster.rbee(&["status"]).ok();
    assert!(status.contains("https://") && !status.contains("plain HTTP"), "{status}");
    let ca = cluster.home().join("tls/ca.pem").display().to_string();
    let env = cluster.rbee(&["env", "--shell"]);
    assert!(env.stderr.contains(&ca) && !env.stdout.contains(&ca), "{env:?}");
    let env: Value = serde_json::from_str(&cluster.rbee(&["env", "--json"]).ok()).expect("JSON");
    assert_eq!(env["certificate_file"], ca);
    for (file, mode) in [("tls", 0o700), ("tls/ca.key", 0o600)] {
        let found = fs::metadata(cluster.home().join(file)).expect(file).permissions().mode();
        assert_eq!(found & 0o777, mode, "{file}");
    }
}

#[test]
fn a_queen_that_speaks_tls_is_measured_here_and_from_elsewhere() {
    let cluster = local();
    let load = ["bench", "-m", "tiny", "--streams", "1", "--requests", "2", "--json"];
    let (url, ca) = (cluster.url("queen"), cluster.home().join("tls/ca.pem"));
    let token = cluster.home().join("secrets/client.token");
    let (ca, token) = (ca.to_str().expect("a path"), token.to_str().expect("a path"));
    let by_address = ["--url", &url, "--key-file", token, "--ca-file", ca];
    for more in [&[][..], &by_address] {
        let report = cluster.rbee(&[&load, more].concat()).ok();
        let report: Value = serde_json::from_str(&report).expect("JSON");
        assert_eq!(report["failed"], 0, "{report}");
        assert_eq!(report["endpoints"][0]["url"], url);
    }
}

#[test]
fn a_worker_outlives_a_hive_that_speaks_tls_and_finds_the_next_one() {
    let cluster = local();
    drop(cluster.rbee(&["run", "tiny", "hello"]).ok());
    let worker = cluster.process("llm-worker-rbee").pid;
    let hive = cluster.process("rbee-hive");
    hive.signal(Signal::KILL);
    wait_until("the next hive lists the worker", Duration::from_secs(30), || {
        cluster.process("rbee-hive").pid != hive.pid
            && cluster.workers().iter().any(|w| w["state"] == "ready" && w["pid"] == worker)
    });
    assert!(ask(&cluster.queen()).contains("hello"));
    assert_eq!(cluster.process("llm-worker-rbee").pid, worker);
}

#[test]
fn who_speaks_plain_http_or_knows_another_ca_reaches_nothing() {
    let cluster = local();
    let other = local();
    for daemon in ["queen", "hive"] {
        let (url, token) = (cluster.url(daemon), cluster.secret("client.token"));
        let head = format!(
            "GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
        );
        let reply = raw(Ipv4Addr::LOCALHOST, address_of(&url), head.as_bytes());
        assert_eq!(reply.status, 400, "{daemon}: {}", reply.body);
        assert!(reply.body.contains("\"tls_required\""), "{daemon}: {}", reply.body);
        let stranger = Http::trusting(&url, Some(&token), &other.ca());
        assert!(stranger.try_call("GET", "/livez", None).is_none(), "{daemon}");
    }
    let plain = cluster.url("queen").replace("https:", "http:");
    let refused = cluster.rbee(&["--queen", &plain, "status"]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("https://"), "{}", refused.stderr);
}

#[test]
fn a_keeper_elsewhere_needs_the_ca_of_the_queen() {
    let cluster = local();
    let elsewhere = Cluster::echo();
    let token = cluster.home().join("secrets/client.token");
    let ca = cluster.home().join("tls/ca.pem");
    let url = cluster.url("queen");
    let status = |more: &[&str]| {
        let token = token.to_str().expect("a path");
        elsewhere.rbee(&[&["status", "--queen", &url, "--token-file", token], more].concat())
    };
    let nothing = status(&[]);
    assert_eq!(nothing.code, 78, "{}", nothing.stderr);
    assert!(nothing.stderr.contains("--ca-file"), "{}", nothing.stderr);
    let good = status(&["--ca-file", ca.to_str().expect("a path")]).ok();
    assert!(good.contains(&url), "{good}");

    let other = local();
    let wrong = other.home().join("tls/ca.pem");
    let refused = status(&["--ca-file", wrong.to_str().expect("a path")]);
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    assert!(refused.stderr.contains("certificate"), "{}", refused.stderr);
}

/// Writes a certificate for `name`, signed by itself, and its key; returns the certificate.
fn write_certificate(directory: &Path, name: &str) -> String {
    let made = rcgen::generate_simple_self_signed([name.to_owned(), "127.0.0.1".to_owned()]);
    let made = made.expect("a certificate");
    let key = directory.join("key.pem");
    fs::write(directory.join("cert.pem"), made.cert.pem()).expect("a file");
    fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
    made.cert.pem()
}

/// A cluster whose queen and hive have certificates from files in `directory`.
fn from_files(directory: &Path) -> Cluster {
    let keys = format!(
        "[tls]\nmode = 'files'\ncert_file = '{0}/cert.pem'\nkey_file = '{0}/key.pem'\n",
        directory.display()
    );
    Cluster::echo().config("queen-rbee", &keys).config("rbee-hive", &keys)
}

#[test]
fn a_certificate_from_files_is_replaced_while_everything_runs() {
    let directory = tempfile::tempdir().expect("a folder");
    let first = write_certificate(directory.path(), "first.example");
    let cluster = from_files(directory.path());
    cluster.import_tiny("tiny");
    let (url, token) = (cluster.url("queen"), cluster.secret("client.token"));
    assert!(ask(&Http::trusting(&url, Some(&token), &first)).contains("hello there"));

    let second = write_certificate(directory.path(), "second.example");
    for daemon in ["queen-rbee", "rbee-hive"] {
        cluster.process(daemon).signal(Signal::HUP);
    }
    let answers =
        |ca: &str| Http::trusting(&url, Some(&token), ca).try_call("GET", "/livez", None).is_some();
    wait_until("the new certificate is shown", HEEDED, || answers(&second) && !answers(&first));
    // The keeper and the queen know the daemons of their machine by what lies in the files now.
    assert!(cluster.rbee(&["run", "tiny", "hello again"]).ok().contains("hello again"));
    wait_until("the queen knows the hive by its new certificate", HEEDED, || {
        let queen = Http::trusting(&url, Some(&token), &second);
        queen.get("/api/v1/status").json()["hives"][0]["state"] == "online"
    });
}

#[test]
fn a_key_that_others_can_read_stops_both_daemons() {
    for program in ["queen-rbee", "rbee-hive"] {
        let directory = tempfile::tempdir().expect("a folder");
        write_certificate(directory.path(), "queen.example");
        let key = directory.path().join("key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
        let cluster = from_files(directory.path());
        let refused = cluster.finish(cluster.command(program, &[]));
        assert_ne!(refused.code, 0, "{program}");
        assert!(refused.stderr.contains("chmod 600"), "{program}: {}", refused.stderr);
        assert!(!refused.stderr.contains("PRIVATE KEY"), "{program}: {}", refused.stderr);
    }
}
