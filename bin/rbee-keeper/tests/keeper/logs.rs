//! `rbee logs`: files here, streams from the queen.

use std::io::Write as _;

use rbee_home::{Daemon, Home};
use rustix::process::Signal;

use crate::fake_queen::FakeQueen;
use crate::program::{Program, end, read_until, signal};

#[tokio::test]
async fn a_daemons_log_is_shown_from_the_end_and_followed() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(&dir.path().join("rbee")).unwrap();
    let mut log = home.open_daemon_log(Daemon::Hive).unwrap();
    writeln!(log, "one\ntwo\nthree").unwrap();
    let program = Program::new(dir.path());
    assert_eq!(program.run(&["logs", "hive"]).await.stdout, "one\ntwo\nthree\n");
    assert_eq!(program.run(&["logs", "hive", "-n", "2"]).await.stdout, "two\nthree\n");

    let mut child = program.command(&["logs", "hive", "-f", "-n1"]).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert_eq!(read_until(&mut stdout, "three\n").await, "three\n");
    writeln!(log, "four").unwrap();
    assert_eq!(read_until(&mut stdout, "four\n").await, "four\n");
    signal(&child, Signal::INT);
    assert_eq!(end(child).await.code, Some(130));
}

#[tokio::test]
async fn a_workers_log_comes_from_the_queen() {
    let queen = FakeQueen::start().await;
    let last = queen.program().run(&["logs", "w-1", "-n", "2"]).await;
    assert_eq!((last.code, last.stdout.as_str()), (Some(0), "second\nthird\n"));
    let followed = queen.program().run(&["logs", "w-1", "-f", "-n1"]).await;
    assert_eq!((followed.code, followed.stdout.as_str()), (Some(0), "third\nfollowed\n"));
}
