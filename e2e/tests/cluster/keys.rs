//! Keys through all four programs: made and taken back on the command line,
//! shown by clients, counted by the workers' own tokens.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use e2e::{Cluster, Http};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn make(cluster: &Cluster, arguments: &[&str]) -> String {
    let made = cluster.rbee(&[&["key", "create"], arguments].concat()).ok();
    let key = made.trim().to_owned();
    assert!(key.starts_with("rbee_") && key.len() == 69, "{made}");
    key
}

fn client(cluster: &Cluster, key: &str) -> Http {
    Http::new(&cluster.url("queen"), Some(key))
}

/// Asks and returns the counts of the reply.
fn ask(client: &Http, content: &str, more: &Value) -> Value {
    let mut body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8,
    });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    let reply = client.post(CHAT, &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["usage"].clone()
}

fn usage(cluster: &Cluster, name: &str) -> Value {
    let list: Value = serde_json::from_str(&cluster.rbee(&["usage", "--json"]).ok()).expect("JSON");
    let rows = list["usage"].as_array().expect("rows");
    rows.iter().find(|row| row["key"] == name).cloned().unwrap_or_default()
}

#[test]
fn a_key_lives_from_its_making_to_its_end_on_the_command_line() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    cluster.import_tiny("secret");
    let key = make(&cluster, &["ci", "--models", "tiny", "--expires", "30d", "--streams", "2"]);
    let table = cluster.rbee(&["key", "list"]).ok();
    for part in ["ci", "inference,models", "tiny", "2 at once"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains(&key[5..]), "{table}");
    let shown: Value =
        serde_json::from_str(&cluster.rbee(&["key", "show", "ci", "--json"]).ok()).expect("JSON");
    assert_eq!(shown["limits"]["streams_max"], 2);
    let twice = cluster.rbee(&["key", "create", "ci", "--json"]);
    assert!(twice.code == 1 && twice.stderr.contains("key_taken"), "{}", twice.stderr);

    let holder = client(&cluster, &key);
    let models: Value = holder.get("/v1/models").json();
    assert_eq!(models["data"].as_array().map(Vec::len), Some(1), "{models}");
    ask(&holder, "hello", &json!({}));
    assert_eq!(holder.get("/api/v1/status").status, 403);
    // `rbee` itself takes a key, and says what it lacks.
    let file: PathBuf = cluster.home().join("ci.key");
    fs::write(&file, &key).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
    let file = file.to_str().expect("text");
    let refused = cluster.rbee(&["status", "--token-file", file]);
    assert_eq!(refused.code, 77, "{}", refused.stderr);
    assert!(refused.stderr.contains("needs the scope status"), "{}", refused.stderr);

    assert_eq!(cluster.rbee(&["key", "revoke", "ci"]).ok().trim(), "revoked ci");
    assert_eq!(holder.get("/v1/models").status, 401);
    let gone = cluster.rbee(&["key", "revoke", "ci"]);
    assert!(gone.code == 1 && gone.stderr.contains("rbee key list"), "{}", gone.stderr);
    assert_eq!(usage(&cluster, "ci")["requests"], 1, "usage outlives the key");
}

#[test]
fn computed_prompts_are_shared_within_a_key_and_with_nobody_else() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    let story: String = (0..60).map(|day| format!("On day {day} it rained. ")).collect();
    let cached = |client: &Http, more: Value| {
        let usage = ask(client, &story, &more);
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number")
    };
    let (one, other) = (make(&cluster, &["one"]), make(&cluster, &["other"]));
    let (one, other) = (client(&cluster, &one), client(&cluster, &other));
    assert_eq!(cached(&one, json!({})), 0);
    assert!(cached(&one, json!({})) > 50, "a key shares with itself");
    assert_eq!(cached(&other, json!({})), 0, "another key");
    assert_eq!(cached(&cluster.queen(), json!({})), 0, "the client token");
    assert_eq!(cached(&one, json!({"user": "alice"})), 0, "another user of the key");
    assert!(cached(&one, json!({"user": "alice"})) > 50);
    assert_eq!(cached(&other, json!({"user": "alice"})), 0, "the same user of another key");
}

#[test]
fn a_stream_is_counted_as_its_worker_counts_it() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    let key = make(&cluster, &["streamer"]);
    let holder = client(&cluster, &key);
    let whole = ask(&holder, "count these words please", &json!({"n": 2}));
    let first = usage(&cluster, "streamer");
    for (ours, theirs) in
        [("prompt_tokens", "prompt_tokens"), ("completion_tokens", "completion_tokens")]
    {
        assert_eq!(first[ours], whole[theirs], "{first} {whole}");
    }
    let body = json!({
        "model": "tiny", "stream": true, "n": 2, "max_tokens": 8,
        "messages": [{"role": "user", "content": "count these words please"}],
    });
    let events: Vec<String> = holder.stream(CHAT, &body).collect();
    assert!(events.last().is_some_and(|last| last.contains("[DONE]")), "{events:?}");
    let both = usage(&cluster, "streamer");
    for name in ["prompt_tokens", "completion_tokens"] {
        let sum = whole[name].as_u64().map(|count| 2 * count);
        assert_eq!(both[name].as_u64(), sum, "{name}: {both}");
    }
    assert_eq!(both["requests"], 2);
}
