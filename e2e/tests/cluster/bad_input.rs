//! What goes wrong is said clearly, with what to do, and nothing is lost or
//! half registered.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use e2e::{Cluster, TinyKind, starter_model_file, tiny_gguf};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn models(cluster: &Cluster) -> usize {
    let list: Value = serde_json::from_str(&cluster.rbee(&["list", "--json"]).ok()).expect("JSON");
    list["models"].as_array().expect("a list").len()
}

fn files(cluster: &Cluster) -> usize {
    fs::read_dir(cluster.home().join("models")).map_or(0, Iterator::count)
}

#[track_caller]
fn assert_says(finished: &e2e::Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, code, "{finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "`{word}` is missing: {}", finished.stderr);
    }
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
}

#[test]
fn an_unknown_model_is_named_with_the_way_to_get_one() {
    let cluster = Cluster::echo();
    let unknown = cluster.rbee(&["infer", "-m", "nothing:1b", "-p", "hi"]);
    assert_says(&unknown, 1, &["error:", "nothing:1b", "rbee list"]);
    let reply = cluster.queen().post(
        CHAT,
        &json!({"model": "nothing:1b", "messages": [{"role": "user", "content": "x"}]}),
    );
    assert_eq!((reply.status, reply.code().as_str()), (404, "model_not_found"));
}

#[test]
fn a_broken_model_file_is_refused_and_nothing_is_registered() {
    let cluster = Cluster::echo();
    let directory = tempfile::TempDir::new().expect("a folder");
    let whole = tiny_gguf(1, TinyKind::Generate);
    let truncated_real = fs::read(starter_model_file()).expect("the model")[..50_000_000].to_vec();
    let cases: [(&str, Vec<u8>); 4] = [
        ("garbage.gguf", b"this is not a model".repeat(100)),
        ("truncated.gguf", whole[..whole.len() - 60].to_vec()),
        ("empty.gguf", Vec::new()),
        ("truncated-real.gguf", truncated_real),
    ];
    for (name, content) in cases {
        let file = directory.path().join(name);
        fs::write(&file, content).expect("a file");
        let refused = cluster.rbee(&["pull", file.to_str().expect("UTF-8"), "--name", "broken"]);
        assert_says(&refused, 1, &["error:"]);
        assert_eq!((models(&cluster), files(&cluster)), (0, 0), "{name}");
    }
    let missing = cluster.rbee(&["pull", "/no/such/file.gguf"]);
    assert_says(&missing, 1, &["error:"]);
    let file = directory.path().join("good.gguf");
    fs::write(&file, tiny_gguf(9, TinyKind::Generate)).expect("a file");
    let path = file.to_str().expect("UTF-8");
    let wrong_sum = cluster.rbee(&["pull", path, "--name", "sum", "--sha256", &"0".repeat(64)]);
    assert_says(&wrong_sum, 1, &["error:", "SHA-256"]);
    assert_eq!((models(&cluster), files(&cluster)), (0, 0));
}

#[test]
fn a_model_file_that_breaks_after_its_import_fails_its_worker_and_not_the_hive() {
    let cluster = Cluster::llama();
    // Valid to the header's reader, but no model that llama.cpp can load.
    cluster.import_tiny("hollow");
    let failed = cluster.rbee(&["infer", "-m", "hollow", "-p", "hi"]);
    assert_says(&failed, 1, &["error:"]);
    assert_eq!(cluster.queen().get("/readyz").status, 200);
    assert_eq!(models(&cluster), 1);
}

#[test]
fn empty_huge_and_garbage_requests_are_refused_by_name() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    let empty = cluster.rbee(&["infer", "-m", "tiny", "-p", ""]);
    assert_says(&empty, 2, &["error:", "prompt"]);
    let malformed = cluster.rbee(&["infer", "-m", "a;b", "-p", "hi"]);
    assert_says(&malformed, 2, &["error:"]);

    let queen = cluster.queen();
    let with = |content: &str| json!({"model": "tiny", "messages": [{"role": "user", "content": content}]});
    let cases = [
        (with(""), 400, "validation_failed"),
        (json!({"model": "tiny"}), 400, "validation_failed"),
        (json!([1, 2]), 400, "validation_failed"),
        (with(&"word ".repeat(100_000)), 400, "context_length_exceeded"),
        (with(&"x".repeat(5 * 1024 * 1024)), 413, "payload_too_large"),
    ];
    for (body, status, code) in cases {
        let reply = queen.post(CHAT, &body);
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{}", reply.body);
        assert!(reply.json()["error"]["message"].as_str().is_some_and(|m| m.len() > 10));
    }
    for garbage in ["", "{", "not json", "{\"model\": tiny}", "\u{0}"] {
        let reply = queen.post_text(CHAT, garbage);
        assert_eq!((reply.status, reply.code().as_str()), (400, "validation_failed"), "{garbage}");
    }
    assert_eq!(queen.post(CHAT, &with("still here")).status, 200);
}

#[test]
fn a_taken_port_is_named_with_the_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let cluster = Cluster::echo().env("RBEE_QUEEN_BIND", &address);
    let port = address.rsplit(':').next().expect("a port");
    let refused = cluster.rbee(&["queen", "start"]);
    assert_says(&refused, 69, &["error:", port, "hint:"]);
    assert!(cluster.processes().is_empty());
}

#[test]
fn a_disk_without_room_refuses_the_model_with_figures_and_keeps_nothing() {
    let cluster = Cluster::echo();
    drop(cluster.rbee(&["queen", "start"]).ok());
    drop(cluster.rbee(&["queen", "stop"]).ok());
    let models_directory = cluster.home().join("models");
    let Some(_small) = SmallDisk::mount(&models_directory) else {
        // Mounting needs root, which CI and a fresh machine have.
        panic!("cannot mount a small tmpfs at {}", models_directory.display());
    };
    let file = starter_model_file();
    let refused = cluster.rbee(&["pull", file.to_str().expect("UTF-8"), "--name", "big"]);
    assert_says(&refused, 75, &["error:", "1048576", "rbee rm"]);
    assert_eq!((models(&cluster), files(&cluster)), (0, 0));
    drop(cluster.rbee(&["queen", "stop"]).ok());
}

/// A file system of 1 MiB.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    #[expect(clippy::disallowed_methods, reason = "mount is a program")]
    fn mount(at: &std::path::Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"])
            .arg(at)
            .status()
            .is_ok_and(|status| status.success());
        mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    #[expect(clippy::disallowed_methods, reason = "umount is a program")]
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_home_that_cannot_be_used_is_explained() {
    let directory = tempfile::TempDir::new().expect("a folder");
    let file = directory.path().join("a-file");
    fs::write(&file, "x").expect("a file");
    let cluster = Cluster::echo().env("RBEE_HOME", file.to_str().expect("UTF-8"));
    let refused = cluster.rbee(&["queen", "start"]);
    assert_says(&refused, 77, &["error:", "hint:"]);

    let nowhere = Cluster::echo();
    let output = nowhere
        .command("rbee", &["queen", "start"])
        .env_remove("HOME")
        .env_remove("RBEE_HOME")
        .output()
        .expect("rbee starts");
    assert_eq!(output.status.code(), Some(78), "{output:?}");

    let loose = Cluster::echo();
    fs::create_dir_all(loose.home()).expect("a home");
    fs::set_permissions(loose.home(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let refused = loose.rbee(&["queen", "start"]);
    assert_says(&refused, 77, &["error:", "0777", "chmod 700"]);
}

#[test]
fn a_second_queen_on_the_same_home_says_so() {
    let cluster = Cluster::echo();
    drop(cluster.rbee(&["queen", "start"]).ok());
    let second = cluster.command("queen-rbee", &[]).output().expect("it starts");
    assert_eq!(second.status.code(), Some(75), "{second:?}");
    assert_eq!(cluster.processes().iter().filter(|p| p.program == "queen-rbee").count(), 1);
}

#[test]
fn a_wrong_config_key_names_itself_and_the_near_match() {
    let cluster = Cluster::echo().config("queen-rbee", "bindd = \"127.0.0.1:1\"\n");
    let refused =
        cluster.command("queen-rbee", &["--validate-config"]).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("bindd") && stderr.contains("bind"), "{stderr}");
}
