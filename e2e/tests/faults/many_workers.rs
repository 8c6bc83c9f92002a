//! A hive with as many workers as it may have: taken over whole after a crash, and
//! cheap to look after.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use e2e::wait_until;

use crate::agreement::assert_agreement;
use crate::figures::{Holds, processor_time};
use crate::site::{Daemon, LIMIT, QUEEN, Site, is_ready, pid_of};
use crate::volume;

/// Within this the workers have to be adopted; twice the goal, for a machine that does
/// something else too.
const ADOPTED: Duration = Duration::from_secs(4);
/// How long an idle hive is watched: two heartbeats of each worker.
const WATCHED: Duration = Duration::from_secs(60);
/// Largest share of a core, in thousandths: twice the goal.
const CORE_PER_MILLE_MAX: u128 = 10;
/// Most memory: half more than the goal.
const MEMORY_KIB_MAX: u64 = 60 * 1024;

/// A hive with default contacts and so many ready workers.
fn with_workers(count: u8) -> (Site, Daemon) {
    let site =
        Site::with("idle_stop_seconds = 0\nworkers_max = 64\n[worker]\ncache_ram_mib = 0\n", QUEEN);
    let hive = site.hive();
    for model in 0..count {
        site.import(&format!("m{model}"), model);
        site.ask_for_worker(&format!("m{model}")).expect("a worker");
    }
    wait_until("all workers are ready", LIMIT, || ready(&site).len() == usize::from(count));
    (site, hive)
}

/// Returns the pids of the ready workers by their ids.
fn ready(site: &Site) -> BTreeMap<String, u32> {
    let listed = site.listed().unwrap_or_default();
    let named = |worker: &serde_json::Value| {
        (worker["id"].as_str().expect("an id").to_owned(), pid_of(worker))
    };
    listed.iter().filter(|worker| is_ready(worker)).map(named).collect()
}

#[test]
fn all_workers_of_a_killed_hive_are_adopted_at_once_as_they_were() {
    let count = volume::of(16, 64);
    let (site, mut hive) = with_workers(count);
    let before = ready(&site);
    for _ in 0..volume::of(1, 10) {
        hive.kill();
        let start = SystemTime::now();
        hive = site.hive();
        wait_until("all workers are adopted", ADOPTED, || ready(&site).len() == before.len());
        let took = start.elapsed().expect("a clock");
        volume::figure(&format!("{count} workers adopted, ms"), took.as_millis());
        assert_eq!(ready(&site), before, "the same workers in the same processes");
        assert!(took < ADOPTED, "{took:?}");
    }
    assert_agreement(&site, "after the adoptions");
}

#[test]
fn a_hive_looks_after_idle_workers_for_next_to_nothing() {
    if !volume::is_full() {
        volume::not_run("the cost of 64 idle workers", "it takes a minute; `make faults` has it");
        return;
    }
    let (_site, hive) = with_workers(64);
    let (start, before) = (SystemTime::now(), processor_time(hive.pid()));
    wait_until("the time is over", WATCHED * 2, || start.elapsed().is_ok_and(|t| t >= WATCHED));
    let taken = processor_time(hive.pid()).saturating_sub(before);
    let per_mille = taken.as_millis() * 1000 / WATCHED.as_millis();
    let memory_kib = Holds::of(hive.pid()).expect("a hive").memory_kib;
    volume::figure("64 idle workers: thousandths of a core", per_mille);
    volume::figure("64 idle workers: MiB of the hive", memory_kib / 1024);
    assert!(per_mille <= CORE_PER_MILLE_MAX, "{per_mille} thousandths of a core");
    assert!(memory_kib <= MEMORY_KIB_MAX, "{memory_kib} KiB");
}
