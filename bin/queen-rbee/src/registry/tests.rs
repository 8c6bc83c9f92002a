//! What the registry makes of reports, answers and failures.

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::hive::{HiveState, Resources};
use rbee_api::worker::{Backend, WorkerState};
use secrets_management::Secret;
use tokio::time::timeout;

use super::*;
use crate::cluster::Reach;

const INTERVAL: Duration = Duration::from_secs(30);

fn local() -> NodeName {
    "local".parse().unwrap()
}

fn client() -> HopClient {
    HopClient::new("http://127.0.0.1:9", Arc::new(Secret::generate().unwrap())).unwrap()
}

fn registry() -> Arc<Registry> {
    Arc::new(Registry::new(local(), INTERVAL))
}

fn report(epoch: u64, sequence: u64, workers: Vec<WorkerInfo>) -> HiveSnapshot {
    let resources = Resources::default();
    HiveSnapshot {
        epoch,
        sequence,
        draining: false,
        plain_http_on_network: false,
        resources,
        models: Vec::new(),
        workers,
    }
}

fn worker(id: &str) -> WorkerInfo {
    WorkerInfo {
        id: id.parse().unwrap(),
        model_ref: "m".parse().unwrap(),
        alias: None,
        backend: Backend::Echo,
        device: "cpu".to_owned(),
        url: "http://127.0.0.1:1".to_owned(),
        state: WorkerState::Starting,
        load_progress: 0.0,
        slots_total: 0,
        slots_available: 0,
        pid: None,
        started_at_ms: 1,
        last_heartbeat_ms: None,
        failure: None,
        restart_count: 0,
        last_exit: None,
        breaker: rbee_api::worker_exit::Breaker::Closed,
        next_try_at_ms: None,
    }
}

#[tokio::test(start_paused = true)]
async fn slots_are_free_but_for_the_requests_that_are_being_forwarded() {
    let registry = registry();
    let busy = |id, state| WorkerInfo { state, slots_total: 2, slots_available: 0, ..worker(id) };
    let ready = busy("w-1", WorkerState::Ready);
    let cases: [(&[u32], u32); 6] =
        [(&[], 2), (&[1], 1), (&[1, 1], 0), (&[1, 1, 1], 0), (&[2], 0), (&[16], 0)];
    for (forwarded, expected) in cases {
        let load: Vec<_> =
            forwarded.iter().map(|choices| registry.load(&ready.id, *choices)).collect();
        assert_eq!(registry.view().slots_available(&ready), expected, "{forwarded:?}");
        drop(load);
    }
    for state in [WorkerState::Starting, WorkerState::Stopping, WorkerState::Failed] {
        let other = busy("w-2", state);
        assert_eq!(registry.view().slots_available(&other), 0, "{state:?}");
    }
}

fn reach(registry: &Registry) -> Reach {
    registry.view().hives[0].reach.clone()
}

fn worker_ids(registry: &Registry) -> Vec<String> {
    registry.view().hives[0].workers().map(|worker| worker.id.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn reports_count_in_their_own_order_whatever_the_order_of_their_arrival() {
    let registry = registry();
    for (epoch, sequence, name, expected, held) in [
        (5, 2, "w-b", "w-b", 5),
        (5, 1, "w-a", "w-b", 5),
        (5, 2, "w-x", "w-b", 5),
        (4, 9, "w-old", "w-b", 5),
        (5, 3, "w-c", "w-c", 5),
        (6, 1, "w-new", "w-new", 6),
        (5, 4, "w-late", "w-new", 6),
    ] {
        let told = registry.heartbeat(&local(), report(epoch, sequence, vec![worker(name)]));
        assert_eq!(told, Ok(held), "what a later process has to exceed");
        assert_eq!(worker_ids(&registry), [expected], "after {epoch}.{sequence}");
    }
    let stranger = "attic".parse().unwrap();
    assert_eq!(registry.heartbeat(&stranger, report(1, 1, Vec::new())), Err(UnknownHive));
}

#[tokio::test(start_paused = true)]
async fn a_machine_is_online_with_an_address_and_a_report_until_it_falls_silent() {
    let registry = registry();
    assert!(matches!(reach(&registry), Reach::Awaited { .. }));
    registry.answered(&local(), client(), None);
    assert!(matches!(reach(&registry), Reach::Awaited { .. }), "no report yet");
    registry.heartbeat(&local(), report(1, 1, Vec::new())).unwrap();
    assert_eq!(reach(&registry), Reach::Online);
    tokio::time::advance(INTERVAL * 2).await;
    assert_eq!(reach(&registry), Reach::Online);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(matches!(reach(&registry), Reach::Suspect(_)));
    registry.heartbeat(&local(), report(1, 2, Vec::new())).unwrap();
    assert_eq!(reach(&registry), Reach::Online);
}

#[tokio::test(start_paused = true)]
async fn a_stale_machine_is_listed_without_its_workers_until_it_reports_again() {
    let registry = registry();
    registry.answered(&local(), client(), None);
    let ready = || WorkerInfo { state: WorkerState::Ready, ..worker("w-1") };
    registry.heartbeat(&local(), report(1, 1, vec![ready()])).unwrap();
    let listed = || {
        let info = registry.hive_infos().remove(0);
        (info.state, info.workers)
    };
    assert_eq!(listed(), (HiveState::Online, 1));
    tokio::time::advance(INTERVAL * 3).await;
    assert_eq!(listed(), (HiveState::Suspect, 1));
    tokio::time::advance(INTERVAL * 2).await;
    assert_eq!(listed(), (HiveState::Stale, 0));
    registry.lost(&local(), ErrorDetail::new(ErrorCode::HiveUnreachable, "it does not answer"));
    assert_eq!(listed(), (HiveState::Unreachable, 0));
    registry.heartbeat(&local(), report(1, 2, vec![ready()])).unwrap();
    assert_eq!(listed(), (HiveState::Online, 1));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_machine_that_reports_waits_on_and_for_another_until_it_is_stale() {
    let registry = registry();
    registry.answered(&local(), client(), None);
    registry.heartbeat(&local(), report(1, 1, Vec::new())).unwrap();
    let name = local();
    let mut silence = Box::pin(registry.falls_silent(&name, Instant::now()));
    for sequence in 2..50 {
        assert!(timeout(INTERVAL, &mut silence).await.is_err(), "{sequence}");
        registry.heartbeat(&local(), report(1, sequence, Vec::new())).unwrap();
    }
    assert!(timeout(INTERVAL * 4, &mut silence).await.is_err());
    assert!(timeout(Duration::from_millis(2), &mut silence).await.is_ok());
    assert!(matches!(reach(&registry), Reach::Stale(_)));
    let something_came = registry.falls_silent(&name, Instant::now());
    assert!(timeout(INTERVAL * 4, something_came).await.is_err(), "silent as it is otherwise");
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_queen_stood_still_is_no_silence() {
    let registry = registry();
    registry.answered(&local(), client(), None);
    registry.heartbeat(&local(), report(1, 1, Vec::new())).unwrap();
    let name = local();
    let mut silence = Box::pin(registry.falls_silent(&name, Instant::now()));
    assert!(timeout(INTERVAL, &mut silence).await.is_err());
    tokio::time::advance(INTERVAL * 9).await;
    assert!(timeout(INTERVAL * 4, &mut silence).await.is_err());
    assert!(timeout(Duration::from_millis(2), &mut silence).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_report_alone_gives_no_address_and_asks_for_a_look() {
    let registry = registry();
    registry.heartbeat(&local(), report(1, 1, Vec::new())).unwrap();
    assert!(matches!(reach(&registry), Reach::Awaited { .. }));
    assert!(registry.client(&local()).is_none());
    registry.check_is_asked_for().await;
    registry.answered(&local(), client(), None);
    assert_eq!(reach(&registry), Reach::Online);
    registry.heartbeat(&local(), report(2, 1, Vec::new())).unwrap();
    assert!(matches!(reach(&registry), Reach::Awaited { .. }), "another process answers there");
    registry.check_is_asked_for().await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_failed_a_call_is_waited_for_while_it_is_checked() {
    let registry = registry();
    registry.answered(&local(), client(), None);
    registry.heartbeat(&local(), report(1, 1, Vec::new())).unwrap();
    registry.suspect(&local());
    registry.check_is_asked_for().await;
    assert!(matches!(reach(&registry), Reach::Awaited { .. }));
    registry.answered(&local(), client(), None);
    assert_eq!(reach(&registry), Reach::Online);
    registry.suspect(&local());
    tokio::time::advance(CHECK_GRACE).await;
    assert!(matches!(reach(&registry), Reach::Lost(_)), "nobody found it");
    registry.restarting(&local(), Instant::now() + INTERVAL);
    registry.answered(&local(), client(), None);
    assert!(matches!(reach(&registry), Reach::Awaited { .. }), "the new one has not reported");
}

#[tokio::test(start_paused = true)]
async fn a_worker_named_in_an_answer_counts_until_a_report_names_it() {
    let registry = registry();
    registry.answered(&local(), client(), None);
    registry.heartbeat(&local(), report(1, 1, Vec::new())).unwrap();
    registry.note_worker(&local(), worker("w-1"));
    registry.heartbeat(&local(), report(1, 2, Vec::new())).unwrap();
    assert_eq!(worker_ids(&registry), ["w-1"], "the report was on its way already");
    assert_eq!(registry.hive_of(&"w-1".parse().unwrap()), Some(local()));
    registry.heartbeat(&local(), report(1, 3, vec![worker("w-1")])).unwrap();
    registry.note_worker(&local(), worker("w-1"));
    assert_eq!(worker_ids(&registry), ["w-1"]);
    registry.heartbeat(&local(), report(1, 4, Vec::new())).unwrap();
    assert!(worker_ids(&registry).is_empty());
    registry.note_worker(&local(), worker("w-2"));
    tokio::time::advance(NOTED_MAX).await;
    assert!(worker_ids(&registry).is_empty(), "no report ever named it");
}

#[tokio::test(start_paused = true)]
async fn load_is_counted_until_its_guard_is_dropped() {
    let registry = registry();
    let id = "w-1".parse().unwrap();
    let guards = [registry.load(&id, 1), registry.load(&id, 3)];
    assert_eq!(registry.view().load_of(&id), 4);
    drop(guards);
    assert!(registry.view().load.is_empty());
}

#[tokio::test(start_paused = true)]
async fn every_change_wakes_who_waits() {
    let registry = registry();
    let mut changes = registry.subscribe();
    let changed = |changes: &mut watch::Receiver<()>| {
        let has = changes.has_changed().unwrap();
        changes.mark_unchanged();
        has
    };
    registry.answered(&local(), client(), None);
    assert!(changed(&mut changes));
    registry.heartbeat(&local(), report(1, 1, Vec::new())).unwrap();
    assert!(changed(&mut changes));
    registry.heartbeat(&local(), report(1, 1, Vec::new())).unwrap();
    assert!(!changed(&mut changes), "a late report is no change");
    registry.note_worker(&local(), worker("w-1"));
    assert!(changed(&mut changes));
    registry.suspect(&local());
    assert!(changed(&mut changes));
    registry.lost(&local(), ErrorDetail::new(ErrorCode::HiveUnreachable, "it is gone"));
    assert!(changed(&mut changes));
}

#[tokio::test(start_paused = true)]
async fn what_a_machine_tells_when_asked_counts_until_its_first_report() {
    let registry = registry();
    assert!(registry.is_unheard(&local()));
    registry.answered(&local(), client(), Some(report(9, 9, vec![worker("w-told")])));
    assert_eq!(reach(&registry), Reach::Online);
    assert_eq!(worker_ids(&registry), ["w-told"]);
    registry.heartbeat(&local(), report(5, 1, vec![worker("w-a")])).unwrap();
    assert_eq!((reach(&registry), worker_ids(&registry)), (Reach::Online, vec!["w-a".to_owned()]));
    registry.answered(&local(), client(), Some(report(9, 9, vec![worker("w-older")])));
    assert_eq!(worker_ids(&registry), ["w-a"], "a report is better than an answer");
}
