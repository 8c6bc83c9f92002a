//! How many threads to compute with: the physical cores that this process may
//! use. Two hyper-threads of one core share the units that multiply, so more
//! threads than cores only get in each other's way.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Where Linux describes the processors.
const CPU_DIRECTORY: &str = "/sys/devices/system/cpu";

/// Returns the number of threads to compute with, at least one.
pub(crate) fn compute_threads() -> u32 {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let threads =
        physical_cores(Path::new(CPU_DIRECTORY)).map_or(usable, |cores| cores.min(usable));
    u32::try_from(threads.max(1)).unwrap_or(u32::MAX)
}

/// Counts groups of hyper-threads; `None` where the directory does not tell.
fn physical_cores(directory: &Path) -> Option<usize> {
    let mut cores = BTreeSet::new();
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
        if number.is_none_or(|number| number.parse::<u32>().is_err()) {
            continue;
        }
        // A processor that is off line has no topology.
        if let Ok(siblings) = fs::read_to_string(entry.path().join("topology/thread_siblings_list"))
        {
            cores.insert(siblings);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_count_as_one_core() {
        let directory = tempfile::tempdir().unwrap();
        for (cpu, siblings) in
            [("cpu0", "0,2"), ("cpu1", "1,3"), ("cpu2", "0,2"), ("cpu3", "1,3"), ("cpufreq", "x")]
        {
            let topology = directory.path().join(cpu).join("topology");
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("thread_siblings_list"), siblings).unwrap();
        }
        assert_eq!(physical_cores(directory.path()), Some(2));
        assert_eq!(physical_cores(&directory.path().join("cpu0")), None);
        assert!(compute_threads() >= 1);
    }
}
