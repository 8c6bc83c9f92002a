//! Worker programs that misbehave as no real one can be made to: shell scripts in its place.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::program::Place;

/// Writes a script that a hive runs as its worker, and returns the flags that make it do so.
pub(crate) fn flags(place: &Place, script: &str) -> Vec<String> {
    let path = place.file("worker.sh", format!("#!/bin/sh\n{script}\n").as_bytes());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    vec!["--worker-path".to_owned(), path.display().to_string()]
}
