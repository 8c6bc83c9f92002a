//! Logs whose daemon is gone for good, as those of workers are: removed when they are old, or too many.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::error::AuditError;

/// Logs kept of daemons that are gone; a worker's takes some kilobytes.
const LOGS_KEPT: usize = 1000;

/// Removes the logs below `directory` that nobody has written for longer than `age_max`, and the oldest of those beyond
/// a thousand; never those that `is_living` names. Returns how many.
///
/// # Errors
/// [`AuditError::Io`].
pub fn remove_old_logs(
    directory: &Path,
    age_max: Duration,
    is_living: impl Fn(&str) -> bool,
) -> Result<u64, AuditError> {
    remove(directory, age_max, LOGS_KEPT, is_living).map_err(AuditError::io("clear", directory))
}

fn remove(
    directory: &Path,
    age_max: Duration,
    kept_max: usize,
    is_living: impl Fn(&str) -> bool,
) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut logs = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A link is not followed: what it names is not a log of ours.
        if entry.file_type()?.is_dir() {
            logs.push((last_written(&entry.path())?, entry.path()));
        }
    }
    logs.sort_by(|left, right| right.cmp(left));
    let now = SystemTime::now();
    let mut removed = 0;
    for (index, (written, path)) in logs.iter().enumerate() {
        let is_old = now.duration_since(*written).is_ok_and(|age| age > age_max);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if (is_old || index >= kept_max) && !is_living(&name) {
            fs::remove_dir_all(path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn last_written(directory: &Path) -> io::Result<SystemTime> {
    let mut newest = fs::metadata(directory)?.modified()?;
    for entry in fs::read_dir(directory)? {
        newest = newest.max(entry?.metadata()?.modified()?);
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_and_surplus_ones_go_and_living_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        for name in ["w-1", "w-2", "w-3"] {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join("x.jsonl"), b"").unwrap();
        }
        let (hour, nobody) = (Duration::from_secs(3600), |_: &str| false);
        assert_eq!(remove(root.path(), hour, 5, nobody).unwrap(), 0);
        assert_eq!(remove(root.path(), hour, 2, nobody).unwrap(), 1);
        assert_eq!(remove(root.path(), Duration::ZERO, 5, |name| name == "w-3").unwrap(), 1);
        assert!(root.path().join("w-3/x.jsonl").exists());
        assert_eq!(remove(&root.path().join("none"), hour, 2, nobody).unwrap(), 0);
    }
}
