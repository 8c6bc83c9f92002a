//! Starts that go wrong by themselves: two of one kind at once, a machine that was
//! started anew in between, everything gone at one stroke.

use std::process::{Command, Stdio};
use std::time::SystemTime;

use e2e::wait_until;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::agreement::{assert_agreement, assert_nothing_left};
use crate::ledger;
use crate::site::{Daemon, LIMIT, Site, pid_of, signal_to};
use crate::volume;

/// What a daemon ends with that another one was faster than.
const TRY_AGAIN: i32 = 75;

#[test]
fn of_hives_that_start_at_once_on_one_home_one_serves() {
    let site = Site::new();
    for _ in 0..volume::of(4, 100) {
        let mut hives: Vec<Daemon> = (0..4).map(|_| site.launch("rbee-hive", &[])).collect();
        wait_until("all but one have given way", LIMIT, || {
            hives.iter_mut().filter_map(Daemon::ended).count() == 3
        });
        let codes: Vec<i32> =
            hives.iter_mut().filter_map(Daemon::ended).filter_map(|s| s.code()).collect();
        assert_eq!(codes, [TRY_AGAIN; 3]);
        let alive = site.living("rbee-hive");
        assert_eq!(alive.len(), 1, "{alive:?}");
        wait_until("it serves", LIMIT, || site.serves("hive", alive[0].pid));
        signal_to(alive[0].pid, Signal::TERM);
        for mut hive in hives {
            hive.wait("the hive ends", LIMIT);
        }
    }
    assert_nothing_left(&site, "after the races");
}

#[test]
fn a_second_hive_leaves_the_first_one_and_its_workers_alone() {
    let site = Site::new();
    let mut first = site.hive();
    site.import("tiny", 1);
    let worker = site.ready_worker("tiny");
    let mut second = site.launch("rbee-hive", &[]);
    assert_eq!(second.wait("the second gives way", LIMIT).code(), Some(TRY_AGAIN));
    assert!(first.ended().is_none());
    assert_eq!(pid_of(&site.ready_worker("tiny")), pid_of(&worker));
    assert!(site.log("rbee-hive").contains("already runs"), "{}", site.log("rbee-hive"));
}

#[test]
fn rows_from_before_the_machine_was_started_anew_mean_nobody() {
    let site = Site::new();
    let mut hive = site.hive();
    site.import("tiny", 1);
    site.ready_worker("tiny");
    hive.kill();
    for process in site.living("llm-worker-rbee") {
        process.signal(Signal::KILL);
    }
    wait_until("the worker is gone", LIMIT, || site.living("llm-worker-rbee").is_empty());
    // Now an innocent process has all that the row says, but for the boot.
    let mut innocent = Innocent::new();
    innocent.take_place(&site, "00000000-0000-0000-0000-000000000000");
    let mut hive = site.hive();
    assert_eq!(ledger::rows(&site.cluster.home()), []);
    hive.signal(Signal::TERM);
    hive.wait("the hive ends", LIMIT);
    assert_eq!(innocent.waiting_signals(), "0000000000000000");
    // With the boot in the row too it is a worker for all that the hive can know: what
    // was tried above was the boot and nothing else.
    let mut hive = site.hive();
    site.ready_worker("tiny");
    hive.kill();
    innocent.take_place(&site, "");
    let mut hive = site.hive();
    assert_eq!(ledger::rows(&site.cluster.home()).len(), 1, "the row is believed");
    hive.kill();
}

#[test]
fn everything_killed_at_one_stroke_starts_again_as_it_was() {
    let site = Site::new();
    let mut random = fastrand::Rng::with_seed(3);
    site.cluster.import_tiny("tiny");
    for round in 0..volume::of(4, 60) {
        let mut keeper = site.launch_with("rbee", &["infer", "-m", "tiny", "-p", "x"], &[]);
        let (start, moment) = (SystemTime::now(), random.u128(0..200));
        wait_until("the moment", LIMIT, || start.elapsed().is_ok_and(|t| t.as_millis() >= moment));
        // A machine that loses power: nobody can react to the end of another.
        while !site.cluster.processes().is_empty() {
            site.cluster.processes().iter().for_each(|process| process.signal(Signal::KILL));
            keeper.ended();
        }
        let said = site.cluster.rbee(&["infer", "-m", "tiny", "-p", "again"]);
        assert_eq!(said.stdout.trim(), "again", "round {round}, after {moment} ms: {said:?}");
        assert_agreement(&site, &format!("round {round}, after {moment} ms"));
    }
}

/// A process that has nothing to do with us and keeps every signal it is sent.
struct Innocent {
    child: std::process::Child,
}

impl Innocent {
    #[expect(clippy::disallowed_methods, reason = "tests start the injector")]
    fn new() -> Self {
        let mut command = Command::new("env");
        command.args(["--block-signal", "sleep", "1000"]).stdin(Stdio::null());
        let innocent = Self { child: command.spawn().expect("env") };
        wait_until("it is what it is to be", LIMIT, || innocent.status("Name") == "sleep");
        innocent
    }

    fn status(&self, field: &str) -> String {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_default().trim().to_owned()
    }

    fn waiting_signals(&self) -> String {
        assert!(self.status("State").starts_with('S'), "{}", self.status("State"));
        self.status("ShdPnd")
    }

    /// Puts this process into the one row of the ledger; an empty boot stays what it is.
    fn take_place(&mut self, site: &Site, boot: &str) {
        let number = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        let pidfd = pidfd_open(number, PidfdFlags::empty()).expect("a process");
        let inode = rustix::fs::fstat(&pidfd).expect("a descriptor").st_ino.cast_signed();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("a process");
        let (_, fields) = stat.rsplit_once(") ").expect("a line");
        let ticks: i64 = fields.split(' ').nth(19).and_then(|t| t.parse().ok()).expect("a time");
        let sql = "UPDATE worker SET pid = ?1, start_ticks = ?2, inode = ?3,
                   boot_id = CASE ?4 WHEN '' THEN boot_id ELSE ?4 END";
        let row = (self.child.id(), ticks, inode, boot);
        assert_eq!(ledger::open(&site.cluster.home()).execute(sql, row).expect("a row"), 1);
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
