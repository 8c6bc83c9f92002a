//! Tables and properties of the decision.

use std::sync::Arc;

use input_validation::{ModelAlias, Sha256Hex};
use proptest::prelude::*;
use rbee_api::hive::{HiveSnapshot, Resources};
use rbee_api::model::{ModelInfo, ModelKind};
use rbee_api::worker::Backend;

use super::want::RETRIES_MAX;
use super::*;

const ALIAS: &str = "smollm2:135m";
const REFERENCE: &str = "file:/models/smollm2.gguf";

fn model(alias: &str, reference: &str) -> ModelInfo {
    ModelInfo {
        reference: reference.parse().unwrap(),
        alias: Some(alias.parse().unwrap()),
        size_bytes: 1,
        sha256: Sha256Hex::from_bytes(&[7; 32]),
        kind: ModelKind::Generate,
        architecture: "llama".to_owned(),
        quantisation: None,
        context_length: 2048,
        parameters: None,
        added_at_ms: 1,
    }
}

fn worker(id: &str, state: WorkerState) -> WorkerInfo {
    WorkerInfo {
        id: id.parse().unwrap(),
        model_ref: REFERENCE.parse().unwrap(),
        alias: Some(ALIAS.parse::<ModelAlias>().unwrap()),
        backend: Backend::Echo,
        device: "cpu".to_owned(),
        url: "http://127.0.0.1:1".to_owned(),
        state,
        load_progress: 0.0,
        slots_total: 4,
        slots_available: 4,
        pid: Some(1),
        started_at_ms: 1,
        last_heartbeat_ms: None,
        failure: None,
        restart_count: 0,
        last_exit: None,
        breaker: rbee_api::worker_exit::Breaker::Closed,
        next_try_at_ms: None,
    }
}

fn hive(name: &str, reach: Reach, memory: u64, workers: &[(&str, WorkerState)]) -> HiveView {
    let snapshot = HiveSnapshot {
        epoch: 1,
        sequence: 1,
        draining: reach == Reach::Draining,
        plain_http_on_network: false,
        resources: Resources { memory_available_bytes: memory, ..Resources::default() },
        models: vec![model(ALIAS, REFERENCE)],
        workers: workers.iter().map(|(id, state)| worker(id, *state)).collect(),
    };
    let snapshot = Some(Arc::new(snapshot));
    let is_stale = matches!(reach, Reach::Stale(_));
    HiveView { name: name.parse().unwrap(), reach, snapshot, noted: Vec::new(), is_stale }
}

fn cluster(hives: Vec<HiveView>) -> Cluster {
    Cluster { hives, load: std::collections::BTreeMap::new() }
}

fn want(name: &str) -> Want {
    Want::new(name.parse().unwrap(), ModelKind::Generate)
}

fn id(text: &str) -> WorkerId {
    text.parse().unwrap()
}

fn error(code: ErrorCode) -> ErrorDetail {
    ErrorDetail::new(code, format!("because of {code}"))
}

/// Writes a decision as one word a part, so that a table can hold it.
fn told(decision: &Decision, now: Instant) -> String {
    match decision {
        Decision::Use { hive, worker } => format!("use {hive} {worker}"),
        Decision::Start { hive, model } => format!("start {hive} {model}"),
        Decision::Wait { worker, until } => {
            let who = worker.as_ref().map_or("", WorkerId::as_str);
            format!("wait {who} {}", (*until - now).as_secs())
        }
        Decision::Refuse(detail) => format!("refuse {}", detail.code),
    }
}

fn decide(hives: Vec<HiveView>, want: &Want) -> String {
    let now = Instant::now();
    told(&place(&cluster(hives), want, now), now)
}

#[test]
fn a_reply_goes_on_only_where_its_file_is() {
    use Reach::Online;
    use WorkerState::{Ready, Starting};
    let mut request = want(ALIAS);
    request.keeps_to(Sha256Hex::from_bytes(&[8; 32]));
    request.failed(None, error(ErrorCode::WorkerFailed), Part::Unknown, Instant::now());
    let other = |workers| hive("a", Online, 9, workers);
    let same = |workers| {
        let mut view = hive("b", Online, 1, workers);
        let mut snapshot = (*view.snapshot.unwrap()).clone();
        snapshot.models[0].sha256 = Sha256Hex::from_bytes(&[8; 32]);
        view.snapshot = Some(Arc::new(snapshot));
        view
    };
    for (hives, expected) in [
        (vec![other(&[("w-1", Ready)]), same(&[("w-2", Ready)])], "use b w-2".to_owned()),
        (vec![other(&[("w-1", Ready)]), same(&[("w-2", Starting)])], "wait w-2 5".to_owned()),
        (vec![other(&[("w-1", Starting)]), same(&[])], format!("start b {REFERENCE}")),
        (vec![other(&[("w-1", Ready)])], "refuse worker_failed".to_owned()),
    ] {
        assert_eq!(decide(hives, &request), expected);
    }
    request.starts_nothing();
    assert_eq!(decide(vec![same(&[])], &request), "refuse worker_failed");
}

#[test]
fn a_worker_that_was_started_anew_has_not_failed() {
    let mut request = want(ALIAS);
    let mut first = worker("w-1", WorkerState::Ready);
    request.tries(&first);
    request.failed(Some(id("w-1")), error(ErrorCode::WorkerFailed), Part::Unknown, Instant::now());
    assert!(request.is_broken(&first));
    first.started_at_ms += 1;
    assert!(!request.is_broken(&first), "it runs since later");
    request.tries(&first);
    assert!(!request.is_broken(&first));
    request.failed(Some(id("w-1")), error(ErrorCode::WorkerFailed), Part::Unknown, Instant::now());
    assert!(request.is_broken(&first), "that one failed, too");
}

#[test]
fn what_gets_on_has_all_its_attempts_again() {
    let mut request = want(ALIAS);
    for _ in 0..3 {
        assert!(!request.is_given_up());
        request.failed(None, error(ErrorCode::WorkerFailed), Part::Unknown, Instant::now());
    }
    assert!(request.is_given_up());
    request.progressed();
    assert!(!request.is_given_up());
}

#[test]
fn the_cluster_decides_what_a_fresh_request_gets() {
    use Reach::{Draining, Online};
    use WorkerState::{Failed, Ready, Starting, Stopping};
    let now = Instant::now();
    let awaited = |seconds| Reach::Awaited { until: now + Duration::from_secs(seconds) };
    let lost = || Reach::Lost(error(ErrorCode::HiveUnreachable));
    let unheard = |reach| HiveView { snapshot: None, ..hive("local", reach, 0, &[]) };
    let cases: Vec<(&str, Vec<HiveView>, String)> = vec![
        ("a ready worker", vec![hive("a", Online, 1, &[("w-1", Ready)])], "use a w-1".into()),
        (
            "a ready worker rather than one that starts",
            vec![hive("a", Online, 1, &[("w-1", Starting), ("w-2", Ready)])],
            "use a w-2".into(),
        ),
        (
            "the worker that starts, whichever machine",
            vec![hive("a", Online, 9, &[]), hive("b", Online, 1, &[("w-1", Starting)])],
            "wait w-1 5".into(),
        ),
        (
            "a new worker where memory is free",
            vec![hive("a", Online, 1, &[]), hive("b", Online, 2, &[]), hive("c", Online, 2, &[])],
            format!("start b {REFERENCE}"),
        ),
        (
            "a new worker beside those that end",
            vec![hive("a", Online, 1, &[("w-1", Stopping), ("w-2", Failed)])],
            format!("start a {REFERENCE}"),
        ),
        (
            "nothing of a draining machine",
            vec![hive("a", Draining, 1, &[("w-1", Ready)])],
            "refuse no_worker_available".into(),
        ),
        (
            "nothing of a lost machine",
            vec![hive("a", lost(), 1, &[("w-1", Ready)])],
            "refuse hive_unreachable".into(),
        ),
        (
            "another machine than the lost one",
            vec![hive("a", lost(), 1, &[("w-1", Ready)]), hive("b", Online, 1, &[("w-2", Ready)])],
            "use b w-2".into(),
        ),
        (
            "the machine that comes back",
            vec![hive("a", awaited(3), 1, &[("w-1", Ready)])],
            "wait  3".into(),
        ),
        ("the first report", vec![unheard(awaited(9))], "wait  5".into()),
        (
            "no more than the first report",
            vec![unheard(awaited(0))],
            "refuse no_worker_available".into(),
        ),
        (
            "the reason why there is no machine",
            vec![unheard(lost())],
            "refuse hive_unreachable".into(),
        ),
        ("an empty cluster", vec![], "refuse model_not_found".into()),
    ];
    for (name, hives, expected) in cases {
        assert_eq!(told(&place(&cluster(hives), &want(ALIAS), now), now), expected, "{name}");
    }
}

#[test]
fn a_model_answers_to_its_alias_and_to_its_reference_alone() {
    let hives = || vec![hive("a", Reach::Online, 1, &[("w-1", WorkerState::Ready)])];
    assert_eq!(decide(hives(), &want(ALIAS)), "use a w-1");
    assert_eq!(decide(hives(), &want(REFERENCE)), "use a w-1");
    assert_eq!(decide(hives(), &want("smollm2")), "refuse model_not_found");
}

#[test]
fn an_unknown_model_is_refused_once_a_machine_has_reported_with_the_way_to_get_it() {
    let Decision::Refuse(detail) =
        place(&cluster(vec![hive("a", Reach::Online, 1, &[])]), &want("other:1b"), Instant::now())
    else {
        panic!("not refused");
    };
    assert_eq!((detail.code, detail.param.as_deref()), (ErrorCode::ModelNotFound, Some("model")));
    for part in ["other:1b", "rbee pull", "rbee list"] {
        assert!(detail.message.contains(part), "{}", detail.message);
    }
    assert!(!detail.message.contains("did you mean"), "{}", detail.message);
    let near = want(&format!("{ALIAS}x"));
    let decision = place(&cluster(vec![hive("a", Reach::Online, 1, &[])]), &near, Instant::now());
    let Decision::Refuse(detail) = decision else { panic!("not refused") };
    assert!(detail.message.contains(&format!("did you mean {ALIAS}?")), "{}", detail.message);
    let now = Instant::now();
    let coming = Reach::Awaited { until: now + Duration::from_secs(2) };
    let unheard = HiveView { snapshot: None, ..hive("b", coming, 0, &[]) };
    let hives = cluster(vec![hive("a", Reach::Online, 1, &[]), unheard]);
    assert_eq!(told(&place(&hives, &want("other:1b"), now), now), "wait  2");
}

#[test]
fn the_least_busy_worker_is_used_and_the_oldest_of_equals() {
    let ready = WorkerState::Ready;
    let mut view = cluster(vec![
        hive("a", Reach::Online, 1, &[("w-1", ready), ("w-2", ready)]),
        hive("b", Reach::Online, 1, &[("w-3", ready)]),
    ]);
    let now = Instant::now();
    let mut choose = |load: &[(&str, u32)]| {
        view.load = load.iter().map(|(name, count)| (id(name), *count)).collect();
        told(&place(&view, &want(ALIAS), now), now)
    };
    assert_eq!(choose(&[]), "use a w-1");
    assert_eq!(choose(&[("w-1", 1)]), "use a w-2");
    assert_eq!(choose(&[("w-1", 1), ("w-2", 2)]), "use b w-3");
    assert_eq!(choose(&[("w-1", 1), ("w-2", 2), ("w-3", 2)]), "use a w-1");
}

#[test]
fn a_noted_worker_counts_like_a_reported_one() {
    let mut view = hive("a", Reach::Online, 1, &[]);
    view.noted = vec![worker("w-9", WorkerState::Starting)];
    assert_eq!(decide(vec![view.clone()], &want(ALIAS)), "wait w-9 5");
    view.noted = vec![worker("w-9", WorkerState::Ready)];
    assert_eq!(decide(vec![view], &want(ALIAS)), "use a w-9");
}

#[test]
fn a_worker_that_failed_the_request_is_not_used_again() {
    let ready = WorkerState::Ready;
    let now = Instant::now();
    let mut request = want(ALIAS);
    request.failed(Some(id("w-1")), error(ErrorCode::WorkerFailed), Part::Unknown, now);
    let two = vec![hive("a", Reach::Online, 1, &[("w-1", ready), ("w-2", ready)])];
    assert_eq!(told(&place(&cluster(two), &request, now), now), "use a w-2");

    let one = cluster(vec![hive("a", Reach::Online, 1, &[("w-1", ready)])]);
    assert_eq!(told(&place(&one, &request, now), now), "wait  5", "its end is not reported yet");
    let later = now + REPORT_TIME;
    assert_eq!(told(&place(&one, &request, later), later), format!("start a {REFERENCE}"));

    let ended = cluster(vec![hive("a", Reach::Online, 1, &[("w-1", WorkerState::Failed)])]);
    assert_eq!(told(&place(&ended, &request, now), now), format!("start a {REFERENCE}"));
}

#[test]
fn after_two_more_attempts_the_last_failure_is_the_answer() {
    let ready = WorkerState::Ready;
    let hives = || {
        vec![hive(
            "a",
            Reach::Online,
            1,
            &[("w-1", ready), ("w-2", ready), ("w-3", ready), ("w-4", ready)],
        )]
    };
    let mut request = want(ALIAS);
    for (failed, expected) in
        [("w-1", "use a w-2"), ("w-2", "use a w-3"), ("w-3", "refuse worker_failed")]
    {
        let error = error(ErrorCode::WorkerNotFound);
        request.failed(Some(id(failed)), error, Part::Unknown, Instant::now());
        assert_eq!(decide(hives(), &request), expected);
    }
}

#[test]
fn a_failed_load_is_the_answer_to_those_who_waited_for_it_and_to_nobody_else() {
    let mut view = hive("a", Reach::Online, 1, &[("w-1", WorkerState::Failed)]);
    let mut waited = want(ALIAS);
    waited.awaits(id("w-1"));
    assert_eq!(decide(vec![view.clone()], &waited), "refuse worker_start_failed");
    assert_eq!(decide(vec![view.clone()], &want(ALIAS)), format!("start a {REFERENCE}"));

    let mut failed = worker("w-1", WorkerState::Failed);
    failed.failure = Some(error(ErrorCode::InvalidModelFile));
    view.snapshot = None;
    view.noted = vec![failed];
    assert_eq!(decide(vec![view], &waited), "refuse invalid_model_file");
}

#[test]
fn a_machine_that_refuses_to_start_is_passed_over_and_its_reason_kept() {
    let two = || vec![hive("a", Reach::Online, 9, &[]), hive("b", Reach::Online, 1, &[])];
    let mut request = want(ALIAS);
    request.started();
    request.refused("a".parse().unwrap(), error(ErrorCode::InsufficientMemory));
    assert_eq!(decide(two(), &request), format!("start b {REFERENCE}"));
    request.started();
    request.refused("b".parse().unwrap(), error(ErrorCode::WorkerLimitReached));
    assert_eq!(decide(two(), &request), "refuse worker_limit_reached");
}

#[test]
fn workers_that_keep_vanishing_are_not_started_for_ever() {
    let mut request = want(ALIAS);
    for _ in 0..STARTS_MAX {
        assert!(decide(vec![hive("a", Reach::Online, 1, &[])], &request).starts_with("start"));
        request.started();
    }
    assert_eq!(
        decide(vec![hive("a", Reach::Online, 1, &[])], &request),
        "refuse no_worker_available"
    );
}

#[test]
fn only_failures_of_workers_and_machines_are_worth_another_attempt() {
    for code in ErrorCode::ALL.iter().filter(|code| may_go_elsewhere(**code)) {
        let mut request = want(ALIAS);
        for _ in 0..=RETRIES_MAX {
            request.failed(None, error(*code), Part::Unknown, Instant::now());
        }
        let Decision::Refuse(told) = place(&cluster(Vec::new()), &request, Instant::now()) else {
            panic!("not refused");
        };
        assert!(told.retryable && told.code.status() >= 500, "{code}: {told}");
    }
    assert!(!may_go_elsewhere(ErrorCode::AllSlotsBusy));
    assert!(!may_go_elsewhere(ErrorCode::DeadlineExceeded));
}

fn any_state() -> impl Strategy<Value = WorkerState> {
    prop_oneof![
        Just(WorkerState::Starting),
        Just(WorkerState::Ready),
        Just(WorkerState::Stopping),
        Just(WorkerState::Failed),
    ]
}

/// A machine is told as (reach, has the model, has reported, memory, workers).
type AnyHive = (u8, bool, bool, u64, Vec<WorkerState>);

fn any_hive() -> impl Strategy<Value = AnyHive> {
    (0..4_u8, any::<bool>(), any::<bool>(), 0..4_u64, prop::collection::vec(any_state(), 0..4))
}

fn build(hives: &[AnyHive], now: Instant) -> Cluster {
    let build_one = |(index, (reach, has_model, reported, memory, states)): (usize, &AnyHive)| {
        let reach = match reach {
            0 => Reach::Online,
            1 => Reach::Draining,
            2 => Reach::Awaited { until: now + Duration::from_secs(1) },
            _ => Reach::Lost(error(ErrorCode::HiveUnreachable)),
        };
        let names: Vec<_> = (0..states.len()).map(|n| format!("w-{index}-{n}")).collect();
        let workers: Vec<_> =
            names.iter().map(String::as_str).zip(states.iter().copied()).collect();
        let mut view = hive(&format!("h{index}"), reach, *memory, &workers);
        let mut snapshot = (*view.snapshot.take().unwrap()).clone();
        if !has_model {
            snapshot.models.clear();
        }
        view.snapshot = reported.then(|| Arc::new(snapshot));
        view
    };
    cluster(hives.iter().enumerate().map(build_one).collect())
}

proptest! {
    #[test]
    fn every_decision_can_be_carried_out(
        hives in prop::collection::vec(any_hive(), 0..4),
        failed in prop::collection::vec((0..4_usize, 0..4_usize), 0..3),
        load in prop::collection::vec((0..4_usize, 0..4_usize, 1..5_u32), 0..6),
    ) {
        let now = Instant::now();
        let mut view = build(&hives, now);
        view.load = load.iter().map(|(h, n, count)| (id(&format!("w-{h}-{n}")), *count)).collect();
        let mut request = want(ALIAS);
        for (h, n) in &failed {
            let (id, error) = (id(&format!("w-{h}-{n}")), error(ErrorCode::WorkerNotFound));
            request.failed(Some(id), error, Part::Unknown, now);
        }
        let usable: Vec<&WorkerInfo> = online(&view)
            .flat_map(|hive| hive.workers_for(request.model()))
            .filter(|worker| request.can_use(worker))
            .collect();
        let decision = place(&view, &request, now);
        prop_assert_eq!(&decision, &place(&view, &request, now), "the same input, another decision");
        let named = |name: &NodeName| online(&view).find(|hive| hive.name == *name);
        match decision {
            Decision::Use { hive, worker } => {
                let chosen = named(&hive).and_then(|h| h.workers().find(|w| w.id == worker)).unwrap();
                prop_assert!(request.can_use(chosen));
                let least = usable.iter().map(|w| view.load_of(&w.id)).min();
                prop_assert_eq!(Some(view.load_of(&worker)), least);
            }
            Decision::Start { hive, model } => {
                prop_assert!(usable.is_empty());
                prop_assert_eq!(named(&hive).and_then(|h| h.model(request.model())).map(|m| &m.reference), Some(&model));
                let unbroken = |w: &WorkerInfo| is_live(w) && !request.is_broken(w);
                prop_assert!(!online(&view).flat_map(|h| h.workers_for(request.model())).any(unbroken));
            }
            Decision::Wait { until, .. } => {
                prop_assert!(usable.is_empty());
                prop_assert!(until > now && until <= now + LOOK_AGAIN);
            }
            Decision::Refuse(detail) => {
                prop_assert!(usable.is_empty() || failed.len() > RETRIES_MAX);
                prop_assert!(detail.code.status() >= 400);
            }
        }
    }
}

#[test]
fn what_a_model_is_not_for_is_refused_before_anything_is_started() {
    for workers in [&[][..], &[("w-1", WorkerState::Ready)]] {
        let cluster = cluster(vec![hive("a", Reach::Online, 1 << 30, workers)]);
        let decide = |asks| {
            let want = Want::new(ALIAS.parse().unwrap(), asks);
            place(&cluster, &want, Instant::now())
        };
        let generates = decide(ModelKind::Generate);
        assert!(matches!(generates, Decision::Use { .. } | Decision::Start { .. }));
        let Decision::Refuse(detail) = decide(ModelKind::Embed) else { panic!("it was taken") };
        assert_eq!(detail.code, ErrorCode::UnsupportedParameter);
        assert_eq!(detail.param.as_deref(), Some("model"));
    }
}

#[test]
fn the_worker_with_the_smallest_share_of_its_slots_taken_is_used() {
    let small_and_large = |loads: [u32; 2]| {
        let ready = [("w-small", WorkerState::Ready), ("w-large", WorkerState::Ready)];
        let mut view = hive("a", Reach::Online, 1, &ready);
        let mut snapshot = (*view.snapshot.take().unwrap()).clone();
        (snapshot.workers[0].slots_total, snapshot.workers[1].slots_total) = (4, 16);
        view.snapshot = Some(Arc::new(snapshot));
        let mut cluster = cluster(vec![view]);
        cluster.load = [id("w-small"), id("w-large")].into_iter().zip(loads).collect();
        told(&place(&cluster, &want(ALIAS), Instant::now()), Instant::now())
    };
    for (loads, expected) in [
        ([1, 3], "w-large"),
        ([1, 5], "w-small"),
        ([0, 1], "w-small"),
        ([4, 15], "w-large"),
        // Equally busy and equally old: by name.
        ([1, 4], "w-large"),
    ] {
        assert_eq!(small_and_large(loads), format!("use a {expected}"), "{loads:?}");
    }
}
