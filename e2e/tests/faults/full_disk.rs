//! No room: a disk without bytes or without inodes under the hive's home. What is asked
//! for then is refused with a reason, nothing breaks, and it works again once there is room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{TinyKind, tiny_gguf, wait_until};

use crate::agreement::assert_agreement;
use crate::site::{Daemon, LIMIT, Site};
use crate::volume;

/// A small file system of its own under a home.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    fn mount(path: &Path, options: &str) -> Self {
        fs::create_dir_all(path).expect("a folder");
        let disk = Self { path: path.to_owned() };
        let options = format!("mode=0700,{options}");
        disk.run(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs"]);
        disk
    }

    #[expect(clippy::disallowed_methods, reason = "tests start the injector")]
    fn run(&self, words: &[&str]) {
        let status = Command::new(words[0]).args(&words[1..]).arg(&self.path).status();
        assert!(status.expect("a command").success(), "{words:?}");
    }

    /// Takes all the bytes that are left.
    fn fill(&self) {
        let zeros = vec![0; 1 << 20];
        let file = fs::File::create(self.path.join("filler")).expect("a file");
        while std::io::Write::write_all(&mut &file, &zeros).is_ok() {}
        while std::io::Write::write_all(&mut &file, &[0]).is_ok() {}
    }

    /// Takes all the inodes that are left.
    fn use_up_inodes(&self) {
        fs::create_dir(self.path.join("filler")).expect("a folder");
        for count in 0.. {
            if fs::write(self.path.join(format!("filler/{count}")), []).is_err() {
                return;
            }
        }
    }

    fn free(&self) {
        let filler = self.path.join("filler");
        if filler.is_dir() {
            fs::remove_dir_all(filler).expect("a folder to remove");
        } else {
            fs::remove_file(filler).expect("a file to remove");
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.run(&["umount", "--lazy"]);
    }
}

/// A hive on a small disk, with the model `tiny`.
fn with_disk(options: &str) -> (SmallDisk, Site, Daemon) {
    let site = Site::new();
    let disk = SmallDisk::mount(&site.cluster.home(), options);
    let hive = site.hive();
    site.import("tiny", 1);
    (disk, site, hive)
}

/// Nothing new can be begun, and the hive lives and says why.
fn assert_refuses(site: &Site, hive: &mut Daemon) {
    let model = serde_json::json!({"model": "tiny"});
    let reply = site.to_hive().post("/api/v1/workers", &model);
    assert!(reply.status >= 500 && !reply.code().is_empty(), "{} {}", reply.status, reply.body);
    let file = site.cluster.home().parent().expect("a parent").join("another.gguf");
    let mut content = tiny_gguf(9, TinyKind::Generate);
    content.resize(1 << 20, 9);
    fs::write(&file, content).expect("a model file");
    let told = site.pull("another", &file);
    assert!(told.contains("\"error\""), "{told}");
    assert!(!told.contains("\"done\""), "{told}");
    assert!(hive.ended().is_none(), "{}", site.log("rbee-hive"));
    assert_eq!(site.to_hive().get("/livez").status, 200);
}

/// What was refused works.
fn assert_recovered(site: &Site) {
    let file = site.cluster.home().parent().expect("a parent").join("another.gguf");
    let told = site.pull("another", &file);
    assert!(told.contains("\"done\""), "{told}");
    for model in ["tiny", "another"] {
        site.ready_worker(model);
    }
    assert_agreement(site, "after there is room again");
}

#[test]
fn a_full_disk_refuses_new_work_and_breaks_nothing() {
    if !volume::is_root("a full disk") {
        return;
    }
    let (disk, site, mut hive) = with_disk("size=96m");
    disk.fill();
    assert_refuses(&site, &mut hive);
    disk.free();
    assert_recovered(&site);
}

#[test]
fn a_disk_without_inodes_refuses_new_work_and_breaks_nothing() {
    if !volume::is_root("a disk without inodes") {
        return;
    }
    let (disk, site, mut hive) = with_disk("size=128m,nr_inodes=200");
    disk.use_up_inodes();
    assert_refuses(&site, &mut hive);
    disk.free();
    assert_recovered(&site);
}

#[test]
fn a_full_disk_stops_no_worker_that_runs_and_no_stop() {
    if !volume::is_root("a full disk under a worker") {
        return;
    }
    let (disk, site, mut hive) = with_disk("size=96m");
    let worker = site.ready_worker("tiny");
    disk.fill();
    let id = worker["id"].as_str().expect("an id");
    let chat = serde_json::json!({
        "model": "tiny", "messages": [{"role": "user", "content": "still here"}],
    });
    let path = format!("/api/v1/workers/{id}/v1/chat/completions");
    let reply = site.to_hive().post(&path, &chat);
    assert_eq!(reply.status, 200, "{}", reply.body);
    let path = format!("/api/v1/workers/{id}");
    let reply = site.to_hive().call("DELETE", &path, None);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(site.living("llm-worker-rbee"), []);
    assert!(hive.ended().is_none());
    disk.free();
    hive.kill();
    hive = site.hive();
    // The row of a worker that could not be struck out is, now.
    assert_agreement(&site, "the next hive");
    drop(hive);
}

#[test]
fn a_hive_whose_log_cannot_be_written_goes_on() {
    if !Path::new("/dev/full").exists() {
        volume::not_run("a log on a full disk", "there is no /dev/full");
        return;
    }
    let site = Site::new();
    let full = fs::File::options().write(true).open("/dev/full").expect("a full device");
    let mut command = site.cluster.command("rbee-hive", &[]);
    command.stdout(full.try_clone().expect("a device")).stderr(full);
    let mut hive = Daemon::from(command.spawn().expect("a hive"));
    wait_until("the hive serves or ends", LIMIT, || {
        hive.ended().is_some() || site.serves("hive", hive.pid())
    });
    assert_eq!(hive.ended(), None);
    site.import("tiny", 1);
    site.ready_worker("tiny");
    assert_eq!(hive.ended(), None);
    let metrics = site.to_hive().get("/metrics").body;
    let lost =
        metrics.lines().find_map(|line| line.strip_prefix("rbee_hive_log_lines_lost_total "));
    let lost: u64 = lost.and_then(|count| count.parse().ok()).expect("a count");
    assert!(lost > 0, "{metrics}");
}
