//! What a worker may take: refusals before there is a process, limits that the kernel holds it to, and what becomes of
//! all that a worker has started.

use std::fs;

use futures_util::future::join_all;
use rbee_api::error::ErrorCode;
use rbee_api::hive::{HiveStatus, MemoryLimit, Resources};
use rbee_api::worker::{WorkerInfo, WorkerState};
use rustix::process::Signal;
use serde_json::json;

use crate::fake_worker::hive_with;
use crate::processes::{eventually, signal, working_in};
use crate::program::{Hive, LIMIT, Place, value};
use crate::stream::Chat;

/// Starts what leaves its session and forks once more, and obeys nothing.
const FAMILY: &str = "read secrets\nsetsid sh -c 'sleep 1000 & sleep 1000; :' &\ntrap '' TERM INT HUP\n\
                      while :; do sleep 1000; done";
/// A shell and what it waits for, and a shell in another session with two more.
const FAMILY_SIZE: usize = 5;

async fn resources(hive: &Hive) -> Resources {
    hive.get::<HiveStatus>("/api/v1/status").await.unwrap().resources
}

/// A hive with a worker that has a family, once all of that runs; `None` where this machine lets no group be made, which
/// the hive then says.
async fn hive_with_family() -> Option<(Hive, WorkerInfo)> {
    let hive = hive_with(FAMILY, "stop_grace_seconds = 1\n").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    eventually("the whole family is there", LIMIT, async || {
        (working_in(&hive.home()).len() == FAMILY_SIZE).then_some(())
    })
    .await;
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", worker.pid.unwrap())).unwrap();
    let unified = groups.lines().find(|line| line.starts_with("0::")).unwrap_or_default();
    if unified.ends_with(&format!("/rbee-{}", worker.id)) {
        return Some((hive, worker));
    }
    assert!(hive.log().contains("kills_groups=false"), "{groups}{}", hive.log());
    None
}

async fn nobody_is_left(hive: &Hive) {
    eventually("nobody is left", LIMIT, async || working_in(&hive.home()).is_empty().then_some(()))
        .await;
}

#[tokio::test]
async fn what_a_worker_has_started_ends_with_it_in_whatever_session() {
    let Some((hive, worker)) = hive_with_family().await else { return };
    hive.stop_worker(worker.id.as_str()).await.unwrap();
    nobody_is_left(&hive).await;
    let Some((hive, worker)) = hive_with_family().await else { return };
    signal(worker.pid.unwrap(), Signal::KILL);
    nobody_is_left(&hive).await;
}

#[tokio::test]
async fn a_hive_that_takes_over_ends_what_the_workers_of_the_former_one_have_started() {
    let Some((hive, worker)) = hive_with_family().await else { return };
    let hive = hive.kill().start().await;
    hive.stop_worker(worker.id.as_str()).await.unwrap();
    nobody_is_left(&hive).await;
    let Some((hive, worker)) = hive_with_family().await else { return };
    let place = hive.kill();
    signal(worker.pid.unwrap(), Signal::KILL);
    let hive = place.start().await;
    nobody_is_left(&hive).await;
    // One that was dying when it was adopted has a row for a moment.
    eventually("no row is left", LIMIT, async || hive.workers().await.is_empty().then_some(()))
        .await;
}

#[tokio::test]
async fn a_worker_that_takes_more_memory_than_it_may_is_ended_alone_and_says_why() {
    let takes_300_mib = "read secrets\nexec dd if=/dev/zero of=/dev/null bs=300M count=1";
    let hive = hive_with(takes_300_mib, "[worker]\nmemory_limit_mib = 64\n").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    let failed = hive.worker_in(worker.id.as_str(), WorkerState::Failed).await;
    let details = failed.failure.unwrap().details;
    let expected = match resources(&hive).await.memory_limit {
        MemoryLimit::CgroupV1 | MemoryLimit::CgroupV2 => json!({"cause": "out_of_memory"}),
        MemoryLimit::Unenforced => json!({"exit_code": 0}),
    };
    assert_eq!(details, Some(expected.clone()));
    let counted =
        hive.metrics().await.contains("rbee_hive_worker_exits_total{cause=\"out_of_memory\"} 1");
    assert_eq!(counted, expected == json!({"cause": "out_of_memory"}));
    let hive = hive_with(takes_300_mib, "[worker]\nmemory_limit_mib = 0\n").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    let failed = hive.worker_in(worker.id.as_str(), WorkerState::Failed).await;
    assert_eq!(failed.failure.unwrap().details, Some(json!({"exit_code": 0})), "no limit");
}

#[tokio::test]
async fn the_kernel_ends_a_worker_before_its_hive() {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let score = |pid: u32| -> i32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    let (of_hive, of_worker) = (score(hive.pid()), score(worker.pid.unwrap()));
    assert_eq!(of_worker, (of_hive + 500).min(1000));
}

#[tokio::test]
async fn a_start_that_the_machine_has_no_room_for_is_refused_with_figures_and_leaves_no_process() {
    let inodes = "inodes_min_free = 4294967295\n";
    for (config, code, required, available) in [
        (
            "memory_min_free_mib = 16777216\n",
            ErrorCode::InsufficientMemory,
            "required_bytes",
            "available_bytes",
        ),
        (
            "disk_min_free_mib = 16777216\n",
            ErrorCode::InsufficientDisk,
            "required_bytes",
            "available_bytes",
        ),
        (inodes, ErrorCode::InsufficientDisk, "required_inodes", "available_inodes"),
    ] {
        let hive = Place::new().start_with(config, &[]).await;
        hive.import("tiny").await;
        let has_inodes = hive.metrics().await.contains("rbee_hive_disk_inodes_total");
        if config == inodes && !has_inodes {
            continue;
        }
        let refusal = hive.start_worker("tiny").await.unwrap_err();
        assert_eq!((refusal.code, refusal.code.status()), (code, 503), "{refusal}");
        let details = refusal.details.unwrap();
        let figure = |name: &str| details[name].as_u64().unwrap_or_else(|| panic!("{details}"));
        assert!(figure(required) > figure(available), "{details}");
        assert_eq!((working_in(&hive.home()), hive.workers().await.len()), (vec![], 0));
    }
}

#[tokio::test]
async fn ten_starts_at_once_with_two_places_make_two_workers_and_a_crash_frees_a_place() {
    let hive = Place::new().start_with("workers_max = 2\n", &[]).await;
    let names: Vec<String> = (0..10).map(|number| format!("{number}-tiny")).collect();
    for name in &names {
        hive.import(name).await;
    }
    let outcomes = join_all(names.iter().map(|name| hive.start_worker(name))).await;
    let (started, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((started.len(), refused.len()), (2, 8));
    for refusal in refused {
        assert_eq!(refusal.unwrap_err().code, ErrorCode::WorkerLimitReached);
    }
    eventually("two processes", LIMIT, async || {
        (working_in(&hive.home()).len() == 2).then_some(())
    })
    .await;
    let crashes = started.into_iter().next().unwrap().unwrap();
    let ready = hive.worker_in(crashes.id.as_str(), WorkerState::Ready).await;
    signal(ready.pid.unwrap(), Signal::KILL);
    let again = eventually("the place is free", LIMIT, async || {
        let again = hive.start_worker(crashes.model_ref.as_str()).await.ok()?;
        (again.pid != ready.pid && again.state != WorkerState::Failed).then_some(again)
    })
    .await;
    hive.worker_in(again.id.as_str(), WorkerState::Ready).await;
    assert_eq!(working_in(&hive.home()).len(), 2);
}

#[tokio::test]
async fn an_idle_worker_makes_room_for_another_model_and_one_that_answers_does_not() {
    let hive = Place::new().start_with("workers_max = 1\n", &[]).await;
    let first = hive.ready_worker("tiny").await;
    hive.import("second").await;
    let mut stream =
        Chat::begin(&hive.client, first.id.as_str(), "[[tokens=20 delay_ms=25]] x").await.unwrap();
    stream.more().await;
    let refusal = hive.start_worker("second").await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::WorkerLimitReached);
    assert_eq!(stream.rest().await.last().unwrap(), "[DONE]");
    let second =
        eventually("there is room", LIMIT, async || hive.start_worker("second").await.ok());
    let second = second.await;
    assert_eq!(hive.worker(first.id.as_str()).await, None);
    hive.worker_in(second.id.as_str(), WorkerState::Ready).await;
    assert_eq!(working_in(&hive.home()).len(), 1);
}

#[tokio::test]
async fn a_hive_may_be_told_to_leave_idle_workers_alone() {
    let config = "workers_max = 1\nstop_idle_for_room = false\n";
    let hive = Place::new().start_with(config, &[]).await;
    let first = hive.ready_worker("tiny").await;
    hive.chat(first.id.as_str(), "hello").await.unwrap();
    hive.import("second").await;
    let refusal = hive.start_worker("second").await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::WorkerLimitReached);
    hive.worker_in(first.id.as_str(), WorkerState::Ready).await;
}

#[tokio::test]
async fn what_the_machine_has_is_told_and_changes_with_its_workers() {
    let hive = Place::new().start_with("workers_max = 3\n", &[]).await;
    let before = hive.metrics().await;
    assert_eq!(value(&before, "rbee_hive_workers_max"), 3.0);
    assert_eq!(value(&before, "rbee_hive_memory_reserved_bytes"), 0.0);
    let gauge = |name: &str| value(&before, &format!("rbee_hive_{name}_bytes"));
    for kind in ["memory", "disk"] {
        let total = gauge(&format!("{kind}_total"));
        let parts = gauge(&format!("{kind}_available")) + gauge(&format!("{kind}_used"));
        assert!(total > 0.0 && parts <= total, "{kind}: {parts} of {total}\n{before}");
    }
    let told = resources(&hive).await;
    assert!(told.disk_total_bytes > told.disk_available_bytes);
    let has_vram = told.vram_total_bytes.is_some();
    assert_eq!(before.contains("rbee_hive_vram_total_bytes"), has_vram, "absent, not zero");
    // Its worker takes nothing of what it is granted.
    let hive = hive_with("read secrets; sleep 1000", "").await;
    hive.start_worker("tiny").await.unwrap();
    assert!(value(&hive.metrics().await, "rbee_hive_memory_reserved_bytes") > 0.0);
}
