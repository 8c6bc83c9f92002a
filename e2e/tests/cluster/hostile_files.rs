//! Model files that are hostile or change under a worker: the worker that has one ends alone, and says of what.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use e2e::{Cluster, starter_model_file, wait_until};
use serde_json::{Value, json};

use crate::tiny_models::{Pooling, TinyModel};

fn embed(cluster: &Cluster, model: &str) -> e2e::Reply {
    cluster.queen().post("/v1/embeddings", &json!({"model": model, "input": "the bees make honey"}))
}

/// The hive's copy of a model's file, told from others by its content.
fn copy_of(cluster: &Cluster, model: &TinyModel) -> PathBuf {
    let content = fs::read(&model.path).expect("the model");
    let entries = fs::read_dir(cluster.home().join("models")).expect("models").flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths
        .find(|path| fs::read(path).is_ok_and(|copy| copy == content))
        .expect("a copy of the model")
}

fn worker_of(cluster: &Cluster, model: &str) -> Option<Value> {
    cluster.workers().into_iter().find(|worker| worker["alias"] == model)
}

#[test]
fn a_file_cut_short_under_its_worker_ends_that_worker_alone() {
    let cluster = Cluster::llama();
    let models =
        [("cut", TinyModel::encoder(Pooling::Mean)), ("whole", TinyModel::decoder(Pooling::Mean))];
    for (alias, model) in &models {
        let path = model.path.to_str().expect("a UTF-8 path");
        drop(cluster.rbee(&["pull", path, "--name", alias]).ok());
        assert_eq!(embed(&cluster, alias).status, 200);
    }
    let other = worker_of(&cluster, "whole").expect("a worker")["id"].clone();

    let file = copy_of(&cluster, &models[0].1);
    File::options().write(true).open(&file).expect("the file").set_len(0).expect("truncate");
    let reply = embed(&cluster, "cut");
    assert!((400..=504).contains(&reply.status) && reply.status != 500, "{}", reply.body);
    assert!(!reply.code().is_empty(), "{}", reply.body);

    wait_until("the worker's end is told", Duration::from_secs(20), || {
        let exit = worker_of(&cluster, "cut").map(|worker| worker["last_exit"]["cause"].clone());
        exit.is_some_and(|cause| {
            cause == "segfault" || cause == "model_unreadable" || cause == "bad_model"
        })
    });
    assert_eq!(embed(&cluster, "whole").status, 200);
    assert_eq!(worker_of(&cluster, "whole").expect("a worker")["id"], other);
    assert_eq!(cluster.hive().get("/readyz").status, 200);
}

/// The starter model with another chat template in the place of its own.
fn with_template(template: &str) -> (tempfile::TempDir, PathBuf) {
    let mut content = fs::read(starter_model_file()).expect("the model");
    let key = b"tokenizer.chat_template";
    let found = content.windows(key.len()).position(|bytes| bytes == key).expect("a template");
    // After the key come the type, four bytes, and the length, eight.
    let start = found + key.len() + 12;
    let length = content[start - 8..start].try_into().map(u64::from_le_bytes).expect("eight bytes");
    let place = &mut content[start..start + usize::try_from(length).expect("a length")];
    assert!(template.len() <= place.len(), "{} bytes are room for a template", place.len());
    place.fill(b' ');
    place[..template.len()].copy_from_slice(template.as_bytes());
    let directory = tempfile::TempDir::new().expect("a folder");
    let path = directory.path().join("model.gguf");
    fs::write(&path, content).expect("a file");
    (directory, path)
}

#[test]
fn a_hostile_chat_template_ends_its_own_worker_alone() {
    let cluster = Cluster::llama();
    let other = TinyModel::encoder(Pooling::Mean);
    drop(cluster.rbee(&["pull", other.path.to_str().expect("UTF-8"), "--name", "other"]).ok());
    assert_eq!(embed(&cluster, "other").status, 200);
    let kept = worker_of(&cluster, "other").expect("a worker")["id"].clone();

    let many = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(70), ")".repeat(70));
    for (alias, template, cause) in
        [("endless", many, "aborted"), ("deep", deep.as_str(), "bad_model")]
    {
        let (_directory, path) = with_template(template);
        drop(cluster.rbee(&["pull", path.to_str().expect("UTF-8"), "--name", alias]).ok());
        let started = cluster.hive().post("/api/v1/workers", &json!({"model": alias}));
        assert_eq!(started.status, 200, "{}", started.body);
        wait_until("the worker's end is told", Duration::from_secs(60), || {
            worker_of(&cluster, alias).is_some_and(|worker| worker["last_exit"]["cause"] == cause)
        });
        assert_eq!(embed(&cluster, "other").status, 200);
    }
    assert_eq!(worker_of(&cluster, "other").expect("a worker")["id"], kept);
    assert_eq!(cluster.hive().get("/readyz").status, 200);
}
