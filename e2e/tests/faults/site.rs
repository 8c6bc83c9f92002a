//! One home with the daemons that a test starts, kills and starts again by itself.
//! Owns their processes; decides no fault.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use e2e::{Cluster, Http, Process, Reply, TinyKind, holds_within, tiny_gguf, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::tracing;

/// Far more than any step here takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// How long a tracer may take to let go of a daemon that was killed.
const PATIENCE: Duration = Duration::from_secs(1);
/// Replies that take longer are none: who was stopped does not answer.
const REPLY_LIMIT: Duration = Duration::from_secs(30);
/// What every hive of this suite is told: contacts that are short enough to wait for,
/// no worker that ends by itself, and little memory for each.
pub(crate) const HIVE: &str = "heartbeat_interval_seconds = 1\nidle_stop_seconds = 0\n\
                               stop_grace_seconds = 2\nworkers_max = 64\n[worker]\ncache_ram_mib = 0\n";
/// No breaker: failures outlive a hive, and who kills workers again and again would open it.
const UNBROKEN: &str = "[restart]\nfailures_max = 1000\ndelay_ms = 10\ndelay_max_ms = 10\n";
/// What every queen of this suite is told.
pub(crate) const QUEEN: &str = "heartbeat_interval_seconds = 1\ndrain_seconds = 2\n";

/// A daemon that a test has started.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without asking; one that has ended already is no error.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().expect("a child to wait for");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        signal_to(self.pid(), signal);
    }

    /// Returns how it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child to wait for")
    }

    /// Says whether it has ended or is about to.
    pub(crate) fn is_over(&mut self) -> bool {
        self.ended().is_some() || tracing::is_dead(self.pid())
    }

    /// Says whether somebody has killed it.
    pub(crate) fn was_killed(&mut self) -> bool {
        if tracing::is_dead(self.pid()) && !holds_within(PATIENCE, || self.ended().is_some()) {
            // A tracer that waits for one of its threads before another keeps it from being reaped.
            tracing::end_tracers_of(self.pid());
            self.wait("the daemon is reaped", LIMIT);
        }
        self.ended().is_some_and(|status| status.signal() == Some(Signal::KILL.as_raw()))
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self, what: &str, limit: Duration) -> ExitStatus {
        wait_for(what, limit, || self.ended())
    }
}

impl From<Child> for Daemon {
    fn from(child: Child) -> Self {
        Self { child }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A home and what runs in it.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(&format!("{HIVE}{UNBROKEN}"), QUEEN)
    }

    pub(crate) fn with(hive: &str, queen: &str) -> Self {
        Self { cluster: Cluster::echo().config("rbee-hive", hive).config("queen-rbee", queen) }
    }

    /// Adds an environment variable for every program.
    pub(crate) fn env(self, name: &str, value: &str) -> Self {
        Self { cluster: self.cluster.env(name, value) }
    }

    /// Starts a daemon behind `wrapper`, a command that ends in running it as itself.
    /// Does not wait for it.
    pub(crate) fn launch(&self, program: &str, wrapper: &[String]) -> Daemon {
        self.launch_with(program, &[], wrapper)
    }

    /// As `launch`, with arguments.
    pub(crate) fn launch_with(
        &self,
        program: &str,
        arguments: &[&str],
        wrapper: &[String],
    ) -> Daemon {
        let directory = self.cluster.home().parent().expect("a parent").to_owned();
        let log = directory.join(format!("{program}.log"));
        let log = File::options().append(true).create(true).open(log).expect("a log");
        let mut command = behind(wrapper, &self.cluster.command(program, arguments));
        command.stdout(log.try_clone().expect("a log")).stderr(log).stdin(Stdio::null());
        Daemon { child: command.spawn().expect("a program that starts") }
    }

    /// Starts a hive without a queen and waits until it serves.
    pub(crate) fn hive(&self) -> Daemon {
        self.started("rbee-hive", "hive")
    }

    /// Starts a queen and waits until she serves.
    pub(crate) fn queen(&self) -> Daemon {
        self.started("queen-rbee", "queen")
    }

    fn started(&self, program: &str, name: &str) -> Daemon {
        let mut daemon = self.launch(program, &[]);
        wait_for(&format!("{program} serves"), LIMIT, || {
            if let Some(status) = daemon.ended() {
                panic!("{program} ended with {status}: {}", self.log(program));
            }
            self.serves(name, daemon.pid()).then_some(())
        });
        daemon
    }

    /// Says whether the daemon with this pid has told its address.
    pub(crate) fn serves(&self, name: &str, pid: u32) -> bool {
        let written = std::fs::read(self.cluster.home().join(format!("run/{name}.json")));
        let run = written.ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        run.is_some_and(|run| run["pid"] == pid)
    }

    /// Returns what a daemon that a test started has logged.
    pub(crate) fn log(&self, program: &str) -> String {
        let directory = self.cluster.home().parent().expect("a parent").to_owned();
        std::fs::read_to_string(directory.join(format!("{program}.log"))).unwrap_or_default()
    }

    /// A client of the hive that does not wait for ever.
    pub(crate) fn to_hive(&self) -> Http {
        let token = self.cluster.secret("hive.token");
        Http::patient(&self.cluster.url("hive"), Some(&token), REPLY_LIMIT)
    }

    /// A client of the queen that does not wait for ever.
    pub(crate) fn to_queen(&self) -> Http {
        let token = self.cluster.secret("client.token");
        Http::patient(&self.cluster.url("queen"), Some(&token), REPLY_LIMIT)
    }

    /// As `to_queen`; `None` while no queen has told her address.
    pub(crate) fn try_to_queen(&self) -> Option<Http> {
        let written = std::fs::read(self.cluster.home().join("run/queen.json")).ok()?;
        let run: Value = serde_json::from_slice(&written).ok()?;
        let token = self.cluster.secret("client.token");
        Some(Http::patient(run["url"].as_str()?, Some(&token), REPLY_LIMIT))
    }

    /// Has the hive import a tiny model; `salt` makes models differ.
    pub(crate) fn import(&self, alias: &str, salt: u8) {
        let file = self.cluster.home().parent().expect("a parent").join(format!("{alias}.gguf"));
        std::fs::write(&file, tiny_gguf(salt, TinyKind::Generate)).expect("a model file");
        let reply = self.pull(alias, &file);
        assert!(reply.contains("\"done\""), "{reply}");
    }

    /// Asks the hive to import a file, and returns its whole reply.
    pub(crate) fn pull(&self, alias: &str, file: &Path) -> String {
        let body = json!({"reference": format!("file:{}", file.display()), "alias": alias});
        self.to_hive().post("/api/v1/models/pull", &body).body
    }

    /// Asks the hive for a worker; `None` when it dies over it.
    pub(crate) fn ask_for_worker(&self, model: &str) -> Option<Value> {
        let reply = self.try_for_worker(model)?;
        assert_eq!(reply.status, 200, "{}", reply.body);
        Some(reply.json())
    }

    /// As `ask_for_worker`, whatever the hive answers.
    pub(crate) fn try_for_worker(&self, model: &str) -> Option<Reply> {
        self.to_hive().try_call("POST", "/api/v1/workers", Some(&json!({"model": model})))
    }

    /// Has the hive start a worker and waits until it is ready.
    pub(crate) fn ready_worker(&self, model: &str) -> Value {
        let worker = self.ask_for_worker(model).expect("a reply");
        let id = worker["id"].as_str().expect("an id").to_owned();
        wait_for("the worker is ready", LIMIT, || {
            self.listed()?.into_iter().find(|worker| worker["id"] == id && is_ready(worker))
        })
    }

    /// Returns the workers as the hive lists them; `None` when it does not answer.
    pub(crate) fn listed(&self) -> Option<Vec<Value>> {
        let reply = self.to_hive().try_call("GET", "/api/v1/workers", None)?;
        Some(reply.json()["workers"].as_array().expect("a list").clone())
    }

    /// Looks through all logs: nobody has panicked.
    pub(crate) fn assert_no_panic(&self, context: &str) {
        let home = self.cluster.home();
        let folders = [home.join("logs"), home.parent().expect("a parent").to_owned()];
        let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
        let logs = entries.flatten().map(|entry| entry.path());
        for log in logs.filter(|path| path.extension().is_some_and(|e| e == "log")) {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let panic = text.lines().find(|line| line.contains("panicked at"));
            assert_eq!(panic, None, "{context}: {}", log.display());
        }
    }

    /// Returns the living processes of one program in this home.
    pub(crate) fn living(&self, program: &str) -> Vec<Process> {
        let mut living = self.cluster.processes();
        living.retain(|process| process.program == program && process.state != 'Z');
        living
    }
}

pub(crate) fn is_ready(worker: &Value) -> bool {
    worker["state"] == "ready"
}

/// Returns the pid in a listing, 0 where there is none.
pub(crate) fn pid_of(worker: &Value) -> u32 {
    worker["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
}

/// Signals a process that the test itself has started, or that its home owns.
pub(crate) fn signal_to(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    // It may have ended between the look and the signal.
    rustix::process::kill_process(pid, signal).ok();
}

/// Puts a command behind another one that runs it, with the same environment.
#[expect(clippy::disallowed_methods, reason = "tests start the programs under test")]
pub(crate) fn behind(wrapper: &[String], command: &Command) -> Command {
    let mut words = wrapper.iter().map(std::convert::AsRef::as_ref).collect::<Vec<_>>();
    words.push(command.get_program());
    words.extend(command.get_args());
    let mut wrapped = Command::new(words[0]);
    wrapped.args(&words[1..]).env_clear();
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped
}
