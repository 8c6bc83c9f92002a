//! Groups on trees of plain files that look like the kernel's. What the kernel does with them is tested with real programs.

use super::*;

fn id() -> WorkerId {
    "w-1".parse().unwrap()
}

/// A directory with the files of a control group, as far as this program looks at them.
fn fake_group(directory: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(directory).unwrap();
    for (name, content) in files {
        fs::write(directory.join(name), content).unwrap();
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_worker_of_a_machine_with_version_2_is_limited_and_can_be_killed() {
    let root = tempfile::tempdir().unwrap();
    let base = root.path().join("service");
    fake_group(
        &base,
        &[("cgroup.controllers", "cpu memory\n"), ("cgroup.subtree_control", "memory\n")],
    );
    let cgroups = Cgroups::at(Some(base.clone()), None, 7);
    assert_eq!(cgroups.memory_limit(), MemoryLimit::CgroupV2);
    let group = cgroups.enclose(&id(), 42, Some(1 << 30));
    let own = base.join("rbee-w-1");
    assert_eq!(read(&own.join("memory.max")), (1_u64 << 30).to_string());
    assert_eq!(read(&own.join("cgroup.procs")), "42");
    assert_eq!(group.limit_bytes(), Some(1 << 30));
    group.kill();
    assert_eq!(read(&own.join("cgroup.kill")), "1");
    assert_eq!(group.has_run_out_of_memory(), None);
    for (kills, has) in [(0, false), (1, true)] {
        let events = format!("low 0\noom 3\noom_kill {kills}\noom_group_kill 0\n");
        fs::write(own.join("memory.events"), events).unwrap();
        assert_eq!(group.has_run_out_of_memory(), Some(has));
    }
}

#[test]
fn a_limited_group_is_ended_whole_and_does_not_swap_where_the_kernel_can() {
    let root = tempfile::tempdir().unwrap();
    let group = root.path().join("group");
    fake_group(&group, &[("memory.oom.group", "0"), ("memory.swap.max", "max")]);
    let settings = [Some(("memory.oom.group", 1)), Some(("memory.swap.max", 0))];
    set_where_possible(&group, settings);
    assert_eq!(read(&group.join("memory.oom.group")), "1");
    assert_eq!(read(&group.join("memory.swap.max")), "0");
    fs::remove_file(group.join("memory.swap.max")).unwrap();
    set_where_possible(&group, settings);
    assert!(!group.join("memory.swap.max").exists(), "a kernel without swap has no such file");
}

#[tokio::test]
async fn while_a_worker_lives_whose_group_could_not_be_made_the_status_promises_nothing() {
    let root = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::at(None, Some(root.path().to_owned()), 7);
    assert_eq!(cgroups.memory_limit(), MemoryLimit::CgroupV1);
    // What is in the way of the group.
    fs::write(root.path().join("rbee-w-1"), "").unwrap();
    let group = cgroups.enclose(&id(), 42, Some(4096));
    assert_eq!((group.limit_bytes(), cgroups.memory_limit()), (None, MemoryLimit::Unenforced));
    group.clear(&id()).await;
    assert_eq!(cgroups.memory_limit(), MemoryLimit::CgroupV1);
    let unlimited = cgroups.enclose(&id(), 42, None);
    assert_eq!((unlimited.limit_bytes(), cgroups.memory_limit()), (None, MemoryLimit::CgroupV1));
}

#[test]
fn a_hive_alone_in_its_group_moves_out_of_the_way_and_one_with_company_does_not() {
    for (procs, moves) in [("7\n", true), ("7\n8\n", false)] {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("service");
        fake_group(&base, &[("cgroup.controllers", "memory"), ("cgroup.procs", procs)]);
        // As in a group with processes: what is written is not taken.
        fs::create_dir(base.join("cgroup.subtree_control")).unwrap();
        assert!(!hands_memory_down(&base, 7));
        assert_eq!(base.join(OWN_LEAF).exists(), moves, "{procs}");
    }
}

#[test]
fn without_a_memory_controller_nothing_is_promised() {
    let root = tempfile::tempdir().unwrap();
    let base = root.path().join("service");
    fake_group(&base, &[("cgroup.controllers", "hugetlb")]);
    for unified in [Some(base.clone()), None, Some(root.path().join("missing"))] {
        let cgroups = Cgroups::at(unified, None, 7);
        assert_eq!(cgroups.memory_limit(), MemoryLimit::Unenforced);
        let group = cgroups.enclose(&id(), 42, Some(1));
        assert_eq!(group.limit_bytes(), None);
        assert_eq!(group.has_run_out_of_memory(), None);
        fs::remove_dir_all(base.join("rbee-w-1")).ok();
    }
}

#[test]
fn version_1_limits_memory_where_version_2_does_not() {
    let root = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::at(None, Some(root.path().to_owned()), 7);
    assert_eq!(cgroups.memory_limit(), MemoryLimit::CgroupV1);
    let group = cgroups.enclose(&id(), 42, Some(4096));
    let own = root.path().join("rbee-w-1");
    assert_eq!(read(&own.join("memory.limit_in_bytes")), "4096");
    assert_eq!((read(&own.join("cgroup.procs")).as_str(), group.limit_bytes()), ("42", Some(4096)));
    fs::write(own.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
        .unwrap();
    assert_eq!(group.has_run_out_of_memory(), Some(true));
    let unlimited = cgroups.enclose(&"w-2".parse().unwrap(), 43, None);
    assert_eq!(unlimited.limit_bytes(), None);
    assert!(!root.path().join("rbee-w-2").exists());
}

#[test]
fn only_old_empty_groups_of_workers_are_swept_away() {
    let root = tempfile::tempdir().unwrap();
    let base = root.path();
    fake_group(&base.join("rbee-w-used"), &[("cgroup.procs", "1")]);
    for name in ["rbee-w-empty", "rbee-hive", "other"] {
        fs::create_dir(base.join(name)).unwrap();
    }
    let left = || {
        let entries = fs::read_dir(base).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    remove_forgotten(base, Duration::from_secs(3600));
    assert_eq!(left(), ["other", "rbee-hive", "rbee-w-empty", "rbee-w-used"]);
    remove_forgotten(base, Duration::ZERO);
    assert_eq!(left(), ["other", "rbee-hive", "rbee-w-used"]);
}
