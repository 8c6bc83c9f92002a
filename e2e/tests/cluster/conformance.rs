//! The official OpenAI clients, unmodified.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Cluster, STARTER_MODEL, TinyKind};

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/rbee-test/clients")
}

/// The scripts that drive the clients.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

#[expect(clippy::disallowed_methods, reason = "the clients are programs")]
fn run(cluster: &Cluster, program: &Path, script: &Path, models: &[(&str, &str)]) {
    // The address and the key as a user gets them.
    let printed = cluster.rbee(&["env", "--shell", "sh"]).ok();
    let variable = |name: &str| {
        let line = printed.lines().find(|line| line.contains(name)).expect("the variable");
        line.split_once('=').expect("an assignment").1.trim_matches(['"', '\'', ';']).to_owned()
    };
    let output = Command::new(program)
        .arg(script)
        .env("OPENAI_BASE_URL", variable("OPENAI_BASE_URL"))
        .env("OPENAI_API_KEY", variable("OPENAI_API_KEY"))
        .env("NODE_CLIENT", clients().join("node"))
        .envs(models.iter().copied())
        .output()
        .expect("the client starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.matches(" ok: ").count() >= 3, "hardly any check ran: {said}");
}

fn run_both(cluster: &Cluster, models: &[(&str, &str)]) {
    let python = clients().join("python/bin/python");
    run(cluster, &python, &script("conformance.py"), models);
    run(cluster, Path::new("node"), &script("conformance.mjs"), models);
}

#[test]
fn the_official_clients_work_with_the_real_model() {
    let cluster = Cluster::llama();
    cluster.import_starter();
    run_both(&cluster, &[("MODEL", STARTER_MODEL)]);
}

#[test]
fn the_official_clients_see_exact_streams_stops_embeddings_and_errors() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    cluster.import_tiny_of("tiny-embed", TinyKind::Embed);
    run_both(&cluster, &[("ECHO", "tiny"), ("EMBED", "tiny-embed")]);
}
