//! Conversations that outlive the worker, seen from outside: a worker that is
//! started again goes on where the last one was, and nothing that can lie or
//! happen in its directory makes a request fail or reach another's tokens. The
//! echo engine ends itself when a slot does not hold what belongs there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rbee_api::openai::{ChatCompletion, Usage};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Worker, eventually};

const MIB: usize = 1 << 20;

/// A directory for kept conversations, and workers that use it.
struct Cache(TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    async fn worker(&self, arguments: &[&str]) -> Worker {
        let directory = format!("--cache-dir={}", self.path().display());
        Worker::start(&[&["--cache-disk=1", &directory], arguments].concat()).await
    }

    /// The files of states, in the order of their names.
    fn states(&self) -> Vec<PathBuf> {
        let mut files = files_below(&self.path());
        files.retain(|path| path.extension().is_some_and(|ending| ending == "kv"));
        files.sort();
        files
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

fn bytes_below(folder: &Path) -> usize {
    let files = files_below(folder);
    // One that is removed meanwhile has no size any more.
    let sizes = files.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len());
    usize::try_from(sizes.sum::<u64>()).unwrap()
}

fn words(name: &str, count: u32) -> String {
    (0..count).map(|word| format!(" {name}{word}")).collect()
}

/// Says something long and asks for a short reply.
fn topic(name: &str, count: u32) -> String {
    format!("[[tokens=2]]{}", words(name, count).trim_start())
}

async fn usage(worker: &Worker, content: &str, more: Value) -> Usage {
    worker.client.chat(content, more).await.json::<ChatCompletion>().usage
}

async fn cached(worker: &Worker, content: &str, more: Value) -> u32 {
    usage(worker, content, more).await.prompt_tokens_details.cached_tokens
}

async fn end(mut worker: Worker) {
    worker.signal(Signal::TERM);
    assert!(worker.exit().await.success());
}

async fn metric(worker: &Worker, name: &str) -> usize {
    let metrics = worker.client.get("/metrics").await.body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    assert!(value.is_some(), "{name} is not in\n{metrics}");
    value.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_worker_that_is_started_again_goes_on_where_the_last_one_ended() {
    let cache = Cache::new();
    let worker = cache.worker(&["--slots=4"]).await;
    let first = topic("first", 70);
    assert_eq!(cached(&worker, &first, json!({})).await, 0);
    assert_eq!(cached(&worker, &topic("second", 40), json!({"user": "alice"})).await, 0);
    // Too little to be worth a file.
    assert_eq!(cached(&worker, &topic("third", 10), json!({})).await, 0);
    end(worker).await;
    assert_eq!(cache.states().len(), 2);
    for folder in [cache.path(), cache.states()[0].parent().unwrap().to_owned()] {
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o7777, 0o700);
    }
    for file in files_below(&cache.path()) {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    let worker = cache.worker(&["--slots=4"]).await;
    assert_eq!(metric(&worker, "rbee_worker_kept_bytes").await, bytes_below(&cache.path()));
    let next = format!("{first} and then");
    let usage = usage(&worker, &next, json!({})).await;
    assert_eq!((usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens), (72, 70));
    assert_eq!(cached(&worker, &topic("second", 40), json!({"user": "alice"})).await, 39);
    assert_eq!(metric(&worker, "rbee_worker_kept_hits_total").await, 2);
    end(worker).await;
    // The longer one stands in the place of the one before.
    let worker = cache.worker(&["--slots=4"]).await;
    assert_eq!(cached(&worker, &format!("{next} more"), json!({})).await, 72);
    assert_eq!(metric(&worker, "rbee_worker_kept_states").await, cache.states().len());
}

#[tokio::test]
async fn a_conversation_that_continues_replaces_its_own_file() {
    let cache = Cache::new();
    let mut content = topic("mine", 60);
    for turn in 0..3 {
        let worker = cache.worker(&["--slots=1"]).await;
        let computed = cached(&worker, &content, json!({"max_tokens": 1})).await;
        assert_eq!(computed > 0, turn > 0, "turn {turn}");
        end(worker).await;
        assert_eq!(cache.states().len(), 1, "turn {turn}");
        content.push_str(&words(&format!("turn{turn}-"), 20));
    }
}

#[tokio::test]
async fn a_worker_that_is_killed_has_kept_what_was_said_before_it_rested() {
    let cache = Cache::new();
    let worker = cache.worker(&["--slots=4"]).await;
    for name in ["first", "second"] {
        assert_eq!(cached(&worker, &topic(name, 50), json!({})).await, 0);
    }
    eventually("both are kept", async || {
        (metric(&worker, "rbee_worker_kept_states").await == 2).then_some(())
    })
    .await;
    assert_eq!(metric(&worker, "rbee_worker_kept_writes_total").await, 2);
    worker.signal(Signal::KILL);
    drop(worker);
    let worker = cache.worker(&["--slots=4"]).await;
    for name in ["first", "second"] {
        assert_eq!(cached(&worker, &topic(name, 50), json!({})).await, 49, "{name}");
    }
}

#[tokio::test]
async fn what_another_model_user_or_rule_has_computed_is_not_found() {
    let cache = Cache::new();
    let (one, other) = ("ab".repeat(32), "cd".repeat(32));
    let (one, other) = (format!("--model-sha256={one}"), format!("--model-sha256={other}"));
    let content = topic("private", 50);
    let worker = cache.worker(&[&one]).await;
    cached(&worker, &content, json!({"user": "alice"})).await;
    end(worker).await;
    for (arguments, user, expected) in [
        (vec![one.as_str()], "bob", 0),
        (vec![one.as_str()], "", 0),
        (vec![other.as_str()], "alice", 0),
        (vec![], "alice", 0),
        (vec![one.as_str(), "--cache-shared"], "alice", 0),
        (vec![one.as_str()], "alice", 49),
    ] {
        let worker = cache.worker(&arguments).await;
        let more = if user.is_empty() { json!({}) } else { json!({"user": user}) };
        assert_eq!(cached(&worker, &content, more).await, expected, "{arguments:?} {user}");
        // What it has computed itself must not be found by the next.
        worker.signal(Signal::KILL);
    }
    let shared = cache.worker(&["--cache-shared"]).await;
    cached(&shared, &content, json!({"user": "alice"})).await;
    end(shared).await;
    let shared = cache.worker(&["--cache-shared"]).await;
    assert_eq!(cached(&shared, &content, json!({"user": "bob"})).await, 49);
    end(shared).await;
    let apart = cache.worker(&[]).await;
    assert_eq!(cached(&apart, &content, json!({})).await, 0);
}

/// Looks at the size of a directory until told to end, and returns the largest.
fn watch(folder: PathBuf, ended: Arc<AtomicBool>) -> std::thread::JoinHandle<usize> {
    std::thread::spawn(move || {
        let mut most = 0;
        while !ended.load(Ordering::Relaxed) {
            most = most.max(bytes_below(&folder));
        }
        most
    })
}

#[tokio::test]
async fn two_workers_with_many_conversations_never_use_more_than_they_may() {
    let cache = Cache::new();
    let sizes = ["--slots=1", "--cache-ram=0", "--context=4096"];
    let other = format!("--model-sha256={}", "cd".repeat(32));
    let ours = cache.worker(&sizes).await;
    let theirs = cache.worker(&[&sizes[..], &[&other]].concat()).await;
    let ended = Arc::new(AtomicBool::new(false));
    let watching = watch(cache.path(), Arc::clone(&ended));
    for number in 0..40 {
        let content = topic(&format!("topic{number}-"), 3000);
        let asked = [cached(&ours, &content, json!({})), cached(&theirs, &content, json!({}))];
        futures_util::future::join_all(asked).await;
    }
    let (us, them) = (
        metric(&ours, "rbee_worker_kept_writes_total").await,
        metric(&theirs, "rbee_worker_kept_writes_total").await,
    );
    end(ours).await;
    end(theirs).await;
    ended.store(true, Ordering::Relaxed);
    let most = watching.join().unwrap();
    assert!(us > 10 && them > 10, "hardly anything was written: {us}, {them}");
    assert!(most <= MIB, "{most} bytes");
    assert!(bytes_below(&cache.path()) > MIB / 2);
    // The last one is there, and the first one had to go.
    let ours = cache.worker(&sizes).await;
    assert!(cached(&ours, &topic("topic39-", 3000), json!({})).await > 2900);
    assert_eq!(cached(&ours, &topic("topic0-", 3000), json!({})).await, 0);
}

#[tokio::test]
async fn files_that_were_damaged_are_computed_again_and_removed() {
    const CONVERSATIONS: usize = 48;
    let cache = Cache::new();
    let slots = format!("--slots={CONVERSATIONS}");
    let topics: Vec<String> =
        (0..CONVERSATIONS).map(|number| topic(&format!("topic{number}-"), 40)).collect();
    let worker = cache.worker(&[&slots]).await;
    for content in &topics {
        cached(&worker, content, json!({})).await;
    }
    end(worker).await;
    let states = cache.states();
    assert_eq!(states.len(), CONVERSATIONS);
    let find = |worker: &Worker| {
        let client = worker.client.clone();
        let topics = topics.clone();
        async move {
            let mut found = 0;
            for content in &topics {
                let reply: ChatCompletion = client.chat(content, json!({})).await.json();
                found += u32::from(reply.usage.prompt_tokens_details.cached_tokens > 30);
            }
            found
        }
    };
    // Each is spoilt elsewhere: changed in the first half, cut in the second.
    for (index, path) in states.iter().enumerate() {
        let mut bytes = fs::read(path).unwrap();
        let offset = (index % (CONVERSATIONS / 2)) * bytes.len() / (CONVERSATIONS / 2);
        if index < CONVERSATIONS / 2 {
            bytes[offset] ^= 0x10;
        } else {
            bytes.truncate(offset);
        }
        fs::write(path, bytes).unwrap();
    }
    let worker = cache.worker(&[&slots]).await;
    assert_eq!(find(&worker).await, 0);
    assert!(metric(&worker, "rbee_worker_kept_failures_total{operation=\"read\"}").await > 0);
    assert_eq!(cache.states().len(), 0);
    // What was computed again is kept again.
    end(worker).await;
    let worker = cache.worker(&[&slots]).await;
    assert_eq!(find(&worker).await, u32::try_from(CONVERSATIONS).unwrap());
}

#[tokio::test]
async fn files_that_vanish_while_the_worker_runs_are_computed_again() {
    let cache = Cache::new();
    let worker = cache.worker(&[]).await;
    cached(&worker, &topic("mine", 50), json!({})).await;
    end(worker).await;
    let worker = cache.worker(&[]).await;
    fs::remove_dir_all(cache.path()).unwrap();
    assert_eq!(cached(&worker, &topic("mine", 50), json!({})).await, 0);
    end(worker).await;
    assert_eq!(cache.states().len(), 1, "it is kept again");
}

/// A file system of 1 MiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    #[expect(clippy::disallowed_methods, reason = "mount is a program")]
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(at).status().unwrap();
        // Mounting needs root, which CI and a fresh machine have.
        assert!(mounted.success(), "cannot mount a small tmpfs at {}", at.display());
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    #[expect(clippy::disallowed_methods, reason = "umount is a program")]
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[tokio::test]
async fn a_disk_without_room_fails_no_request_and_keeps_what_fits() {
    let cache = Cache::new();
    let _small = SmallDisk::mount(&cache.path());
    let arguments = ["--cache-disk=64", "--slots=1", "--cache-ram=0", "--context=4096"];
    let worker = cache.worker(&arguments[1..]).await;
    drop(worker);
    let directory = format!("--cache-dir={}", cache.path().display());
    let with_dir = [&arguments[..], &[&directory]].concat();
    let worker = Worker::start(&with_dir).await;
    for number in 0..60 {
        let content = topic(&format!("topic{number}-"), 3000);
        assert_eq!(cached(&worker, &content, json!({})).await, 0);
    }
    end(worker).await;
    // The oldest gave their room to the newest.
    let worker = Worker::start(&with_dir).await;
    assert!(cached(&worker, &topic("topic59-", 3000), json!({})).await > 2900);
    end(worker).await;

    cache.states().iter().for_each(|path| fs::remove_file(path).unwrap());
    fs::write(cache.path().join("others"), vec![1; MIB - 16 * 1024]).unwrap();
    let worker = Worker::start(&with_dir).await;
    for number in 0..20 {
        let content = topic(&format!("more{number}-"), 3000);
        assert_eq!(cached(&worker, &content, json!({})).await, 0);
    }
    eventually("the failure is counted", async || {
        let name = "rbee_worker_kept_failures_total{operation=\"write\"}";
        (metric(&worker, name).await > 0).then_some(())
    })
    .await;
    // One failure, and then peace: the rest is not even tried.
    assert!(metric(&worker, "rbee_worker_kept_dropped_total").await > 10);
    end(worker).await;
    assert!(files_below(&cache.path()).iter().all(|path| path.extension() != Some("tmp".as_ref())));
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_fails_no_request() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let loose = root.path().join("loose");
    fs::create_dir(&loose).unwrap();
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o777)).unwrap();
    for directory in [file.join("cache"), file, loose.clone()] {
        let directory = format!("--cache-dir={}", directory.display());
        let worker = Worker::start(&["--cache-disk=1", &directory]).await;
        assert_eq!(cached(&worker, &topic("mine", 50), json!({})).await, 0);
        assert_eq!(cached(&worker, &topic("mine", 50), json!({})).await, 49);
        let failures = "rbee_worker_kept_failures_total{operation=\"read\"}";
        assert_eq!(metric(&worker, failures).await, 1, "{directory}");
        end(worker).await;
    }
    assert_eq!(files_below(&loose), Vec::<PathBuf>::new());
}
