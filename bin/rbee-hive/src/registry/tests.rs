//! The registry's promises, each as one test.

use std::sync::Arc;

use model_catalog::{CacheType, GgufHeader, Purpose};
use secrets_management::Secret;

use super::*;

pub(crate) fn model(name: &str) -> Model {
    Model {
        reference: format!("file:/models/{name}.gguf").parse().unwrap(),
        alias: Some(name.parse().unwrap()),
        path: format!("/models/{name}.gguf").into(),
        size_bytes: 1,
        sha256: "0".repeat(64).parse().unwrap(),
        header: GgufHeader {
            architecture: "llama".to_owned(),
            purpose: Purpose::Generate,
            reads_inputs_whole: false,
            name: None,
            quantisation: "Q4_1".to_owned(),
            context_length: 512,
            block_count: 1,
            embedding_length: 64,
            feed_forward_length: 64,
            head_count: 1,
            head_count_kv: vec![1],
            key_length: 64,
            value_length: 64,
            vocabulary_size: 3,
            has_chat_template: true,
            split_count: 1,
            parameter_count: 1,
            weights_bytes: 1,
        },
        added_at_ms: 0,
    }
}

pub(crate) fn id(name: &str) -> WorkerId {
    format!("w-{name}").parse().unwrap()
}

/// Asks for a worker whose id and secret are made of `name`.
fn admit(registry: &Registry, name: &str, model: &Model) -> Result<Admitted, ApiError> {
    registry.admit(wanted(name, model), Room::default())
}

/// A start of a worker as a hive asks for it that runs three at most.
pub(crate) fn wanted<'a>(name: &str, model: &'a Model) -> Wanted<'a> {
    Wanted {
        id: id(name),
        started_at_ms: 7,
        callback: TokenDigest::of(name),
        model: Some(model),
        backend: Backend::Echo,
        workers_max: 3,
        slots: 4,
        context_tokens: 512,
        cache: CacheRules {
            type_k: CacheType::F16,
            type_v: CacheType::F16,
            unified: false,
            store_mib: 0,
        },
    }
}

pub(crate) fn client() -> HopClient {
    HopClient::new("http://127.0.0.1:1", Arc::new(Secret::generate().unwrap())).unwrap()
}

const READY: fn() -> WorkerReady =
    || WorkerReady { slots_total: 4, context_tokens: 512, device: "cpu".to_owned(), load_ms: 1 };

/// A registry with one worker that is ready.
fn with_ready(name: &str) -> Arc<Registry> {
    let registry = Arc::new(Registry::new());
    assert!(matches!(admit(&registry, name, &model(name)), Ok(Admitted::New(..))));
    registry.spawned(&id(name), Some(7), client());
    registry.ready(&id(name), &READY()).unwrap();
    registry
}

fn state(registry: &Registry, name: &str) -> Option<WorkerState> {
    registry.get(&id(name)).map(|info| info.state)
}

fn code<T>(result: Result<T, ApiError>) -> Option<ErrorCode> {
    result.err().map(|error| error.code())
}

fn failure() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::WorkerFailed, "gone")
}

#[tokio::test]
async fn a_model_has_one_worker_however_often_it_is_asked_for() {
    let registry = Registry::new();
    let model = model("a");
    assert!(matches!(admit(&registry, "1", &model), Ok(Admitted::New(..))));
    match admit(&registry, "2", &model) {
        Ok(Admitted::Existing(info)) => assert_eq!(info.id, id("1")),
        other => panic!("{other:?}"),
    }
    assert_eq!(registry.snapshot().len(), 1);
}

#[tokio::test]
async fn a_worker_that_ends_makes_room_and_one_that_failed_leaves_its_reason() {
    let registry = Registry::new();
    for name in ["1", "2", "3"] {
        admit(&registry, name, &model(name)).unwrap();
    }
    assert_eq!(code(admit(&registry, "4", &model("4"))), Some(ErrorCode::WorkerLimitReached));
    registry.ended(&id("1"), Some(failure()));
    registry.ended(&id("2"), None);
    assert_eq!(state(&registry, "1"), Some(WorkerState::Failed));
    assert_eq!(state(&registry, "2"), None);
    admit(&registry, "4", &model("4")).unwrap();
    admit(&registry, "5", &model("5")).unwrap();
    assert_eq!(code(admit(&registry, "6", &model("6"))), Some(ErrorCode::WorkerLimitReached));
}

#[tokio::test]
async fn only_the_last_failures_are_kept() {
    let registry = Registry::new();
    let live = model("live");
    admit(&registry, "live", &live).unwrap();
    for index in 0..FAILED_MAX + 2 {
        let name = format!("{index:02}");
        admit(&registry, &name, &model(&name)).unwrap();
        registry.ended(&id(&name), Some(failure()));
    }
    assert_eq!(registry.snapshot().len(), FAILED_MAX + 1);
    assert_eq!((state(&registry, "01"), state(&registry, "02")), (None, Some(WorkerState::Failed)));
    assert_eq!(state(&registry, "live"), Some(WorkerState::Starting));
}

#[tokio::test]
async fn a_callers_secret_counts_as_long_as_its_worker_lives() {
    let registry = with_ready("a");
    assert_eq!(registry.caller(&TokenDigest::of("a")), Some(id("a")));
    assert_eq!(registry.caller(&TokenDigest::of("b")), None);
    registry.begin_stop(&id("a")).unwrap();
    assert_eq!(registry.caller(&TokenDigest::of("a")), Some(id("a")));
    registry.ended(&id("a"), Some(failure()));
    assert_eq!(registry.caller(&TokenDigest::of("a")), None);
}

#[tokio::test]
async fn requests_enter_a_ready_worker_only() {
    let registry = with_ready("ready");
    admit(&registry, "starting", &model("starting")).unwrap();
    admit(&registry, "failed", &model("failed")).unwrap();
    registry.ended(&id("failed"), Some(failure()));
    let enter = |name: &str| code(registry.enter(&id(name)));
    assert_eq!(enter("ready"), None);
    assert_eq!(enter("starting"), Some(ErrorCode::Loading));
    assert_eq!(enter("failed"), Some(ErrorCode::WorkerFailed));
    assert_eq!(enter("none"), Some(ErrorCode::WorkerNotFound));
    registry.begin_stop(&id("ready")).unwrap();
    assert_eq!(enter("ready"), Some(ErrorCode::Draining));
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_idle_from_the_end_of_its_last_request() {
    let registry = with_ready("a");
    let idle = Duration::from_secs(10);
    let look = || registry.stop_idle(Instant::now(), idle);
    let (_, request) = registry.enter(&id("a")).unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    look();
    assert_eq!(state(&registry, "a"), Some(WorkerState::Ready), "it has a request");
    drop(request);
    assert_eq!(look(), Instant::now() + idle);
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert_eq!(look(), Instant::now() + Duration::from_millis(1));
    assert_eq!(state(&registry, "a"), Some(WorkerState::Ready));
    tokio::time::advance(Duration::from_millis(1)).await;
    look();
    assert_eq!(state(&registry, "a"), Some(WorkerState::Stopping));
}

#[tokio::test]
async fn an_old_or_repeated_contact_changes_nothing() {
    let registry = with_ready("a");
    let beat = |sequence, slots_available| {
        let report = WorkerHeartbeat {
            sequence,
            slots_available,
            requests_running: 0,
            requests_waiting: 0,
            engine_steps: 0,
        };
        registry.heartbeat(&id("a"), &report).unwrap();
        registry.get(&id("a")).unwrap().slots_available
    };
    assert_eq!(beat(5, 1), 1);
    assert_eq!(beat(4, 3), 1);
    assert_eq!(beat(6, 99), 4, "a worker has no more free slots than slots");
    registry.begin_stop(&id("a")).unwrap();
    registry.ready(&id("a"), &READY()).unwrap();
    assert_eq!(state(&registry, "a"), Some(WorkerState::Stopping));
}

#[tokio::test]
async fn a_stopped_worker_keeps_its_row_until_its_process_is_gone() {
    let registry = with_ready("a");
    let gone = registry.begin_stop(&id("a")).unwrap();
    assert_eq!(state(&registry, "a"), Some(WorkerState::Stopping));
    assert!(!gone.is_cancelled());
    registry.ended(&id("a"), None);
    assert!(gone.is_cancelled());
    assert!(registry.begin_stop(&id("a")).is_none());
}

#[tokio::test]
async fn stopping_a_failed_worker_removes_its_row() {
    let registry = with_ready("a");
    registry.ended(&id("a"), Some(failure()));
    assert!(registry.begin_stop(&id("a")).unwrap().is_cancelled());
    assert_eq!(state(&registry, "a"), None);
}

#[tokio::test]
async fn a_model_in_use_stays_and_an_idle_worker_of_it_ends() {
    let registry = with_ready("a");
    let reference = model("a").reference;
    let (_, request) = registry.enter(&id("a")).unwrap();
    assert_eq!(code(registry.begin_removal(&reference)), Some(ErrorCode::ModelInUse));
    drop(request);
    let removal = registry.begin_removal(&reference).unwrap();
    assert_eq!(state(&registry, "a"), Some(WorkerState::Stopping));
    assert_eq!(code(registry.begin_removal(&reference)), Some(ErrorCode::ModelInUse));
    assert_eq!(code(admit(&registry, "b", &model("a"))), Some(ErrorCode::ModelInUse));
    registry.ended(&id("a"), None);
    removal.unused().await;
    drop(removal);
    admit(&registry, "b", &model("a")).unwrap();
    assert_eq!(code(registry.begin_removal(&reference)), Some(ErrorCode::ModelInUse), "it loads");
}

#[tokio::test]
async fn a_draining_registry_admits_nobody_and_stops_everybody() {
    let registry = with_ready("a");
    registry.begin_draining();
    assert_eq!(state(&registry, "a"), Some(WorkerState::Stopping));
    assert_eq!(code(admit(&registry, "b", &model("b"))), Some(ErrorCode::Draining));
}

#[tokio::test]
async fn every_change_the_queen_should_know_wakes_who_waits_for_it() {
    let registry = with_ready("a");
    let mut changes = registry.changes();
    let mut woken = || std::mem::replace(&mut changes, registry.changes()).has_changed().unwrap();
    let (_, request) = registry.enter(&id("a")).unwrap();
    drop(request);
    assert!(!woken(), "a request is no news");
    registry.begin_stop(&id("a")).unwrap();
    assert!(woken());
    registry.ended(&id("a"), None);
    assert!(woken());
    admit(&registry, "b", &model("b")).unwrap();
    assert!(woken());
}
