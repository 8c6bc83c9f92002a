//! Conversations that outlive their worker, where the hive is told to keep them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use e2e::{Cluster, STARTER_MODEL, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const KEPT: &str = "heartbeat_interval_seconds = 1\n[worker]\ncache_disk_mib = 64\n";

fn long_story(name: &str) -> String {
    (1..=30).map(|day| format!("On day {day} {name} counted {} flowers. ", day * 7)).collect()
}

/// Asks and returns the reply's text and how much of the prompt was cached.
fn ask(cluster: &Cluster, model: &str, messages: &Value) -> (String, u64) {
    let body = json!({
        "model": model, "messages": messages, "temperature": 0, "max_tokens": 24,
    });
    let reply = cluster.queen().post(CHAT, &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let reply = reply.json();
    let text = reply["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
    let cached = &reply["usage"]["prompt_tokens_details"]["cached_tokens"];
    (text, cached.as_u64().expect("a number"))
}

fn kept(cluster: &Cluster) -> Vec<PathBuf> {
    let folders = fs::read_dir(cluster.home().join("cache")).into_iter().flatten().flatten();
    let files = folders.filter_map(|folder| fs::read_dir(folder.path()).ok()).flatten().flatten();
    files.map(|file| file.path()).filter(|path| path.extension() == Some("kv".as_ref())).collect()
}

#[test]
fn a_second_turn_after_everything_was_stopped_is_warm() {
    let cluster = Cluster::llama().config("rbee-hive", KEPT);
    cluster.import_starter();
    let story = long_story("Maja");
    let first = json!([{"role": "user", "content": story}]);
    let (said, cached) = ask(&cluster, STARTER_MODEL, &first);
    assert_eq!(cached, 0);
    drop(cluster.rbee(&["queen", "stop"]).ok());
    cluster.wait_until_empty(Duration::from_secs(20));
    let files = kept(&cluster);
    assert_eq!(files.len(), 1, "{files:?}");
    let mode =
        |path: PathBuf| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(cluster.home().join("cache")), 0o700);
    assert_eq!(mode(files[0].clone()), 0o600);

    drop(cluster.rbee(&["queen", "start"]).ok());
    let second = json!([
        {"role": "user", "content": story},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "How many days were that?"},
    ]);
    let (reply, cached) = ask(&cluster, STARTER_MODEL, &second);
    assert!(cached > 300 && !reply.is_empty(), "{cached} cached, {reply:?}");
}

#[test]
fn a_worker_that_is_killed_after_a_pause_comes_back_warm() {
    let cluster = Cluster::echo().config("rbee-hive", KEPT);
    cluster.import_tiny("tiny");
    cluster.import_tiny("other");
    let story = json!([{"role": "user", "content": long_story("Willy")}]);
    assert_eq!(ask(&cluster, "tiny", &story).1, 0);
    wait_until("it is kept", Duration::from_secs(30), || kept(&cluster).len() == 1);
    cluster.process("llm-worker-rbee").signal(Signal::KILL);
    wait_until("the worker is gone", Duration::from_secs(10), || {
        cluster.processes().iter().all(|process| process.program != "llm-worker-rbee")
    });
    wait_until("the queen knows", Duration::from_secs(20), || {
        cluster.workers().iter().all(|worker| worker["state"] != "ready")
    });
    assert!(ask(&cluster, "tiny", &story).1 > 100);
    assert_eq!(ask(&cluster, "other", &story).1, 0, "another model's state was used");
}

#[test]
fn nothing_is_kept_unless_the_hive_is_told_to() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    let story = json!([{"role": "user", "content": long_story("Flip")}]);
    assert_eq!(ask(&cluster, "tiny", &story).1, 0);
    drop(cluster.rbee(&["queen", "stop"]).ok());
    cluster.wait_until_empty(Duration::from_secs(15));
    assert!(!cluster.home().join("cache").exists());
}
