//! Secrets that nobody else could have written, put into every place that a
//! secret can have, and then looked for wherever anything is kept or told.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use e2e::{Cluster, Http};
use secrets_management::Secret;
use serde_json::json;

const CLIENT: &str = "canary-client-token-5f1c";
const HIVE: &str = "canary-hive-token-77ab";
const KEY: &str = "canary-worker-key-0d3e";
const WRONG: &str = "canary-wrong-token-e910";
/// In the form of a JWT, as a client of another program may send it by mistake.
const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOiJqd3QtNGMyYSJ9.canary-signature-4c2a";
const PROMPT: &str = "canary prompt about zebras 8842";

/// The forms in which a secret could have been written down.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let bytes = secret.as_bytes();
    let hex = |upper: bool| {
        let digits =
            bytes.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") });
        digits.collect::<String>()
    };
    let url: String = bytes.iter().map(|b| format!("%{b:02X}")).collect();
    let mut forms = vec![secret.to_owned(), hex(false), hex(true), url];
    forms.push(secret.replace(' ', "%20"));
    forms.push(secret.replace(' ', "+"));
    forms.push(secret.replace(' ', "\\u0020"));
    forms.push(secret.chars().rev().collect());
    // In base64 the beginning depends on what stands before it: each of three positions, without its ragged ends.
    for skip in 0..3 {
        let aligned = &bytes[skip..bytes.len() - (bytes.len() - skip) % 3];
        forms.push(BASE64_STANDARD_NO_PAD.encode(aligned));
        forms.push(BASE64_URL_SAFE_NO_PAD.encode(aligned));
    }
    forms.into_iter().map(String::into_bytes).collect()
}

fn own_secret(cluster: &Cluster, file: &str, secret: &str) {
    let folder = cluster.home().join("secrets");
    fs::create_dir_all(&folder).expect("a folder");
    for private in [&cluster.home(), &folder] {
        fs::set_permissions(private, fs::Permissions::from_mode(0o700)).expect("chmod");
    }
    fs::write(folder.join(file), secret).expect("a secret");
    fs::set_permissions(folder.join(file), fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// Every file below a folder but the secrets themselves.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "secrets" {
            files(&path, found);
        } else if path.is_file() {
            found.push(path);
        }
    }
}

/// What is told over HTTP: listings, logs and metrics of all daemons, and the refusals of bad requests.
fn told(cluster: &Cluster) -> Vec<(String, String)> {
    let queen = cluster.queen();
    let id = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    let mut told = Vec::new();
    for path in [
        "/metrics",
        "/api/v1/status",
        "/api/v1/workers",
        "/api/v1/models",
        "/api/v1/hives",
        "/v1/models",
    ] {
        told.push((format!("queen {path}"), queen.get(path).body));
    }
    for path in
        ["/metrics", "/api/v1/status", "/api/v1/workers", &format!("/api/v1/workers/{id}/metrics")]
    {
        told.push((format!("hive {path}"), cluster.hive().get(path).body));
    }
    told.push(("worker's log".to_owned(), queen.get(&format!("/api/v1/workers/{id}/logs")).body));
    let message = |content: &str| json!([{"role": "user", "content": content}]);
    for body in [
        json!({"model": "tiny", "messages": message(PROMPT), "temperature": 9}),
        json!({"model": "tiny", "messages": message(PROMPT), "wish": 1}),
        json!({"model": "nothing:1b", "messages": message(PROMPT)}),
        json!({"model": "tiny", "messages": message(&format!("{PROMPT}\u{0}"))}),
        json!({"model": "tiny", "messages": message(&PROMPT.repeat(20_000))}),
        json!({"model": "tiny", "messages": PROMPT}),
        json!({"model": "tiny", "messages": [{"role": "user", "content": {"text": PROMPT}}]}),
    ] {
        let reply = queen.post("/v1/chat/completions", &body);
        assert!(reply.status >= 400, "{body}");
        told.push(("refusal of a chat".to_owned(), format!("{:?} {}", reply.headers, reply.body)));
    }
    let garbage =
        queen.post_text("/v1/chat/completions", &format!("{{\"model\": \"tiny\", \"{PROMPT}"));
    told.push(("refusal of garbage".to_owned(), garbage.body));
    for url in ["queen", "hive"].map(|name| cluster.url(name)) {
        for token in [WRONG, JWT, &format!("{WRONG} {WRONG}"), ""] {
            let reply = Http::new(&url, Some(token)).get("/api/v1/status");
            assert_eq!(reply.status, 401);
            told.push((
                "refusal of a token".to_owned(),
                format!("{:?} {}", reply.headers, reply.body),
            ));
        }
        // The credential in the wrong place.
        let reply = Http::new(&url, None).get(&format!("/v1/models?token={WRONG}&key={JWT}"));
        told.push(("refusal of a query".to_owned(), format!("{:?} {}", reply.headers, reply.body)));
    }
    told
}

#[test]
fn no_secret_and_no_prompt_is_kept_or_told_anywhere_in_any_form() {
    let cluster = Cluster::echo().env("RBEE_LOG", "trace");
    own_secret(&cluster, "client.token", CLIENT);
    own_secret(&cluster, "hive.token", HIVE);
    own_secret(&cluster, "worker.key", KEY);
    cluster.import_tiny("tiny");
    for prompt in [PROMPT, "something else"] {
        drop(cluster.rbee(&["infer", "-m", "tiny", "-p", prompt]).ok());
    }
    // No grammar can be made of such a pattern, and llama.cpp would like to say so.
    let parameters =
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": PROMPT}}});
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
    let chat =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": [tool]});
    assert_eq!(cluster.queen().post("/v1/chat/completions", &chat).status, 200);
    let told = told(&cluster);
    let id = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    let key = Secret::from_bytes(KEY.as_bytes(), "test").expect("a secret");
    let of_worker = ["worker", "worker callback"]
        .map(|purpose| key.derive(purpose, &id).expect("a secret").expose().to_owned());
    let all = [CLIENT, HIVE, KEY, WRONG, JWT, PROMPT]
        .into_iter()
        .chain(of_worker.iter().map(String::as_str));
    let canaries: Vec<(String, Vec<Vec<u8>>)> =
        all.map(|secret| (secret.to_owned(), forms(secret))).collect();

    let mut places: Vec<(String, Vec<u8>)> =
        told.into_iter().map(|(place, text)| (place, text.into_bytes())).collect();
    let mut kept = Vec::new();
    files(cluster.home().parent().expect("a parent"), &mut kept);
    for process in cluster.processes() {
        kept.extend(
            ["cmdline", "environ"]
                .map(|file| PathBuf::from(format!("/proc/{}/{file}", process.pid))),
        );
    }
    places.extend(kept.into_iter().map(|path| {
        let bytes = fs::read(&path).unwrap_or_default();
        (path.display().to_string(), bytes)
    }));
    for kind in [
        "queen-rbee.log",
        "rbee-hive.log",
        &format!("{id}.log"),
        "models.db",
        "queen.json",
        "cmdline",
        "environ",
    ] {
        let looked_at =
            places.iter().any(|(place, bytes)| place.ends_with(kind) && !bytes.is_empty());
        assert!(looked_at, "{kind} was not looked at");
    }
    let mut leaks = Vec::new();
    for (place, bytes) in &places {
        for (secret, forms) in &canaries {
            let shows =
                |form: &Vec<u8>| bytes.windows(form.len()).any(|window| window == form.as_slice());
            if forms.iter().any(shows) {
                leaks.push(format!("{place} shows {secret}"));
            }
        }
    }
    assert!(leaks.is_empty(), "{leaks:#?}");
}
