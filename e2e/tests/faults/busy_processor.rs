//! A processor that has far more to do than it can: nobody is taken for dead, and requests
//! are answered.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use e2e::wait_until;
use serde_json::Value;

use crate::requests::{Ending, Manner, ask};
use crate::site::{LIMIT, Site};
use crate::volume;

const ROW: &str = "a processor that is too busy";
/// Others that want the one processor that all programs share with them.
const SPINNERS: usize = 64;

/// Processes that compute for nothing.
struct Spinners(Vec<Child>);

impl Spinners {
    #[expect(clippy::disallowed_methods, reason = "tests start the injector")]
    fn on(processor: &str) -> Self {
        let start = |_| {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", processor, "/bin/sh", "-c", "while :; do :; done"]);
            command.stdin(Stdio::null()).spawn().expect("taskset")
        };
        Self((0..SPINNERS).map(start).collect())
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for spinner in &mut self.0 {
            spinner.kill().ok();
        }
        for spinner in &mut self.0 {
            spinner.wait().ok();
        }
    }
}

/// Returns the last of the processors that this test may use.
fn last_processor() -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let list = list.expect("a list").trim();
    list.rsplit([',', '-']).next().expect("a processor").to_owned()
}

#[test]
fn on_a_processor_that_is_too_busy_nobody_is_taken_for_dead() {
    let processor = last_processor();
    let site = Site::new();
    let wrapper = ["taskset", "--cpu-list", &processor].map(str::to_owned);
    let mut queen = site.launch("queen-rbee", &wrapper);
    wait_until("the queen serves", LIMIT, || site.serves("queen", queen.pid()));
    site.cluster.import_tiny("tiny");
    assert_eq!(site.cluster.rbee(&["infer", "-m", "tiny", "-p", "one"]).ok().trim(), "one");
    let pids = || site.cluster.processes().iter().map(|process| process.pid).collect::<Vec<_>>();
    let before = pids();
    let spinners = Spinners::on(&processor);
    let (start, long) = (SystemTime::now(), Duration::from_secs(volume::of(10, 120)));
    let (mut answered, mut suspected, mut slowest) = (0, 0, Duration::ZERO);
    while start.elapsed().is_ok_and(|passed| passed < long) {
        let asked = SystemTime::now();
        let ending = ask(&site, "tiny", Manner::Whole, 3, Duration::from_millis(1));
        assert_eq!(ending, Ending::Done, "after {answered} requests");
        slowest = slowest.max(asked.elapsed().unwrap_or_default());
        answered += 1;
        let state = state_of_hive(&site);
        assert_ne!(state, "stale", "after {:?}", start.elapsed());
        suspected += usize::from(state != "online");
        assert_eq!(pids(), before, "nobody is killed or started");
    }
    drop(spinners);
    volume::figure(
        ROW,
        format!(
            "{answered} requests answered, the slowest in {slowest:?}, suspected {suspected} times"
        ),
    );
    assert!(queen.ended().is_none());
    wait_until("the hive is online", LIMIT, || state_of_hive(&site) == "online");
    let metrics = site.to_hive().get("/metrics").body;
    for cause in ["stale", "hung"] {
        let label = format!("cause=\"{cause}\"");
        let killed = metrics
            .lines()
            .find(|line| line.starts_with("rbee_hive_worker_exits_total") && line.contains(&label));
        assert_eq!(killed, None);
    }
}

fn state_of_hive(site: &Site) -> Value {
    site.to_queen().get("/api/v1/hives").json()["hives"][0]["state"].clone()
}
