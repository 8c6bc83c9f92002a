//! A pid namespace of its own, with a shell as its first process: numbers can be forced
//! there without touching the machine's. Everything in it ends with the test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Stands at the end of what a command says.
const MARK: &str = "--that is all--";

/// The shell, and through it the namespace.
#[derive(Debug)]
pub(crate) struct PidRoom {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl PidRoom {
    /// Makes a namespace; needs root.
    #[expect(clippy::disallowed_methods, reason = "tests start the injector")]
    pub(crate) fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc", "--kill-child", "/bin/sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare; scripts/system-packages installs it");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, input, output }
    }

    /// Runs a command in the shell and returns what it says.
    pub(crate) fn run(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}\necho '{MARK}'").expect("a shell that listens");
        let mut said = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).expect("a shell that answers");
            assert!(read > 0, "the shell ended over {command:?}: {said}");
            if line.trim_end() == MARK {
                return said;
            }
            said.push_str(&line);
        }
    }

    /// Starts a command beside the shell and returns its number in the namespace.
    pub(crate) fn start(&mut self, command: &Command, log: &std::path::Path) -> u32 {
        let mut words = vec!["env -i".to_owned()];
        for (name, value) in command.get_envs() {
            let value = value.unwrap_or_default().to_string_lossy();
            words.push(quoted(&format!("{}={value}", name.to_string_lossy())));
        }
        words.push(quoted(&command.get_program().to_string_lossy()));
        words.extend(command.get_args().map(|word| quoted(&word.to_string_lossy())));
        let log = quoted(&log.to_string_lossy());
        let said = self.run(&format!("{} </dev/null >>{log} 2>&1 & echo $!", words.join(" ")));
        said.trim().parse().expect("a number")
    }

    /// Kills processes and waits until nothing has their numbers.
    pub(crate) fn kill(&mut self, pids: &[u32]) {
        let list = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        // A shell reaps whoever was left to it only while it waits for somebody.
        self.run(&format!(
            "kill -9 {list} 2>/dev/null; for p in {list}; do while [ -e /proc/$p ]; do /bin/true; done; done"
        ));
    }

    /// Gives each number to a process that has nothing to do with anybody, and that
    /// keeps every signal it is sent. Returns those that got their number.
    pub(crate) fn innocents(&mut self, pids: &[u32]) -> Vec<u32> {
        let list = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let said = self.run(&format!(
            "for p in {list}; do echo $((p - 1)) >/proc/sys/kernel/ns_last_pid; \
             env --block-signal sleep 1000000 >/dev/null & echo $!; done"
        ));
        let got: Vec<u32> = said.lines().filter_map(|line| line.trim().parse().ok()).collect();
        let (same, other): (Vec<u32>, Vec<u32>) = got.iter().partition(|pid| pids.contains(*pid));
        if !other.is_empty() {
            self.kill(&other);
        }
        same
    }

    /// Returns those of the innocents that were signalled: gone, stopped, or with a
    /// signal that waits.
    pub(crate) fn signalled(&mut self, innocents: &[u32]) -> Vec<String> {
        let list = innocents.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let said = self.run(&format!(
            "for p in {list}; do echo $p $(grep -E '^(Name|State|SigPnd|ShdPnd)' /proc/$p/status 2>&1); done"
        ));
        let untouched = |line: &&str| {
            line.contains("Name: sleep State: S")
                && line.contains("SigPnd: 0000000000000000")
                && line.contains("ShdPnd: 0000000000000000")
        };
        said.lines().filter(|line| !untouched(line)).map(str::to_owned).collect()
    }

    /// Returns when a process started, as the ledger holds it.
    pub(crate) fn start_ticks(&mut self, pid: u32) -> i64 {
        let stat = self.run(&format!("cat /proc/{pid}/stat"));
        let (_, fields) = stat.rsplit_once(") ").expect("a line");
        fields.split(' ').nth(19).and_then(|field| field.parse().ok()).expect("a time")
    }
}

impl Drop for PidRoom {
    fn drop(&mut self) {
        // The end of the first process is the end of all in the namespace.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
