//! What a process holds and takes, as the kernel counts it, and how measured times spread.

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

/// The middle, a high and the largest of measured times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread {
    pub(crate) median: Duration,
    /// So many of a hundred are not above it, as asked.
    pub(crate) high: Duration,
    pub(crate) max: Duration,
}

impl Spread {
    /// Takes some times and a share in percent; 0 where there are none.
    pub(crate) fn of(times: &[Duration], percent: usize) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort();
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { median: at(50), high: at(percent), max: at(100) }
    }

    /// Says all three in milliseconds.
    pub(crate) fn in_ms(self) -> String {
        let [median, high, max] = [self.median, self.high, self.max].map(|time| time.as_millis());
        format!("{median} / {high} / {max} ms")
    }
}

#[test]
fn a_percentile_is_a_measured_value_that_so_many_do_not_exceed() {
    let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
    assert_eq!(Spread::of(&times, 95).in_ms(), "50 / 95 / 100 ms");
    assert_eq!(Spread::of(&times[..10], 99).in_ms(), "95 / 100 / 100 ms");
}
