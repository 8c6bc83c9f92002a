//! `strace` as the injector: counts the system calls of a daemon, and kills it on
//! entering the n-th of one kind, or has calls fail. Follows threads, not the programs
//! that the daemon starts. Calls are counted in each thread for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use e2e::{holds_within, wait_until};
use rustix::process::Signal;

use crate::failing_calls::Failing;
use crate::site::signal_to;

/// The calls that leave something behind or tell somebody something: what lies between
/// two of them cannot be seen from outside.
const DURABLE: &str = "fsync,fdatasync,pwrite64,write,writev,sendto,clone,clone3,openat,rename,\
                       unlink,linkat,ftruncate,bind,listen,accept4,connect,pidfd_open,\
                       pidfd_send_signal,kill,pipe2,socketpair,shutdown,wait4,recvfrom";
/// How long a tracer may take to have hold of all threads.
const ATTACH_LIMIT: Duration = Duration::from_secs(5);
/// How long one may take to let go: at once, where the daemon is gone.
const LET_GO: Duration = Duration::from_millis(200);

/// One moment of an operation: a thread is about to make its n-th call of a kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Point {
    pub(crate) syscall: String,
    pub(crate) nth: u32,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} #{}", self.syscall, self.nth)
    }
}

/// What the tracer does.
#[derive(Debug, Clone)]
pub(crate) enum Trace {
    /// Writes each call into a file.
    Count { log: String },
    /// Kills the daemon at a point.
    Kill(Point),
    /// Has calls fail, and writes each of their kind into a file.
    Fail { failing: Failing, log: String },
    /// Holds back the program that the daemon starts for so long, before it is that program.
    DelayExec(Duration),
}

impl Trace {
    fn options(&self) -> Vec<String> {
        // With less, a tracer that has started its program itself lets go of it at no signal.
        let mut words = vec!["strace", "-I", "2", "-f", "-qq"];
        let (output, trace, inject, path);
        match self {
            Self::Count { log } => {
                trace = format!("trace={DURABLE},execve");
                output = log.clone();
                words.extend(["-y", "-b", "execve", "-o", &output, "-e", &trace]);
            }
            Self::Kill(Point { syscall, nth }) => {
                trace = format!("trace={syscall}");
                inject = format!("inject={syscall}:signal=SIGKILL:when={nth}");
                words.extend(["-b", "execve", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
            }
            Self::Fail { failing, log } => {
                (trace, inject) = (format!("trace={}", failing.calls), failing.injection());
                output = log.clone();
                words.extend(["-b", "execve", "-o", &output, "-e", &trace, "-e", &inject]);
                if let Some(only) = &failing.path {
                    path = only.clone();
                    words.extend(["-P", &path]);
                }
            }
            Self::DelayExec(delay) => {
                inject = format!("inject=execve:delay_enter={}:when=1", delay.as_micros());
                words.extend(["-o", "/dev/null", "-e", "trace=execve", "-e", &inject]);
            }
        }
        words.into_iter().map(str::to_owned).collect()
    }

    /// Returns the words before a command that run it traced, as itself.
    pub(crate) fn wrapper(&self) -> Vec<String> {
        let mut words = self.options();
        words.insert(1, "-D".to_owned());
        words
    }

    /// Attaches to a daemon that runs; `None` where this user may not.
    #[expect(clippy::disallowed_methods, reason = "tests start the injector")]
    pub(crate) fn attach(&self, pid: u32) -> Option<Tracer> {
        let options = self.options();
        let child = Command::new(&options[0])
            .args(&options[1..])
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace; scripts/system-packages installs it");
        let mut tracer = Tracer { child };
        let attached = holds_within(ATTACH_LIMIT, || {
            is_traced(pid) || tracer.child.try_wait().expect("a child").is_some()
        });
        (attached && is_traced(pid)).then_some(tracer)
    }
}

/// A tracer at work. Dropped, it lets go of the daemon.
#[derive(Debug)]
pub(crate) struct Tracer {
    child: Child,
}

impl Drop for Tracer {
    fn drop(&mut self) {
        for signal in [Signal::TERM, Signal::KILL] {
            if holds_within(LET_GO, || self.child.try_wait().expect("a child").is_some()) {
                return;
            }
            signal_to(self.child.id(), signal);
        }
        self.child.wait().expect("a child to wait for");
    }
}

fn is_traced(pid: u32) -> bool {
    let tracers = tracers(pid);
    !tracers.is_empty() && tracers.iter().all(Option::is_some)
}

/// Returns who traces each thread of a process.
fn tracers(pid: u32) -> Vec<Option<u32>> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let tracer = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
        tracer.trim().parse().ok().filter(|pid| *pid != 0)
    };
    tasks.flatten().map(tracer).collect()
}

/// Says whether a process is dead and not reaped yet.
pub(crate) fn is_dead(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Has whoever traces a process let go of it.
pub(crate) fn release(pid: u32) {
    if is_dead(pid) {
        // One that waits for a thread of the dead before another would let go of neither.
        return end_tracers_of(pid);
    }
    let tracers: BTreeSet<u32> = tracers(pid).into_iter().flatten().collect();
    tracers.iter().for_each(|tracer| signal_to(*tracer, Signal::TERM));
    let is_gone =
        |tracer: &u32| is_dead(*tracer) || !Path::new(&format!("/proc/{tracer}")).exists();
    wait_until("the tracer lets go", ATTACH_LIMIT, || tracers.iter().all(is_gone));
}

/// Ends whoever traces a process.
pub(crate) fn end_tracers_of(pid: u32) {
    for tracer in tracers(pid).into_iter().flatten() {
        signal_to(tracer, Signal::KILL);
    }
}

/// Reads thread, name and arguments of a call out of a line that begins one.
pub(crate) fn call(line: &str) -> Option<(&str, &str, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (name, arguments) = rest.trim_start().split_once('(')?;
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name.then_some((thread, name, arguments))
}

/// Reads the points out of a log of calls.
pub(crate) fn points(log: &str) -> Vec<Point> {
    let calls: Vec<(&str, &str)> =
        log.lines().filter_map(call).map(|(thread, name, _)| (thread, name)).collect();
    // Who runs another program is about to be that one; the daemon's own run comes first.
    let daemon = calls.first().map(|(thread, _)| *thread);
    let others: BTreeSet<&str> = calls
        .iter()
        .filter(|(thread, name)| *name == "execve" && Some(*thread) != daemon)
        .map(|(thread, _)| *thread)
        .collect();
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for call in calls.iter().filter(|(thread, name)| *name != "execve" && !others.contains(thread))
    {
        *counts.entry(*call).or_default() += 1;
    }
    let mut most: BTreeMap<&str, u32> = BTreeMap::new();
    for ((_, name), count) in counts {
        let known = most.entry(name).or_default();
        *known = count.max(*known);
    }
    let each = |(name, count): (&str, u32)| {
        let syscall = name.to_owned();
        (1..=count).map(move |nth| Point { syscall: syscall.clone(), nth }).collect::<Vec<_>>()
    };
    most.into_iter().flat_map(each).collect()
}

#[test]
fn points_are_counted_by_thread_and_not_in_what_the_daemon_starts() {
    let log = "10 write(1, \"a\", 1) = 1\n10 fsync(3 <unfinished ...>\n11 write(2, \"b\", 1) = 1\n\
               10 <... fsync resumed>) = 0\n12 write(1, \"\", 0) = 0\n12 execve(\"w\") = 0\n\
               10 write(1, \"c\", 1) = 1\n10 --- SIGCHLD {} ---\n10 +++ exited with 0 +++\n";
    let told: Vec<String> = points(log).iter().map(ToString::to_string).collect();
    assert_eq!(told, ["fsync #1", "write #1", "write #2"]);
}
