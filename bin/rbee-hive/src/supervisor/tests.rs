//! What a supervisor does with a process that is none of its making.

use std::process::Command;

use audit_logging::{AuditSettings, Auditor};
use model_catalog::{CacheType, Scores};
use rbee_api::worker::Backend;
use rbee_home::Home;
use tempfile::TempDir;

use super::life::{End, Life};
use super::owned::OwnedProcess;
use super::*;
use crate::admission::Room;
use crate::cgroup::{Cgroups, WorkerGroup};
use crate::config::WorkerMemoryLimit;
use crate::platform::ProcessHandle;
use crate::registry::tests::{client, id, model, new_registry, wanted};
use crate::reservations::tests::reservations_of;

/// A supervisor of a home of its own, whose worker program is none.
fn supervisor(directory: &TempDir) -> Supervisor {
    let home = Home::open(&directory.path().join("home")).unwrap();
    let registry = Arc::new(new_registry());
    let audit = AuditOfWorkers {
        auditor: Auditor::off(),
        settings: AuditSettings::default(),
        key: None,
        directory: directory.path().join("audit"),
    };
    let launcher = Launcher {
        program: "/no/such/worker".into(),
        engine: Backend::Echo,
        threads: 1,
        port_first: 0,
        heartbeat_seconds: 1,
        stall_seconds: 1,
        stop_grace_seconds: 1,
        log_max_mib: 1,
        worker_arguments: Vec::new(),
        hive_url: "http://127.0.0.1:1".to_owned(),
        environment: Vec::new(),
        home: home.clone(),
        memory_limit: WorkerMemoryLimit::None,
        cgroups: Cgroups::none(),
        audit,
    };
    let second = Duration::from_secs(1);
    let rules = Rules {
        workers_max: 3,
        slots: 1,
        context_tokens: 512,
        cache: CacheRules {
            type_k: CacheType::F16,
            type_v: CacheType::F16,
            unified: false,
            scores: Scores::No,
            store_mib: 0,
        },
        load_timeout: second,
        stop_grace: second,
        stops_idle: false,
    };
    let reservations = Arc::new(reservations_of(&registry));
    let models = Arc::new(Models::open(&home, Vec::new()).unwrap());
    let (ledger, _) = Ledger::open(&home.workers_db()).unwrap();
    let key = Secret::generate().unwrap();
    Supervisor::new(registry, reservations, models, launcher, rules, ledger, key)
}

#[expect(clippy::disallowed_methods, reason = "a test of processes needs one")]
fn sleeping() -> std::process::Child {
    Command::new("sleep").arg("60").spawn().unwrap()
}

#[tokio::test]
async fn a_worker_that_is_gone_when_it_is_told_to_end_is_counted_as_one_that_has() {
    let directory = tempfile::tempdir().unwrap();
    let supervisor = supervisor(&directory);
    let admitted = supervisor.registry.admit(wanted("a", &model("a")), Room::default()).unwrap();
    let Admitted::New(_, signals) = admitted else { panic!("{admitted:?}") };
    let mut child = sleeping();
    let handle = ProcessHandle::open(child.id()).unwrap();
    let mut process = OwnedProcess::adopt(handle, WorkerGroup::default()).unwrap();
    child.kill().unwrap();
    process.wait().await.unwrap();
    supervisor.registry.begin_stop(&id("a")).unwrap();
    let load_limit = Duration::from_secs(60);
    let mut life =
        Life { id: id("a"), process, client: client(), signals, load_limit, has_loaded: false };
    assert!(matches!(supervisor.watch(&mut life).await, End::Stopped));
    let counted = supervisor.endings();
    assert_eq!((counted.graceful, counted.forced), (1, 0));
    assert_eq!(supervisor.ledger.tally().unwrap().graceful, 1);
    child.wait().unwrap();
}
