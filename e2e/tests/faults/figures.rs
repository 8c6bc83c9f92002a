//! What a process holds and takes, as the kernel counts it.

use std::fs;
use std::time::Duration;

/// The kernel counts processor time in hundredths of a second.
const TICKS_PER_SECOND: u64 = 100;

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holds {
    pub(crate) descriptors: usize,
    pub(crate) threads: usize,
    pub(crate) memory_kib: u64,
}

impl Holds {
    /// Looks at a process; `None` when it is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let count =
            |folder: &str| Some(fs::read_dir(format!("/proc/{pid}/{folder}")).ok()?.count());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let memory_kib = memory.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Self { descriptors: count("fd")?, threads: count("task")?, memory_kib })
    }
}

/// Returns the processor time that a process has taken.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let (_, fields) = stat.rsplit_once(") ").expect("a line");
    let ticks = |at: usize| fields.split(' ').nth(at).and_then(|t| t.parse::<u64>().ok());
    let sum = ticks(11).zip(ticks(12)).map(|(user, system)| user + system).expect("times");
    Duration::from_millis(sum * 1000 / TICKS_PER_SECOND)
}
