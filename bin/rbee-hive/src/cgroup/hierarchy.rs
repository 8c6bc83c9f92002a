//! Where the control groups of a process lie in the file system: its paths as the kernel tells them, put together with
//! where their hierarchies are mounted. Reads; changes nothing.

use std::fs;
use std::path::{Path, PathBuf};

/// The directories of one process's groups.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// Its group of version 2.
    pub(super) unified: Option<PathBuf>,
    /// Its group of version 1 in the hierarchy that counts memory.
    pub(super) memory_v1: Option<PathBuf>,
}

impl Hierarchies {
    pub(super) fn of_this_process() -> Self {
        Self::read("self")
    }

    pub(super) fn of_process(pid: u32) -> Self {
        Self::read(&pid.to_string())
    }

    fn read(process: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let paths = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        Self::parse(&mounts, &paths)
    }

    fn parse(mounts: &str, paths: &str) -> Self {
        let path_of = |controllers: &str| {
            paths.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (number, names, path) = (fields.next()?, fields.next()?, fields.next()?);
                let is_it = match controllers {
                    "" => number == "0" && names.is_empty(),
                    name => names.split(',').any(|named| named == name),
                };
                is_it.then_some(path)
            })
        };
        let mounted = |is_it: fn(&str, &str) -> bool, path: &str| {
            mounts.lines().find_map(|line| directory(line, is_it, path))
        };
        Self {
            unified: path_of("").and_then(|path| mounted(|kind, _| kind == "cgroup2", path)),
            memory_v1: path_of("memory").and_then(|path| {
                mounted(
                    |kind, options| kind == "cgroup" && options.split(',').any(|o| o == "memory"),
                    path,
                )
            }),
        }
    }
}

/// Returns where a group's path lies below the mount that a line of `mountinfo` describes.
fn directory(line: &str, is_it: fn(&str, &str) -> bool, path: &str) -> Option<PathBuf> {
    let (mount, system) = line.split_once(" - ")?;
    let mut system = system.split(' ');
    let (kind, options) = (system.next()?, system.nth(1)?);
    if !is_it(kind, options) {
        return None;
    }
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let below = Path::new(path).strip_prefix(root).ok()?;
    Some(Path::new(point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const UNIFIED: &str =
        "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const CONTAINED: &str = "30 23 0:26 /box/a /sys/fs/cgroup ro - cgroup2 cgroup rw\n";

    #[test]
    fn groups_are_found_where_their_hierarchy_is_mounted() {
        for (mounts, paths, unified, memory_v1) in [
            (
                HYBRID,
                "9:cpu:/\n4:memory:/user/x\n0::/\n",
                Some("/sys/fs/cgroup/unified"),
                Some("/sys/fs/cgroup/memory/user/x"),
            ),
            (UNIFIED, "0::/user.slice/a.scope\n", Some("/sys/fs/cgroup/user.slice/a.scope"), None),
            (CONTAINED, "0::/box/a/b\n", Some("/sys/fs/cgroup/b"), None),
            (CONTAINED, "0::/elsewhere\n", None, None),
            ("", "0::/\n", None, None),
            (UNIFIED, "", None, None),
        ] {
            let found = Hierarchies::parse(mounts, paths);
            let expected = Hierarchies {
                unified: unified.map(PathBuf::from),
                memory_v1: memory_v1.map(PathBuf::from),
            };
            assert_eq!(found, expected, "{mounts}{paths}");
        }
    }
}
