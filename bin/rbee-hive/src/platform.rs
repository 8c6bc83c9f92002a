//! What the machine has, as Linux tells it in `/proc` and `/sys`. Where those are missing the answer is that nothing is
//! known: `None`, and never a guess.

mod process;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::thread::available_parallelism;

pub(crate) use process::{ProcessHandle, ProcessIdentity};

/// How much sooner a worker is ended than its hive, in thousandths of the machine's memory: a daemon would have to hold
/// half of it more than the worker to be ended first.
const OOM_SCORE_ABOVE: i32 = 500;
/// The largest score there is.
const OOM_SCORE_MAX: i32 = 1000;

/// The machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) total_bytes: u64,
    /// What new work could take without swapping, as the kernel estimates it.
    pub(crate) available_bytes: u64,
}

/// Reads the machine's memory (`/proc/meminfo`).
pub(crate) fn memory() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some(Memory {
        total_bytes: kib_field(&text, "MemTotal:")?,
        available_bytes: kib_field(&text, "MemAvailable:")?,
    })
}

/// Reads how much memory of its own a process holds (`RssAnon` in `/proc/<pid>/status`): what it holds of a mapped
/// model file is not in it, because the kernel counts that as available.
pub(crate) fn anonymous_bytes(pid: u32) -> Option<u64> {
    kib_field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "RssAnon:")
}

/// Has the kernel end a process of this user before this one when the machine's memory runs out. A process that has
/// started others since keeps them as they were.
///
/// # Errors
/// The operating system's.
pub(crate) fn end_sooner_than_this(pid: u32) -> io::Result<()> {
    let own = fs::read_to_string("/proc/self/oom_score_adj")?;
    // The text is a number from -1000 to 1000.
    let own: i32 = own.trim().parse().unwrap_or(0);
    let score = own.saturating_add(OOM_SCORE_ABOVE).min(OOM_SCORE_MAX);
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

/// Reads how many processes of this machine the kernel has killed because memory was short, in all of it or in a control
/// group (`oom_kill` in `/proc/vmstat`).
pub(crate) fn oom_kills() -> Option<u64> {
    let text = fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

fn kib_field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Returns the processors this process may use; at least 1.
pub(crate) fn processors() -> u32 {
    available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// Returns the physical cores this process may use; at least 1. Two threads of one core compute no faster than one.
pub(crate) fn physical_cores() -> u32 {
    let threads_of_cores: BTreeSet<String> = fs::read_dir("/sys/devices/system/cpu")
        .into_iter()
        .flatten()
        .filter_map(|cpu| {
            fs::read_to_string(cpu.ok()?.path().join("topology/thread_siblings_list")).ok()
        })
        .collect();
    match u32::try_from(threads_of_cores.len()) {
        Ok(0) | Err(_) => processors(),
        Ok(cores) => cores.min(processors()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_bytes_and_by_their_whole_name() {
        let text = "MemTotal:       2048 kB\nMemAvailable:    1024 kB\nSwapTotal: 1 MB\n";
        assert_eq!(kib_field(text, "MemTotal:"), Some(2048 * 1024));
        assert_eq!(kib_field(text, "Total:"), None);
        assert_eq!(kib_field(text, "SwapTotal:"), None);
        assert_eq!(kib_field("MemTotal: 99999999999999999 kB", "MemTotal:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_and_this_process_have_figures() {
        let memory = memory().unwrap();
        assert!(memory.total_bytes > memory.available_bytes && memory.available_bytes > 0);
        assert!(oom_kills().is_some());
        assert!(anonymous_bytes(std::process::id()).unwrap() > 0);
        assert!((1..=processors()).contains(&physical_cores()));
    }
}
