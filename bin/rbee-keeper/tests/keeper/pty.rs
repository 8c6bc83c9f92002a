//! A terminal for the program under test.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;

use crate::program::{Ended, Program, within};

/// What Linux answers when the last program has closed the other side.
const CLOSED: i32 = 5;

/// The screen's and keyboard's side of a terminal.
pub(crate) struct Terminal {
    screen: tokio::fs::File,
    keyboard: File,
    seen: String,
}

impl Terminal {
    /// Starts `program` with all three streams on a new terminal.
    pub(crate) fn start(program: &Program, args: &[&str]) -> (Self, Child) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let side = openpt(flags).unwrap();
        grantpt(&side).unwrap();
        unlockpt(&side).unwrap();
        let name = ptsname(&side, Vec::new()).unwrap();
        let open = || {
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            Stdio::from(rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap())
        };
        let mut command = program.clone().with("TERM", "xterm-256color").command(args);
        let child = command.stdin(open()).stdout(open()).stderr(open()).spawn().unwrap();
        let keyboard = File::from(side);
        let screen = tokio::fs::File::from_std(keyboard.try_clone().unwrap());
        (Self { screen, keyboard, seen: String::new() }, child)
    }

    /// Types keys.
    pub(crate) fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen has shown `wanted` since the last call, and returns what came up to its end.
    pub(crate) async fn wait_for(&mut self, wanted: &str) -> String {
        loop {
            if let Some(start) = self.seen.find(wanted) {
                let rest = self.seen.split_off(start + wanted.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let what = format!("{wanted:?} after {:?}", self.seen);
            assert!(within(&what, self.read()).await, "the terminal closed without {what}");
        }
    }

    /// Waits for the end of the program and returns its exit code and the rest of the screen.
    pub(crate) async fn end(mut self, mut child: Child) -> Ended {
        while within("the end of the terminal", self.read()).await {}
        let status = within("the program", child.wait()).await.unwrap();
        Ended { code: status.code(), stdout: self.seen, stderr: String::new() }
    }

    /// Reads what is there; `false` once nobody holds the other side.
    async fn read(&mut self) -> bool {
        let mut piece = [0; 4096];
        match self.screen.read(&mut piece).await {
            Err(error) if error.raw_os_error() == Some(CLOSED) => false,
            result => {
                let count = result.unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&piece[..count]));
                count > 0
            }
        }
    }
}
