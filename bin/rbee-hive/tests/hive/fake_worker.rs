//! Worker programs that misbehave as no real one can be made to: shell scripts in its place.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use std::time::Duration;

use input_validation::WorkerId;
use rbee_api::worker::{WorkerInfo, WorkerState};

use crate::processes::eventually;
use crate::program::{Hive, LIMIT, Place, worker_program};

/// A hive whose workers are a script, with the model `tiny`.
pub(crate) async fn hive_with(script: &str, config: &str) -> Hive {
    let place = Place::new();
    let flags = flags(&place, script);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with(config, &flags).await;
    hive.import("tiny").await;
    hive
}

/// A worker that notes its start and fails until somebody mends it, and is a real one from then on.
pub(crate) fn mendable() -> String {
    let program = worker_program();
    format!(
        "date +%s%N >> starts; if [ -e mended ]; then exec {} \"$@\"; fi; exit 65",
        program.display()
    )
}

/// When scripts that note it have been started, in nanoseconds.
pub(crate) fn starts(hive: &Hive) -> Vec<Duration> {
    let written = fs::read_to_string(hive.home().join("starts")).unwrap_or_default();
    written.lines().map(|line| Duration::from_nanos(line.parse().unwrap())).collect()
}

/// Waits until a worker has failed that fulfils a condition.
pub(crate) async fn failed(
    hive: &Hive,
    what: &str,
    is_it: impl Fn(&WorkerInfo) -> bool,
) -> WorkerInfo {
    eventually(what, LIMIT, async || {
        let workers = hive.workers().await;
        workers.into_iter().find(|worker| worker.state == WorkerState::Failed && is_it(worker))
    })
    .await
}

/// Writes a script that a hive runs as its worker, and returns the flags that make it do so.
pub(crate) fn flags(place: &Place, script: &str) -> Vec<String> {
    let path = place.file("worker.sh", format!("#!/bin/sh\n{script}\n").as_bytes());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    vec!["--worker-path".to_owned(), path.display().to_string()]
}

/// Waits until a worker is ready that is not `before`.
pub(crate) async fn successor(hive: &Hive, before: &WorkerId) -> WorkerInfo {
    eventually("another worker is ready", LIMIT, async || {
        let workers = hive.workers().await;
        workers
            .into_iter()
            .find(|worker| worker.state == WorkerState::Ready && worker.id != *before)
    })
    .await
}
