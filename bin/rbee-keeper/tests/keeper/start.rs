//! Starting a queen. The program beside `rbee` is a script here, and this process plays the queen that it claims to be.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::fake_queen::FakeQueen;
use crate::program::{Program, end, read_until, signal, within};

/// Says who runs, and runs on until killed. The last line of its log is `up`.
const RUN_ON: &str = "echo \"args: $*\"; echo \"config: $RBEE_CONFIG\"; echo \"pid: $$\"
[ \"$(ps -o sid= -p $$ | tr -d ' ')\" = \"$$\" ] && echo leader
echo up >&2; exec tail -f /dev/null";

/// A directory with `rbee` and, beside it, a `queen-rbee` that runs `script`.
///
/// Neither file is ever open for writing in this process: a program that another test starts meanwhile would hold it
/// open for a moment, and the kernel refuses to run a file that somebody can write.
async fn installed(script: Option<&str>) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let rbee = dir.path().join("rbee");
    std::fs::hard_link(env!("CARGO_BIN_EXE_rbee"), &rbee).unwrap();
    if let Some(script) = script {
        let write = "printf '#!/bin/sh\n%s\n' \"$1\" > queen-rbee && chmod 700 queen-rbee";
        let shell = Program::at(Path::new("/bin/sh"), dir.path());
        assert_eq!(shell.run(&["-c", write, "sh", script]).await.code, Some(0));
    }
    (dir, rbee)
}

/// Waits until the script runs, kills it, and returns its log without the line that tells its id. Killing fails the
/// test when the script does not run any more.
async fn log_of_killed(root: &Path) -> String {
    let log = root.join("logs/queen-rbee.log");
    let text = within("the script's last line", async {
        loop {
            match std::fs::read_to_string(&log) {
                Ok(text) if text.ends_with("up\n") => break text,
                _ => tokio::task::yield_now().await,
            }
        }
    })
    .await;
    let pid = text.lines().find_map(|line| line.strip_prefix("pid: ")).unwrap();
    kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    text.lines().filter(|line| !line.starts_with("pid: ")).map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn a_queen_is_started_in_a_session_of_its_own_and_waited_for() {
    let (_bin, rbee) = installed(Some(RUN_ON)).await;
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("mine.toml");
    std::fs::write(&config, "").unwrap();
    let program = Program::at(&rbee, home.path()).with("RBEE_CONFIG", config.to_str().unwrap());
    let mut child = program.command(&["run", "m", "hi"]).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    assert_eq!(read_until(&mut stderr, "starting queen-rbee …\n").await, "starting queen-rbee …\n");
    let root = home.path().join("rbee");
    let _queen = FakeQueen::start_in(home).await;
    child.stderr = Some(stderr);
    let ended = end(child).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "You said: \"hi\"\n"), "{ended:?}");
    assert!(ended.stderr.starts_with("started queen-rbee in "), "{ended:?}");
    let expected = format!("args: --home {}\nconfig: \nleader\nup\n", root.display());
    assert_eq!(log_of_killed(&root).await, expected);
}

#[tokio::test]
async fn the_reason_of_a_failed_start_is_shown() {
    let script = "echo 'error: port 8080 is taken' >&2; echo 'hint: set --bind' >&2; exit 69";
    let (_bin, rbee) = installed(Some(script)).await;
    let home = tempfile::tempdir().unwrap();
    let ended = Program::at(&rbee, home.path()).run(&["list", "-q"]).await;
    assert_eq!(ended.code, Some(69));
    let expected = "error: queen-rbee could not start: port 8080 is taken\nhint: set --bind\n";
    assert_eq!(ended.stderr, expected);

    let (_bin, rbee) = installed(Some("exit 3")).await;
    let home = tempfile::tempdir().unwrap();
    let silent = Program::at(&rbee, home.path()).run(&["list", "-q"]).await;
    assert_eq!(silent.code, Some(1));
    assert!(silent.stderr.contains("it ended with exit status: 3\nhint: see /"), "{silent:?}");
}

#[tokio::test]
async fn a_queen_that_was_faster_is_used() {
    let (_bin, rbee) = installed(Some("exit 75")).await;
    let home = tempfile::tempdir().unwrap();
    let mut child = Program::at(&rbee, home.path()).command(&["run", "m", "hi"]).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    read_until(&mut stderr, "starting queen-rbee …\n").await;
    let _queen = FakeQueen::start_in(home).await;
    child.stderr = Some(stderr);
    let ended = end(child).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "You said: \"hi\"\n"), "{ended:?}");
}

#[tokio::test]
async fn ctrl_c_while_starting_leaves_the_queen_running() {
    let (_bin, rbee) = installed(Some(RUN_ON)).await;
    let home = tempfile::tempdir().unwrap();
    let mut child = Program::at(&rbee, home.path()).command(&["run", "m", "hi"]).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    read_until(&mut stderr, "starting queen-rbee …\n").await;
    signal(&child, Signal::INT);
    child.stderr = Some(stderr);
    assert_eq!(end(child).await.code, Some(130));
    log_of_killed(&home.path().join("rbee")).await;
}

#[tokio::test]
async fn without_a_queen_to_start_the_command_says_what_is_missing() {
    let (_bin, rbee) = installed(None).await;
    let home = tempfile::tempdir().unwrap();
    let ended = Program::at(&rbee, home.path()).run(&["list"]).await;
    assert_eq!(ended.code, Some(69));
    assert!(ended.stderr.starts_with("error: cannot find /"), "{ended:?}");
}
