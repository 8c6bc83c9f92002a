//! The registry's promises, each as one test.

use std::sync::Arc;

use model_catalog::{CacheType, GgufHeader, Purpose, Scores};
use rbee_api::error::ErrorDetail;
use rbee_api::worker_exit::{ExitCause, WorkerExit};
use secrets_management::Secret;

use super::*;
use crate::liveness::{Condemned, LivenessLimits};
use crate::restart::Jitter;

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
            scores: Scores::No,
            store_mib: 0,
        },
        stops_idle: false,
    }
}

pub(crate) fn client() -> HopClient {
    HopClient::new("http://127.0.0.1:1", Arc::new(Secret::generate().unwrap())).unwrap()
}

pub(crate) const READY: fn() -> WorkerReady =
    || WorkerReady { slots_total: 4, context_tokens: 512, device: "cpu".to_owned(), load_ms: 1 };

/// A registry with one worker that is ready.
fn with_ready(name: &str) -> Arc<Registry> {
    let registry = Arc::new(new_registry());
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

pub(crate) fn failure() -> Failure {
    failure_by(ExitCause::Killed)
}

pub(crate) fn failure_by(cause: ExitCause) -> Failure {
    Failure {
        detail: ErrorDetail::new(ErrorCode::WorkerFailed, "gone"),
        exit: WorkerExit { cause, exit_code: None, signal: None, at_ms: 7 },
        jitter: Jitter::new(0.0),
    }
}

fn rules() -> RestartRules {
    RestartRules {
        delay: Duration::from_secs(1),
        delay_max: Duration::from_secs(60),
        failures_max: 3,
        window: Duration::from_secs(600),
        healthy: Duration::from_secs(300),
        probe_delays: vec![Duration::from_secs(60)],
    }
}

pub(crate) fn new_registry() -> Registry {
    Registry::new(rules(), Duration::from_secs(30))
}

#[tokio::test]
async fn a_model_has_one_worker_however_often_it_is_asked_for() {
    let registry = new_registry();
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
    let registry = new_registry();
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
    let registry = new_registry();
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
            is_stepping: false,
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
async fn a_heartbeat_of_one_that_is_not_known_to_be_ready_says_that_it_is() {
    let registry = new_registry();
    admit(&registry, "a", &model("a")).unwrap();
    let beat = |sequence, slots_available| {
        let report = WorkerHeartbeat {
            sequence,
            slots_available,
            requests_running: 1,
            requests_waiting: 0,
            engine_steps: 9,
            is_stepping: true,
        };
        registry.heartbeat(&id("a"), &report).unwrap();
        let info = registry.get(&id("a")).unwrap();
        (info.state, info.slots_total, info.slots_available)
    };
    assert_eq!(beat(7, 3), (WorkerState::Ready, 4, 3));
    assert!(registry.lock().find(&id("a")).unwrap().signals.ready.is_cancelled());
    // What it says itself, later, is more exact.
    let serving = Serving { slots_total: 8, device: "gpu".to_owned() };
    registry.serves(&id("a"), &serving).unwrap();
    assert_eq!(beat(8, 7), (WorkerState::Ready, 8, 7));
    assert_eq!(registry.get(&id("a")).unwrap().device, "gpu");
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

fn turn(registry: &Registry, name: &str, patience: u64) -> Turn {
    let now = Instant::now();
    registry.turn(&model(name).reference, now, now + Duration::from_secs(patience))
}

#[tokio::test(start_paused = true)]
async fn a_failed_worker_has_a_successor_when_its_turn_has_come() {
    let registry = with_ready("a");
    assert_eq!(registry.due_restarts(Instant::now()), (vec![], None));
    let planned = registry.ended(&id("a"), Some(failure())).unwrap();
    assert_eq!((planned.pause, planned.was_restart), (Duration::from_secs(1), false));
    let row = registry.get(&id("a")).unwrap();
    assert_eq!((row.breaker, row.last_exit.unwrap().cause), (Breaker::Closed, ExitCause::Killed));
    assert!(row.next_try_at_ms.unwrap() > wall_clock_ms());
    let due = Instant::now() + Duration::from_secs(1);
    assert_eq!(registry.due_restarts(Instant::now()), (vec![], Some(due)));
    assert_eq!(turn(&registry, "a", 5), Turn::At(due));
    assert_eq!(turn(&registry, "other", 0), Turn::Now);
    match turn(&registry, "a", 0) {
        Turn::Refused(detail) => {
            assert_eq!(detail.code, ErrorCode::WorkerFailing);
            let figures = detail.details.unwrap();
            assert_eq!(
                (&figures["retry_after_ms"], &figures["cause"]),
                (&1000.into(), &"killed".into())
            );
        }
        other => panic!("{other:?}"),
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    let model_a = model("a");
    assert_eq!(registry.due_restarts(Instant::now()), (vec![model_a.reference.clone()], None));
    assert_eq!(registry.due_restarts(Instant::now()), (vec![], None), "it is taken out once");
    admit(&registry, "a2", &model_a).unwrap();
    assert_eq!(state(&registry, "a"), None, "the successor takes its place");
    let row = registry.get(&id("a2")).unwrap();
    assert_eq!((row.restart_count, row.last_exit.unwrap().cause), (1, ExitCause::Killed));
    assert_eq!(turn(&registry, "a", 0), Turn::Now);
    let planned = registry.ended(&id("a2"), Some(failure())).unwrap();
    assert_eq!((planned.pause, planned.was_restart), (Duration::from_secs(2), true));
}

#[tokio::test(start_paused = true)]
async fn five_healthy_minutes_take_the_past_off_the_row() {
    let registry = with_ready("a");
    registry.ended(&id("a"), Some(failure_by(ExitCause::BadModel)));
    assert_eq!(registry.get(&id("a")).unwrap().breaker, Breaker::Open);
    assert_eq!(registry.breakers(Breaker::Open), 1);
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(registry.due_restarts(Instant::now()).0.len(), 1);
    admit(&registry, "b", &model("a")).unwrap();
    registry.ready(&id("b"), &READY()).unwrap();
    let past = || {
        let row = &registry.snapshot()[0];
        (row.restart_count, row.breaker)
    };
    tokio::time::advance(Duration::from_secs(299)).await;
    assert_eq!((past(), registry.breakers(Breaker::HalfOpen)), ((1, Breaker::HalfOpen), 1));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!((past(), registry.breakers(Breaker::HalfOpen)), ((0, Breaker::Closed), 0));
}

#[tokio::test]
async fn nobody_succeeds_a_worker_that_was_stopped_or_whose_failure_was_dismissed() {
    let registry = with_ready("a");
    registry.begin_stop(&id("a")).unwrap();
    assert_eq!(registry.ended(&id("a"), None), None);
    assert_eq!(registry.due_restarts(Instant::now()), (vec![], None));
    let registry = with_ready("a");
    registry.ended(&id("a"), Some(failure_by(ExitCause::BadModel)));
    registry.begin_stop(&id("a")).unwrap();
    assert_eq!(registry.due_restarts(Instant::now()), (vec![], None));
    assert_eq!(turn(&registry, "a", 0), Turn::Now);
    let registry = with_ready("a");
    registry.ended(&id("a"), Some(failure()));
    registry.forget(&model("a").reference);
    assert_eq!(registry.due_restarts(Instant::now()), (vec![], None));
    let registry = with_ready("a");
    registry.ended(&id("a"), Some(failure()));
    registry.begin_draining();
    assert_eq!(registry.due_restarts(Instant::now()), (vec![], None));
}

#[tokio::test]
async fn a_reset_forgets_the_failures_of_the_model() {
    let registry = with_ready("a");
    registry.ended(&id("a"), Some(failure_by(ExitCause::BadModel)));
    assert!(
        matches!(turn(&registry, "a", 3600), Turn::Refused(_)),
        "an open breaker lets none wait"
    );
    let forgotten = registry.reset(&id("a")).unwrap();
    assert_eq!((forgotten.failures, forgotten.breaker), (1, Breaker::Open));
    let row = registry.get(&id("a")).unwrap();
    assert_eq!(forgotten.worker, row);
    assert_eq!((row.breaker, row.next_try_at_ms), (Breaker::Closed, None));
    assert_eq!(turn(&registry, "a", 0), Turn::Now);
    assert_eq!(registry.reset(&id("a")).unwrap().failures, 0, "they are forgotten once");
    assert!(registry.reset(&id("none")).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_start_that_finds_no_room_is_tried_again_and_a_hopeless_one_is_not() {
    for (code, is_planned) in
        [(ErrorCode::InsufficientMemory, true), (ErrorCode::ModelNotFound, false)]
    {
        let registry = with_ready("a");
        registry.ended(&id("a"), Some(failure()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(registry.due_restarts(Instant::now()).0.len(), 1);
        registry.restart_refused(&model("a").reference, code, Jitter::new(0.0));
        assert_eq!(registry.due_restarts(Instant::now()).1.is_some(), is_planned, "{code}");
        let row = registry.get(&id("a")).unwrap();
        assert_eq!(row.next_try_at_ms.is_some(), is_planned);
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_the_machine_prevents_counts_for_nothing_and_is_put_off_only_where_one_failed()
{
    let registry = with_ready("a");
    registry.ended(&id("a"), Some(failure()));
    for round in 0..9 {
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(registry.due_restarts(Instant::now()).0.len(), 1, "{round}");
        let name = format!("a{round}");
        admit(&registry, &name, &model("a")).unwrap();
        let pause = registry.not_started(&id(&name), failure().detail, Jitter::new(0.0));
        assert_eq!(pause, Some(Duration::from_secs(1)), "{round}");
        let row = registry.get(&id(&name)).unwrap();
        assert_eq!((row.state, row.breaker), (WorkerState::Failed, Breaker::Closed));
        assert_eq!((row.restart_count, row.last_exit.unwrap().cause), (1, ExitCause::Killed));
        assert!(row.failure.is_some() && row.next_try_at_ms.is_some());
    }
    let registry = new_registry();
    admit(&registry, "b", &model("b")).unwrap();
    assert_eq!(registry.not_started(&id("b"), failure().detail, Jitter::new(0.0)), None);
    assert_eq!(
        (state(&registry, "b"), turn(&registry, "b", 0)),
        (Some(WorkerState::Failed), Turn::Now)
    );
    assert_eq!(registry.due_restarts(Instant::now()), (vec![], None));
}

#[tokio::test(start_paused = true)]
async fn a_silent_worker_is_asked_once_and_condemned_when_it_does_not_answer() {
    let limits =
        LivenessLimits { hang: Duration::from_secs(9), load_stall: Duration::from_secs(9) };
    let begin = Instant::now();
    let look = |registry: &Registry| {
        let (silent, next) = registry.look_after(limits, begin, Instant::now());
        (silent.into_iter().map(|silent| silent.id).collect::<Vec<_>>(), next)
    };
    let registry = with_ready("a");
    assert_eq!(look(&registry), (vec![], Some(begin + Duration::from_secs(60))));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(look(&registry).0, [id("a")]);
    assert_eq!(look(&registry).0, [], "once at a time");
    registry.asked(&id("a"), Answer::Unheard);
    assert_eq!(look(&registry).0, [id("a")], "nobody knows, so it is asked again");
    registry.asked(&id("a"), Answer::Given);
    assert_eq!(look(&registry), (vec![], Some(Instant::now() + Duration::from_secs(60))));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(look(&registry).0, [id("a")]);
    let signals = registry.lock().find(&id("a")).unwrap().signals.clone();
    registry.asked(&id("a"), Answer::Missing);
    assert!(signals.condemned.is_cancelled());
    assert_eq!(signals.verdict.get(), Some(&Condemned::Stale));
}

#[tokio::test(start_paused = true)]
async fn a_condemned_worker_takes_no_request_from_the_moment_on_and_who_wants_one_waits_for_its_end()
 {
    let limits =
        LivenessLimits { hang: Duration::from_secs(9), load_stall: Duration::from_secs(9) };
    let registry = with_ready("a");
    let begin = Instant::now();
    let beat = |sequence| {
        let report = WorkerHeartbeat {
            sequence,
            slots_available: 1,
            requests_running: 1,
            requests_waiting: 0,
            engine_steps: 9,
            is_stepping: true,
        };
        registry.heartbeat(&id("a"), &report).unwrap();
    };
    beat(1);
    tokio::time::advance(Duration::from_secs(9)).await;
    beat(2);
    let changes = registry.changes();
    registry.look_after(limits, begin, Instant::now());
    assert_eq!(state(&registry, "a"), Some(WorkerState::Stopping));
    assert!(changes.has_changed().unwrap(), "the queen is told at once");
    assert_eq!(code(registry.enter(&id("a"))), Some(ErrorCode::Draining));
    let patience = Instant::now() + Duration::from_secs(6);
    assert_eq!(turn(&registry, "a", 6), Turn::At(patience));
    assert_eq!(turn(&registry, "a", 0), Turn::Now, "nobody waits longer than that");
    registry.ended(&id("a"), Some(failure_by(ExitCause::Hung)));
    assert_eq!(state(&registry, "a"), Some(WorkerState::Failed));
    assert_eq!(turn(&registry, "a", 6), Turn::At(Instant::now() + Duration::from_secs(1)));
}
