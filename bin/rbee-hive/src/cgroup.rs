//! Control groups: one for each worker where the machine allows it, so that a worker can be killed with all that it has
//! ever started, and cannot take more memory than it was given. Owns where groups lie and what is in their files; which
//! of both works is told, never assumed.

mod hierarchy;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use input_validation::{WORKER_ID_PREFIX, WorkerId};
use rbee_api::hive::MemoryLimit;
use tokio::time::{Instant, sleep};

use hierarchy::Hierarchies;

/// How long the processes of a killed group may take to be gone.
const CLEAR_LIMIT: Duration = Duration::from_secs(1);
/// How often it is looked whether they are.
const CLEAR_POLL: Duration = Duration::from_millis(5);
/// The age from which an empty group is nobody's: a new one is empty for an instant only.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// The group into which the hive itself moves, where its own may not hold processes beside other groups.
const OWN_LEAF: &str = "rbee-hive";

/// Where this hive makes groups.
#[derive(Debug)]
pub(crate) struct Cgroups {
    /// A directory of version 2, where groups can be killed.
    unified: Option<PathBuf>,
    memory: MemoryController,
    /// Held once more by each group of a worker that should be limited and is not.
    unheld: Arc<()>,
}

/// What limits memory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum MemoryController {
    /// The unified directory does.
    V2,
    /// A directory of version 1 does.
    V1(PathBuf),
    None,
}

/// The groups of one worker. What is not there does nothing.
#[derive(Debug, Default)]
pub(crate) struct WorkerGroup {
    unified: Option<PathBuf>,
    /// The group of version 1 that limits memory.
    memory_v1: Option<PathBuf>,
    /// What the worker may take; `None` where nothing holds it to that.
    limit_bytes: Option<u64>,
    /// There where it should be held to something.
    _unheld: Option<Arc<()>>,
}

impl Cgroups {
    /// Finds out what can be used, by doing it. Blocks.
    pub(crate) fn open() -> Self {
        let hierarchies = Hierarchies::of_this_process();
        for base in hierarchies.unified.iter().chain(&hierarchies.memory_v1) {
            remove_forgotten(base, FORGOTTEN_AFTER);
        }
        let opened = Self::at(hierarchies.unified, hierarchies.memory_v1, std::process::id());
        let (limit, kills) = (opened.memory_limit(), opened.unified.is_some());
        tracing::info!(?limit, kills_groups = kills, "control groups");
        opened
    }

    /// No groups, whatever the machine has.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::at(None, None, 0)
    }

    fn at(unified: Option<PathBuf>, memory_v1: Option<PathBuf>, own_pid: u32) -> Self {
        let unified = unified.filter(|base| can_make_groups(base));
        let has_v2 = unified.as_deref().is_some_and(|base| hands_memory_down(base, own_pid));
        let memory = match memory_v1.filter(|base| can_make_groups(base)) {
            _ if has_v2 => MemoryController::V2,
            Some(base) => MemoryController::V1(base),
            None => MemoryController::None,
        };
        Self { unified, memory, unheld: Arc::default() }
    }

    /// Says what holds workers to their memory; nothing, as long as one lives that should be held and is not.
    pub(crate) fn memory_limit(&self) -> MemoryLimit {
        if Arc::strong_count(&self.unheld) > 1 {
            return MemoryLimit::Unenforced;
        }
        match self.memory {
            MemoryController::V2 => MemoryLimit::CgroupV2,
            MemoryController::V1(_) => MemoryLimit::CgroupV1,
            MemoryController::None => MemoryLimit::Unenforced,
        }
    }

    /// Puts a process that has started nothing yet into groups of its own. What fails is logged and left out.
    pub(crate) fn enclose(&self, id: &WorkerId, pid: u32, limit_bytes: Option<u64>) -> WorkerGroup {
        let limit_v2 = limit_bytes.filter(|_| self.memory == MemoryController::V2);
        let unified = self.unified.as_deref().and_then(|base| {
            let settings = limit_v2.map(|limit| ("memory.max", limit));
            logged(id, enter(base, id, pid, settings))
        });
        if self.memory == MemoryController::V2
            && let Some(path) = &unified
        {
            // Ended with all it has started, and not slowed down by swapping before.
            let swap = limit_v2.map(|_| ("memory.swap.max", 0));
            set_where_possible(path, [Some(("memory.oom.group", 1)), swap]);
        }
        let limit_v1 = match &self.memory {
            MemoryController::V1(base) => limit_bytes.map(|limit| (base, limit)),
            MemoryController::V2 | MemoryController::None => None,
        };
        let memory_v1 = limit_v1.and_then(|(base, limit)| {
            let path = logged(id, enter(base, id, pid, Some(("memory.limit_in_bytes", limit))))?;
            set_where_possible(&path, [Some(("memory.memsw.limit_in_bytes", limit)), None]);
            Some(path)
        });
        let is_limited = memory_v1.is_some() || (limit_v2.is_some() && unified.is_some());
        let unheld = self.unheld(id, limit_bytes, is_limited);
        let limit_bytes = limit_bytes.filter(|_| is_limited);
        WorkerGroup { unified, memory_v1, limit_bytes, _unheld: unheld }
    }

    /// Finds the groups that a former hive has made for a worker, which was to be held to so much.
    pub(crate) fn of_adopted(
        &self,
        id: &WorkerId,
        pid: u32,
        limit_bytes: Option<u64>,
    ) -> WorkerGroup {
        let theirs = Hierarchies::of_process(pid);
        let is_its_own =
            |path: &PathBuf| path.file_name().is_some_and(|name| name == name_of(id).as_str());
        let unified = theirs.unified.filter(is_its_own);
        let memory_v1 = theirs.memory_v1.filter(is_its_own);
        let has_limit_v2 = |path: &PathBuf| {
            fs::read_to_string(path.join("memory.max")).is_ok_and(|text| text.trim() != "max")
        };
        let is_limited = memory_v1.is_some() || unified.as_ref().is_some_and(has_limit_v2);
        let unheld = self.unheld(id, limit_bytes, is_limited);
        let limit_bytes = limit_bytes.filter(|_| is_limited);
        WorkerGroup { unified, memory_v1, limit_bytes, _unheld: unheld }
    }

    /// What makes the status say that nothing holds a worker, as long as it is kept.
    fn unheld(&self, id: &WorkerId, limit_bytes: Option<u64>, is_limited: bool) -> Option<Arc<()>> {
        let is_missing =
            limit_bytes.is_some() && !is_limited && self.memory != MemoryController::None;
        is_missing.then(|| {
            tracing::warn!(worker_id = %id, limit_bytes, "nothing holds this worker to its memory");
            Arc::clone(&self.unheld)
        })
    }

    /// Kills what a worker of a former hive has left in its group, and removes the group. One that still holds the
    /// process with the worker's number is left alone: that was not proven to be the worker.
    pub(crate) async fn clear_remains(&self, id: &WorkerId, pid: Option<u32>) {
        let below = |base: &Path| Some(base.join(name_of(id))).filter(|path| path.is_dir());
        let memory_v1 = match &self.memory {
            MemoryController::V1(base) => below(base),
            MemoryController::V2 | MemoryController::None => None,
        };
        let unified = self.unified.as_deref().and_then(below);
        let is_there = |path: &PathBuf| pid.is_some_and(|pid| holds(path, pid));
        if unified.as_ref().is_some_and(is_there) || memory_v1.as_ref().is_some_and(is_there) {
            tracing::warn!(worker_id = %id, pid, "a process that is not proven to be the worker is in its group");
            return;
        }
        WorkerGroup { unified, memory_v1, ..WorkerGroup::default() }.clear(id).await;
    }
}

impl WorkerGroup {
    /// Returns what the worker is held to.
    pub(crate) const fn limit_bytes(&self) -> Option<u64> {
        self.limit_bytes
    }

    /// Kills every process of the group.
    pub(crate) fn kill(&self) {
        if let Some(path) = &self.unified
            && let Err(error) = fs::write(path.join("cgroup.kill"), "1")
        {
            tracing::warn!(%error, "cannot kill a control group");
        }
    }

    /// Whether the kernel has killed a process of the group because memory was used up, the group's or the machine's; `None`
    /// where no group counts that.
    pub(crate) fn has_run_out_of_memory(&self) -> Option<bool> {
        let v2 = self.unified.as_ref().map(|path| path.join("memory.events"));
        let v1 = self.memory_v1.as_ref().map(|path| path.join("memory.oom_control"));
        let kills = v2.into_iter().chain(v1).filter_map(|path| {
            fs::read_to_string(path).ok().and_then(|text| field(&text, "oom_kill"))
        });
        kills.max().map(|kills| kills > 0)
    }

    /// Kills what is left in the groups and removes them. To be called when the worker's process is gone.
    pub(crate) async fn clear(self, id: &WorkerId) {
        let limit = Instant::now() + CLEAR_LIMIT;
        self.kill_left(id);
        for path in self.unified.iter().chain(&self.memory_v1) {
            loop {
                match fs::remove_dir(path) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if Instant::now() >= limit => {
                        tracing::warn!(worker_id = %id, %error, "cannot remove a control group");
                        break;
                    }
                    Err(_) => sleep(CLEAR_POLL).await,
                }
            }
        }
    }

    fn kill_left(&self, id: &WorkerId) {
        let events =
            self.unified.as_ref().map(|path| fs::read_to_string(path.join("cgroup.events")));
        if let Some(Ok(text)) = events
            && field(&text, "populated") == Some(1)
        {
            tracing::warn!(worker_id = %id, "processes that the worker has left behind are being killed");
            self.kill();
        }
    }
}

fn name_of(id: &WorkerId) -> String {
    format!("rbee-{id}")
}

/// Makes a group, limits it, and moves a process into it.
fn enter(
    base: &Path,
    id: &WorkerId,
    pid: u32,
    setting: Option<(&str, u64)>,
) -> io::Result<PathBuf> {
    let path = base.join(name_of(id));
    fs::create_dir(&path)?;
    let entered = setting
        .map_or(Ok(()), |(file, value)| fs::write(path.join(file), value.to_string()))
        .and_then(|()| fs::write(path.join("cgroup.procs"), pid.to_string()));
    if entered.is_err() {
        // An empty group is in nobody's way.
        fs::remove_dir(&path).ok();
    }
    entered.map(|()| path)
}

/// Sets what makes a limit better and is not there on every kernel.
fn set_where_possible(group: &Path, settings: [Option<(&str, u64)>; 2]) {
    for (file, value) in settings.into_iter().flatten() {
        let path = group.join(file);
        if path.exists()
            && let Err(error) = fs::write(&path, value.to_string())
        {
            tracing::warn!(file, %error, "a control group cannot be set up in full");
        }
    }
}

fn logged(id: &WorkerId, entered: io::Result<PathBuf>) -> Option<PathBuf> {
    entered
        .inspect_err(
            |error| tracing::warn!(worker_id = %id, %error, "no control group for a worker"),
        )
        .ok()
}

/// Removes the groups of workers that ended when no hive was there, and whose home is gone. The kernel removes none that
/// holds a process.
fn remove_forgotten(base: &Path, age: Duration) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_a_workers = name.to_str().is_some_and(|name| {
            name.strip_prefix("rbee-").is_some_and(|id| id.starts_with(WORKER_ID_PREFIX))
        });
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|lasted| lasted >= age));
        if is_a_workers && is_old {
            fs::remove_dir(entry.path()).ok();
        }
    }
}

/// Whether groups can be made here, found out by making one.
fn can_make_groups(base: &Path) -> bool {
    let probe = base.join(format!("rbee-probe-{}", std::process::id()));
    fs::create_dir(&probe).is_ok() && fs::remove_dir(&probe).is_ok()
}

/// Has the memory of groups below `base` counted. A group other than the root may then hold no process of its own, so a
/// hive that is alone in its group moves below it.
fn hands_memory_down(base: &Path, own_pid: u32) -> bool {
    let has = |file: &str| {
        fs::read_to_string(base.join(file))
            .is_ok_and(|text| text.split_whitespace().any(|name| name == "memory"))
    };
    if !has("cgroup.controllers") {
        return false;
    }
    if has("cgroup.subtree_control") {
        return true;
    }
    let hand_down = || fs::write(base.join("cgroup.subtree_control"), "+memory");
    if hand_down().is_err() && is_alone(base, own_pid) {
        let leaf = base.join(OWN_LEAF);
        let moved = fs::create_dir_all(&leaf)
            .and_then(|()| fs::write(leaf.join("cgroup.procs"), own_pid.to_string()))
            .and_then(|()| hand_down());
        if let Err(error) = moved {
            tracing::debug!(%error, "the memory of workers cannot be limited");
        }
    }
    has("cgroup.subtree_control")
}

fn holds(group: &Path, pid: u32) -> bool {
    let pid = pid.to_string();
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| text.lines().any(|l| l == pid))
}

fn is_alone(base: &Path, own_pid: u32) -> bool {
    fs::read_to_string(base.join("cgroup.procs"))
        .is_ok_and(|text| text.trim() == own_pid.to_string())
}

/// Reads a number from lines of a name and a number.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        if key == name { value.trim().parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests;
