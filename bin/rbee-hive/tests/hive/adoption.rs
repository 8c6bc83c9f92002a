//! A hive that takes over from one that was killed: which workers it goes on with, which it ends, and whom it leaves alone.

use std::process::{Child, Command};
use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::worker::{WorkerInfo, WorkerState};
use rusqlite::Connection;
use rustix::process::Signal;

use crate::fake_worker;
use crate::processes::{eventually, is_alive, signal, working_in};
use crate::program::{Hive, LIMIT, Place};

/// How late all workers of the former hive may be there again.
const ADOPTED: Duration = Duration::from_secs(2);
/// How late the hive may know that a worker is gone.
const KNOWN: Duration = Duration::from_millis(500);

/// A place whose hive was killed beside a ready worker.
async fn left_behind() -> (Place, WorkerInfo) {
    let hive = Place::new().start().await;
    let worker = hive.ready_worker("tiny").await;
    let place = hive.kill();
    assert!(is_alive(worker.pid.unwrap()), "a worker outlives its hive");
    (place, worker)
}

fn ledger(place: &Place) -> Connection {
    Connection::open(place.home().join("workers.db")).unwrap()
}

fn rows(hive: &Hive) -> u32 {
    ledger(hive.place()).query_row("SELECT COUNT(*) FROM worker", [], |row| row.get(0)).unwrap()
}

async fn wait_gone(pid: u32) {
    eventually("the worker has ended", LIMIT, async || (!is_alive(pid)).then_some(())).await;
}

#[tokio::test]
async fn the_next_hive_goes_on_with_the_same_workers_and_ends_them_when_asked() {
    let (place, worker) = left_behind().await;
    let id = worker.id.as_str();
    let mut hive = place.start().await;
    let adopted = eventually("the worker is adopted", ADOPTED, || async {
        hive.worker(id).await.filter(|worker| worker.state == WorkerState::Ready)
    })
    .await;
    assert_eq!((adopted.pid, adopted.started_at_ms), (worker.pid, worker.started_at_ms));
    assert_eq!(
        (adopted.slots_total, adopted.alias, adopted.device),
        (worker.slots_total, worker.alias, worker.device)
    );
    let reply = hive.chat(id, "hello").await.unwrap();
    assert_eq!(reply["choices"][0]["message"]["content"], "hello");
    assert_eq!(
        hive.start_worker("tiny").await.unwrap().id.as_str(),
        id,
        "none is started beside it"
    );
    signal(hive.pid(), Signal::TERM);
    assert_eq!(hive.ended(Duration::from_secs(5)).await.code(), Some(0));
    assert_eq!((working_in(&hive.home()), rows(&hive)), (vec![], 0));
}

#[tokio::test]
async fn a_second_crash_changes_nothing() {
    let (mut place, worker) = left_behind().await;
    for _ in 0..3 {
        let hive = place.start().await;
        hive.worker_in(worker.id.as_str(), WorkerState::Ready).await;
        place = hive.kill();
    }
    let hive = place.start().await;
    hive.worker_in(worker.id.as_str(), WorkerState::Ready).await;
    hive.stop_worker(worker.id.as_str()).await.unwrap();
    assert_eq!((working_in(&hive.home()), rows(&hive)), (vec![], 0));
}

#[tokio::test]
async fn the_death_of_an_adopted_worker_is_known_at_once() {
    let (place, worker) = left_behind().await;
    let hive = place.start().await;
    let id = worker.id.as_str();
    hive.worker_in(id, WorkerState::Ready).await;
    signal(worker.pid.unwrap(), Signal::KILL);
    let failed = eventually("the worker has failed", KNOWN, || async {
        hive.worker(id).await.filter(|worker| worker.state == WorkerState::Failed)
    })
    .await;
    assert_eq!(failed.failure.unwrap().code, ErrorCode::WorkerFailed);
    assert_eq!(rows(&hive), 0);
    let next = hive.start_worker("tiny").await.unwrap();
    hive.worker_in(next.id.as_str(), WorkerState::Ready).await;
}

#[tokio::test]
async fn a_worker_that_died_meanwhile_is_gone_and_another_can_start() {
    let (place, worker) = left_behind().await;
    signal(worker.pid.unwrap(), Signal::KILL);
    wait_gone(worker.pid.unwrap()).await;
    let hive = place.start().await;
    assert_eq!((hive.workers().await.len(), rows(&hive)), (0, 0));
    let next = hive.start_worker("tiny").await.unwrap();
    hive.worker_in(next.id.as_str(), WorkerState::Ready).await;
}

/// A place whose hive was killed beside a worker that is a script.
async fn left_with_script(script: &str, until: WorkerState) -> (Place, Vec<String>, u32) {
    let place = Place::new();
    let flags = fake_worker::flags(&place, script);
    let arguments: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with("stop_grace_seconds = 13\n", &arguments).await;
    hive.import("tiny").await;
    let worker = hive.start_worker("tiny").await.unwrap();
    if until == WorkerState::Stopping {
        let path = format!("/api/v1/workers/{}", worker.id);
        let (client, id) = (hive.client.clone(), worker.id.clone());
        tokio::spawn(async move {
            let limit = deadline_propagation::Deadline::after(Duration::from_millis(100));
            // It takes longer than that: the answer does not matter.
            client.delete::<serde_json::Value>(&path, limit).await.ok();
        });
        hive.worker_in(id.as_str(), WorkerState::Stopping).await;
        eventually("the end is written down", LIMIT, async || {
            let stopping: u32 = ledger(hive.place())
                .query_row("SELECT COUNT(*) FROM worker WHERE is_stopping", [], |row| row.get(0))
                .unwrap();
            (stopping == 1).then_some(())
        })
        .await;
    }
    (hive.kill(), flags, worker.pid.unwrap_or_default())
}

#[tokio::test]
async fn a_worker_that_still_loads_has_the_time_that_any_has() {
    let (place, flags, pid) = left_with_script("exec sleep 1000", WorkerState::Starting).await;
    let arguments: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with("load_timeout_seconds = 1\n", &arguments).await;
    assert_eq!(hive.workers().await[0].state, WorkerState::Starting);
    wait_gone(pid).await;
    eventually("the failure is told", LIMIT, async || {
        (hive.workers().await.first()?.failure.as_ref()?.code == ErrorCode::WorkerStartFailed)
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_dies_before_it_answers_makes_room_for_another() {
    let (place, flags, pid) = left_with_script("exec sleep 1000", WorkerState::Starting).await;
    let arguments: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with("", &arguments).await;
    assert_eq!(hive.workers().await.len(), 1);
    signal(pid, Signal::KILL);
    eventually("its row is gone", LIMIT, async || {
        (hive.workers().await.is_empty() && rows(&hive) == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_end_that_was_begun_is_finished() {
    let script = "trap '' TERM INT HUP\nwhile :; do sleep 0.1; done";
    let (place, flags, pid) = left_with_script(script, WorkerState::Stopping).await;
    assert!(is_alive(pid));
    let arguments: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with("stop_grace_seconds = 1\n", &arguments).await;
    wait_gone(pid).await;
    eventually("its row is gone", LIMIT, async || (rows(&hive) == 0).then_some(())).await;
    assert_eq!(hive.workers().await.len(), 0);
}

#[expect(clippy::disallowed_methods, reason = "the stranger is a process of the test's own")]
fn stranger() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

/// What the ledger says is set so that the number of the worker's process is that of a stranger, as after the kernel
/// has given it out again; to the tick as old, where `ticks`, and without an inode where `no_inode`.
async fn number_of_a_stranger(ticks: bool, no_inode: bool) {
    let (place, worker) = left_behind().await;
    let mut innocent = stranger();
    let connection = ledger(&place);
    connection.execute("UPDATE worker SET pid = ?1", [innocent.id()]).unwrap();
    if ticks {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", innocent.id())).unwrap();
        let start: i64 =
            stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
        connection.execute("UPDATE worker SET start_ticks = ?1", [start]).unwrap();
    }
    if no_inode {
        connection.execute("UPDATE worker SET inode = NULL", []).unwrap();
    }
    connection.execute("UPDATE worker SET is_stopping = 1", []).unwrap();
    let hive =
        place.start_with("stop_grace_seconds = 1\nheartbeat_interval_seconds = 1\n", &[]).await;
    assert_eq!((hive.workers().await.len(), rows(&hive)), (0, 0));
    signal(worker.pid.unwrap(), Signal::KILL);
    wait_gone(worker.pid.unwrap()).await;
    drop(hive);
    assert!(innocent.try_wait().unwrap().is_none(), "nobody has signalled it");
    innocent.kill().unwrap();
    innocent.wait().unwrap();
}

#[tokio::test]
async fn a_stranger_with_the_number_of_a_worker_is_left_alone() {
    number_of_a_stranger(false, false).await;
    number_of_a_stranger(true, false).await;
    number_of_a_stranger(true, true).await;
}

#[tokio::test]
async fn after_a_restart_of_the_machine_nothing_is_taken_over() {
    let (place, worker) = left_behind().await;
    ledger(&place).execute("UPDATE worker SET boot_id = 'another'", []).unwrap();
    let hive = place.start().await;
    assert_eq!((hive.workers().await.len(), rows(&hive)), (0, 0));
    assert!(is_alive(worker.pid.unwrap()));
}

#[tokio::test]
async fn a_worker_that_was_not_yet_written_down_with_its_process_is_struck_out() {
    let place = Place::new();
    let hive = place.start().await;
    let place = hive.kill();
    ledger(&place)
        .execute(
            "INSERT INTO worker (id, model_ref, backend, memory_bytes, started_at_ms)
             VALUES ('w-1', 'file:/m.gguf', 'echo', 1, 1)",
            [],
        )
        .unwrap();
    let hive = place.start().await;
    assert_eq!((hive.workers().await.len(), rows(&hive)), (0, 0));
}

#[tokio::test]
async fn without_its_ledger_a_hive_works_and_the_workers_it_does_not_know_end() {
    let config = "heartbeat_interval_seconds = 1\n";
    let hive = Place::new().start_with(config, &[]).await;
    let old = hive.ready_worker("tiny").await;
    let address = hive.address().to_string();
    let place = hive.kill();
    for suffix in ["-wal", "-shm", ""] {
        std::fs::remove_file(place.home().join(format!("workers.db{suffix}"))).ok();
    }
    std::fs::write(place.home().join("workers.db"), "this is no database, whatever its name says")
        .unwrap();
    let hive = place.start_with(config, &["--bind", &address]).await;
    assert_eq!(hive.workers().await.len(), 0);
    let new = hive.start_worker("tiny").await.unwrap();
    let new = hive.worker_in(new.id.as_str(), WorkerState::Ready).await;
    hive.chat(new.id.as_str(), "hello").await.unwrap();
    wait_gone(old.pid.unwrap()).await;
    assert!(is_alive(new.pid.unwrap()), "the new one has not");
}
