//! From nothing to tokens: one command on a machine where nothing runs.

use std::time::Duration;

use e2e::{Cluster, STARTER_MODEL};
use serde_json::Value;

#[test]
fn one_command_starts_everything_and_streams_an_answer() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["queen", "stop"]).ok());
    cluster.wait_until_empty(Duration::from_secs(10));

    let cold = cluster.rbee(&["infer", "-m", "tiny", "-p", "hello from nothing"]);
    assert!(cold.stderr.contains("queen-rbee"), "it says what it starts: {}", cold.stderr);
    assert_eq!(cold.ok().trim(), "hello from nothing");
    let mut programs: Vec<String> =
        cluster.processes().into_iter().map(|process| process.program).collect();
    programs.sort();
    assert_eq!(programs, ["llm-worker-rbee", "queen-rbee", "rbee-hive"]);

    let warm = cluster.rbee(&["run", "tiny", "again"]);
    assert!(!warm.stderr.contains("starting"), "nothing to start: {}", warm.stderr);
    assert_eq!(warm.ok().trim(), "again");
    assert_eq!(cluster.workers().len(), 1, "the worker is used again");
}

#[test]
fn the_real_model_answers_through_all_four_programs() {
    let cluster = Cluster::llama();
    cluster.import_starter();
    let prompt = "What is the capital of France? Answer in one sentence.";
    let answer = cluster.rbee(&["run", "-m", STARTER_MODEL, "--temperature", "0", "-p", prompt]);
    assert!(answer.ok().contains("Paris"));

    let json =
        cluster.rbee(&["run", "-m", STARTER_MODEL, "--temperature", "0", "-p", prompt, "--json"]);
    let reply: Value = serde_json::from_str(&json.ok()).expect("one JSON object");
    assert!(reply["text"].as_str().expect("text").contains("Paris"), "{reply}");
    assert!(reply["usage"]["completion_tokens"].as_u64().expect("a count") > 0, "{reply}");
}

#[test]
fn a_prompt_may_come_from_standard_input() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    let piped = cluster.rbee_with_input(&["infer", "-m", "tiny"], b"piped words\n");
    assert_eq!(piped.ok().trim(), "piped words");
}

#[test]
fn models_that_do_not_fit_beside_each_other_are_used_one_after_the_other() {
    let cluster = Cluster::echo().config("rbee-hive", "workers_max = 1\n");
    cluster.import_tiny("first");
    cluster.import_tiny("second");
    for (model, word) in [("first", "one"), ("second", "two"), ("first", "three")] {
        assert_eq!(cluster.rbee(&["infer", "-m", model, "-p", word]).ok().trim(), word);
        assert_eq!(cluster.workers().len(), 1, "the other one made room");
    }
}

#[test]
fn two_commands_at_once_on_a_bare_machine_share_one_cluster() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["queen", "stop"]).ok());
    let answers: Vec<String> = std::thread::scope(|scope| {
        let both = ["first", "second"].map(|word| {
            let cluster = &cluster;
            scope.spawn(move || cluster.rbee(&["infer", "-m", "tiny", "-p", word]).ok())
        });
        both.into_iter().map(|one| one.join().expect("a command").trim().to_owned()).collect()
    });
    assert_eq!(answers, ["first", "second"]);
    assert_eq!(cluster.processes().len(), 3, "{:?}", cluster.processes());
}

#[test]
fn models_can_be_listed_stopped_and_removed() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    let list: Value = serde_json::from_str(&cluster.rbee(&["list", "--json"]).ok()).expect("JSON");
    assert_eq!(list["models"][0]["alias"], "tiny");
    assert_eq!(list["models"][0]["sha256"].as_str().map(str::len), Some(64));

    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let ps: Value = serde_json::from_str(&cluster.rbee(&["ps", "--json"]).ok()).expect("JSON");
    assert_eq!(ps["workers"][0]["state"], "ready");
    drop(cluster.rbee(&["stop", "tiny"]).ok());
    assert!(cluster.workers().is_empty());

    drop(cluster.rbee(&["rm", "tiny", "--yes"]).ok());
    let list: Value = serde_json::from_str(&cluster.rbee(&["list", "--json"]).ok()).expect("JSON");
    assert_eq!(list["models"], Value::Array(Vec::new()));
    let files = std::fs::read_dir(cluster.home().join("models")).expect("a folder").count();
    assert_eq!(files, 0, "the file is gone too");
}

#[test]
fn a_model_pulled_under_another_name_answers_to_that_name() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let file = cluster.home().parent().expect("a folder").join("tiny.gguf");
    drop(cluster.rbee(&["pull", file.to_str().expect("UTF-8"), "--name", "renamed"]).ok());
    assert_eq!(cluster.rbee(&["infer", "-m", "renamed", "-p", "new name"]).ok().trim(), "new name");
    assert_eq!(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).code, 1);
}
