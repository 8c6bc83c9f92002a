//! Who breaks things in the soak: kills, stops and halts programs at random, and starts the queen
//! again, as a service manager does. Keeps count of its deeds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use e2e::{Process, wait_until};
use rustix::process::Signal;

use crate::figures::Holds;
use crate::requests::{CONTINUED, metric};
use crate::site::{Daemon, LIMIT, Site};

/// Whom it may kill; it stops and wakes everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Everybody,
    Workers,
}

pub(crate) struct Nemesis<'a> {
    pub(crate) site: &'a Site,
    pub(crate) random: fastrand::Rng,
    pub(crate) deeds: BTreeMap<String, u32>,
    /// Streams that went on, as queens counted them who have ended.
    continued: f64,
    queen: Daemon,
}

impl<'a> Nemesis<'a> {
    /// Starts a cluster to break.
    pub(crate) fn new(site: &'a Site, seed: u64) -> Self {
        let queen = site.queen();
        let random = fastrand::Rng::with_seed(seed);
        Self { site, random, deeds: BTreeMap::new(), continued: 0.0, queen }
    }

    /// Does one thing and rests a while. `queens` is odd while there is none, and never
    /// the same before and after one was killed.
    pub(crate) fn act(&mut self, reach: Reach, queens: &AtomicU64) {
        match self.random.u8(0..13) {
            0..4 => self.kill_one_of("llm-worker-rbee"),
            4 | 5 => self.stop_for_a_while("llm-worker-rbee"),
            6 => self.stop_for_a_while("rbee-hive"),
            7 => self.stop_for_a_while("queen-rbee"),
            8 => self.halt_a_worker(),
            9 if reach == Reach::Everybody => self.kill_one_of("rbee-hive"),
            10 if reach == Reach::Everybody => {
                self.note("killed queen-rbee");
                queens.fetch_add(1, Ordering::SeqCst);
                self.continued += continued(self.site);
                self.queen.kill();
                self.queen = self.site.queen();
                queens.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
        pass(Duration::from_millis(self.random.u64(50..1500)));
    }

    fn choose(&mut self, program: &str) -> Option<Process> {
        let living = self.site.living(program);
        let at = self.random.usize(0..living.len().max(1));
        living.get(at).cloned()
    }

    fn kill_one_of(&mut self, program: &str) {
        if let Some(process) = self.choose(program) {
            process.signal(Signal::KILL);
            self.note(&format!("killed {program}"));
        }
    }

    fn stop_for_a_while(&mut self, program: &str) {
        if let Some(process) = self.choose(program) {
            process.signal(Signal::STOP);
            pass(Duration::from_millis(self.random.u64(50..1200)));
            // It may have been killed meanwhile; its number is hardly another's within a second.
            let is_still_it = self.site.living(program).iter().any(|p| p.pid == process.pid);
            if is_still_it {
                process.signal(Signal::CONT);
            }
            self.note(&format!("stopped {program}"));
        }
    }

    /// Stops a worker that nobody wakes again but by killing it.
    fn halt_a_worker(&mut self) {
        if let Some(process) = self.choose("llm-worker-rbee") {
            process.signal(Signal::STOP);
            self.note("halted llm-worker-rbee");
        }
    }

    /// Returns how many streams went on at another worker; a queen has to serve.
    pub(crate) fn continued(&self) -> f64 {
        self.continued + continued(self.site)
    }

    fn note(&mut self, deed: &str) {
        *self.deeds.entry(deed.to_owned()).or_default() += 1;
    }

    /// Returns the daemons and what they hold.
    pub(crate) fn daemons(&self) -> Vec<(u32, Holds)> {
        let hive = self.site.living("rbee-hive").first().expect("a hive").pid;
        [self.queen.pid(), hive].map(|pid| (pid, Holds::of(pid).expect("a daemon"))).to_vec()
    }

    pub(crate) fn name_of(&self, pid: u32) -> &'static str {
        if pid == self.queen.pid() { "queen-rbee" } else { "rbee-hive" }
    }
}

/// Returns how many streams went on, as this queen counts them; 0 when she does not answer.
fn continued(site: &Site) -> f64 {
    let text = site.try_to_queen().and_then(|queen| queen.try_call("GET", "/metrics", None));
    text.map_or(0.0, |text| metric(&text.body, CONTINUED))
}

/// Tells clients to stop, also when the test has failed meanwhile.
pub(crate) struct StopAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Lets time go by.
pub(crate) fn pass(time: Duration) {
    let start = SystemTime::now();
    wait_until("time goes by", time * 2 + LIMIT, || start.elapsed().is_ok_and(|t| t >= time));
}
