//! The processes of a cluster, found in `/proc` by the home they work in.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// One process that belongs to a home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
    /// Its state letter, such as `S` or `Z`.
    pub state: char,
}

impl Process {
    /// Sends a signal; a process that is gone already is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // The process may have ended between the look and the signal.
            kill_process(pid, signal).ok();
        }
    }
}

/// The names of the programs, as the kernel keeps them: cut to 15 characters.
const PROGRAMS: [&str; 4] = ["rbee", "queen-rbee", "rbee-hive", "llm-worker-rbee"];

/// Finds the processes of our programs whose arguments or environment name
/// `home`, and the zombies that one of them has not reaped.
#[must_use]
pub fn processes_of(home: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let (zombies, living): (Vec<_>, Vec<_>) =
        pids.filter_map(look_at).partition(|(process, _)| process.state == 'Z');
    let mut found: Vec<Process> =
        living.into_iter().map(|(process, _)| process).filter(|p| names(p.pid, home)).collect();
    let unreaped = zombies.into_iter().filter(|(_, parent)| found.iter().any(|p| p.pid == *parent));
    let unreaped: Vec<Process> = unreaped.map(|(process, _)| process).collect();
    found.extend(unreaped);
    found
}

/// Returns the process and its parent's id, if it is one of our programs.
fn look_at(pid: u32) -> Option<(Process, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let program = PROGRAMS.into_iter().find(|program| *program == name)?.to_owned();
    Some((Process { pid, program, state }, parent))
}

fn names(pid: u32, home: &Path) -> bool {
    let home = home.as_os_str().as_encoded_bytes();
    ["cmdline", "environ"].iter().any(|file| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(home.len()).any(|window| window == home)
    })
}
