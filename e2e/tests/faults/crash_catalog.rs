//! A hive killed while it takes in or gives up a model: a model that is listed has its
//! whole file, and nothing half-taken stays.

use std::fs;
use std::path::PathBuf;

use e2e::{TinyKind, holds_within, tiny_gguf};
use serde_json::{Value, json};

use crate::agreement::assert_agreement;
use crate::crash_points::{Attempt, Quota, kill_at_points};
use crate::site::{Daemon, LIMIT, Site};
use crate::tracing::Trace;

struct Stage {
    site: Site,
    hive: Daemon,
    file: PathBuf,
}

impl Stage {
    fn new() -> Self {
        let site = Site::new();
        let hive = site.hive();
        let file = site.cluster.home().parent().expect("a parent").join("comes-and-goes.gguf");
        fs::write(&file, tiny_gguf(7, TinyKind::Generate)).expect("a model file");
        site.import("stays", 1);
        Self { site, hive, file }
    }

    fn models(&self) -> Vec<Value> {
        let list = self.site.to_hive().get("/api/v1/models").json();
        list["models"].as_array().expect("a list").clone()
    }

    fn has_the_model(&self) -> bool {
        self.models().iter().any(|model| model["alias"] == "moving")
    }

    fn take_in(&self) {
        let body = json!({"reference": format!("file:{}", self.file.display()), "alias": "moving"});
        drop(self.site.to_hive().try_call("POST", "/api/v1/models/pull", Some(&body)));
    }

    fn give_up(&self) {
        drop(self.site.to_hive().try_call("DELETE", "/api/v1/models/moving", None));
    }

    fn perform(&mut self, trace: &Trace, change: impl Fn(&Self)) -> Attempt {
        let Some(tracer) = trace.attach(self.hive.pid()) else { return Attempt::Refused };
        change(self);
        // A hive that is being killed has no more than its last breath.
        let over = self.site.listed().is_none();
        drop(tracer);
        if (over && holds_within(LIMIT, || self.hive.is_over())) || self.hive.was_killed() {
            Attempt::Hit
        } else {
            Attempt::Missed
        }
    }

    /// Starts the next hive and compares what it lists with what lies on the disk.
    fn recover(&mut self, context: &str) {
        self.hive.kill();
        self.hive = self.site.hive();
        assert_agreement(&self.site, context);
        let folder = self.site.cluster.home().join("models");
        // What was begun and not finished may take a moment to be swept up.
        let mut seen = (0, 0);
        let clean = holds_within(LIMIT, || {
            let files = fs::read_dir(&folder).expect("a folder").flatten().count();
            // Each model has its file and a note about it.
            seen = (files, self.models().len() * 2);
            seen.0 == seen.1
        });
        assert!(clean, "{context}: {} files, {} expected", seen.0, seen.1);
        for model in self.models() {
            let alias = model["alias"].as_str().expect("an alias").to_owned();
            let worker = self.site.ready_worker(&alias);
            let path = format!("/api/v1/workers/{}", worker["id"].as_str().expect("an id"));
            assert_eq!(self.site.to_hive().call("DELETE", &path, None).status, 200, "{context}");
        }
    }
}

#[test]
fn a_hive_killed_while_it_imports_a_model_lists_whole_models_only() {
    let mut stage = Stage::new();
    let quota = Quota { short: 6, full: 30 };
    kill_at_points("hive: import", quota, |trace, context| {
        if stage.has_the_model() {
            stage.give_up();
        }
        let attempt = stage.perform(trace, Stage::take_in);
        stage.recover(context);
        attempt
    });
}

#[test]
fn a_hive_killed_while_it_removes_a_model_lists_whole_models_only() {
    let mut stage = Stage::new();
    let quota = Quota { short: 4, full: 12 };
    kill_at_points("hive: remove", quota, |trace, context| {
        if !stage.has_the_model() {
            stage.take_in();
        }
        let attempt = stage.perform(trace, Stage::give_up);
        stage.recover(context);
        attempt
    });
}
