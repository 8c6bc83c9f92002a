//! Starting, and not starting.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Output;

use rbee_api::hive::HiveStatus;

use crate::program::Place;

/// Checks a failure's exit code and that its report has all of `parts`.
fn failed(output: &Output, exit_code: i32, parts: &[&str]) {
    let report = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "{report}");
    for part in parts {
        assert!(report.contains(part), "no {part:?} in {report}");
    }
}

#[tokio::test]
async fn a_second_hive_on_a_home_is_refused_and_the_first_goes_on() {
    let hive = Place::new().start().await;
    let output = hive.place().output("", &[]);
    let pid = hive.pid().to_string();
    failed(&output, 75, &["error: another rbee-hive already runs", &pid, "hint: "]);
    let status: HiveStatus = hive.get("/api/v1/status").await.unwrap();
    assert_eq!((status.pid, status.name.as_str()), (hive.pid(), "local"));
}

#[test]
fn a_port_that_is_taken_is_named_with_the_way_out() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = Place::new().output("", &["--bind", &address.to_string()]);
    let port = format!("hint: port {} is taken", address.port());
    failed(&output, 69, &["error: cannot listen on", &port, "--bind"]);
}

#[test]
fn a_wrong_configuration_is_refused_before_anything_is_touched() {
    let place = Place::new();
    for (config, parts) in [
        ("wrkers_max = 3", ["line 2", "did you mean `workers_max`?"]),
        ("workers_max = 0", ["workers_max is 0", "from 1 to 64"]),
    ] {
        failed(&place.output(config, &[]), 78, &parts);
        failed(&place.output(config, &["--validate-config"]), 78, &parts);
    }
    let no_ca = "[tls]\nca_file = '/nowhere/ca.pem'";
    failed(&place.output(no_ca, &["--validate-config"]), 78, &["/nowhere/ca.pem"]);
    let no_worker = ["--validate-config", "--worker-path", "/nowhere/worker"];
    failed(&place.output("", &no_worker), 78, &["worker_path names /nowhere/worker"]);
    assert!(!place.home().exists());
    let valid = place.output("workers_max = 3", &["--validate-config"]);
    assert_eq!((valid.status.code(), valid.stderr.as_slice()), (Some(0), &b""[..]));
    assert!(!place.home().exists());
}

#[test]
fn a_home_that_others_can_write_to_is_refused() {
    let place = Place::new();
    fs::create_dir(place.home()).unwrap();
    fs::set_permissions(place.home(), fs::Permissions::from_mode(0o777)).unwrap();
    failed(&place.output("", &[]), 77, &["0777", "chmod 700"]);
}

#[test]
fn a_wrong_command_line_ends_with_the_usage() {
    failed(&Place::new().output("", &["--no-such-flag"]), 2, &["--no-such-flag", "Usage"]);
}

#[tokio::test]
async fn a_damaged_catalog_is_rebuilt_from_the_model_files() {
    let hive = Place::new().start().await;
    let model = hive.import("tiny").await;
    let place = hive.kill();
    for name in ["models.db-wal", "models.db-shm"] {
        fs::remove_file(place.home().join(name)).ok();
    }
    fs::write(place.home().join("models.db"), [0xff; 8192]).unwrap();
    let hive = place.start().await;
    let listed =
        crate::processes::eventually("the model is back", crate::program::LIMIT, || async {
            let list: rbee_api::model::ModelList = hive.get("/api/v1/models").await.unwrap();
            list.models.into_iter().next()
        })
        .await;
    assert_eq!((listed.reference, listed.sha256), (model.reference, model.sha256));
}
