//! Starts the real worker as its hive does: socket as descriptor 3, secrets on
//! standard input; watches it end. Kills it when dropped.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use rbee_api::worker::{WorkerSecrets, WorkerStatus};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::client::Client;
use crate::hive::FakeHive;

pub(crate) const WORKER_ID: &str = "w-test";
pub(crate) const TOKEN: &str = "worker-token-canary-0123456789";
pub(crate) const CALLBACK_TOKEN: &str = "callback-token-canary-0123456789";
pub(crate) const MODEL: &str = "echo:test";

/// Longest that anything in these tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    pub(crate) client: Client,
    pub(crate) hive: FakeHive,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A command for the worker's program.
pub(crate) fn program() -> Command {
    #[expect(clippy::disallowed_methods, reason = "the test is the worker's parent")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_llm-worker-rbee"));
    command.env("RBEE_LOG", "debug").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The secrets as the hive writes them.
pub(crate) fn secrets() -> Vec<u8> {
    let secrets = WorkerSecrets {
        token: TOKEN.to_owned(),
        callback_token: CALLBACK_TOKEN.to_owned(),
        audit_key: None,
    };
    serde_json::to_vec(&secrets).unwrap()
}

/// Starts a program with a listening socket and an input, and returns the
/// socket's address with it.
pub(crate) fn spawn(mut command: Command, input: &[u8]) -> (Child, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mapping = FdMapping { parent_fd: listener.into(), child_fd: 3 };
    command.fd_mappings(vec![mapping]).unwrap();
    let mut child = command.env("LISTEN_FDS", "1").stdin(Stdio::piped()).spawn().unwrap();
    // A program that refuses its arguments does not read its input.
    child.stdin.take().unwrap().write_all(input).ok();
    (child, url)
}

/// Runs a program to its end.
pub(crate) fn run(command: Command, input: &[u8]) -> Output {
    let (child, _) = spawn(command, input);
    child.wait_with_output().unwrap()
}

impl Worker {
    /// Starts an echo worker and waits until it has reported to its hive.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        Self::start_engine(&[&["--engine=echo"], arguments].concat()).await
    }

    /// Starts a worker and waits until it has reported to its hive.
    pub(crate) async fn start_engine(arguments: &[&str]) -> Self {
        let worker = Self::begin(arguments).await;
        eventually("the worker reports to its hive", async || {
            worker.hive.reports(|reports| !reports.ready.is_empty()).then_some(())
        })
        .await;
        worker
    }

    /// Starts a worker and does not wait for it.
    pub(crate) async fn begin(arguments: &[&str]) -> Self {
        let hive = FakeHive::start().await;
        let mut command = program();
        command
            .args(["--worker-id", WORKER_ID, "--model-name", MODEL])
            .args(["--model-name", "file:/models/echo.gguf", "--hive-url", &hive.url])
            .args(arguments)
            .stderr(Stdio::null());
        let (child, url) = spawn(command, &secrets());
        Self { child, client: Client::new(&url, Some(TOKEN)), hive }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The memory it has in use, in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let child = std::cell::RefCell::new(&mut self.child);
        eventually("the worker ends", async || child.borrow_mut().try_wait().unwrap()).await
    }

    pub(crate) async fn status(&self) -> WorkerStatus {
        self.client.get("/api/v1/status").await.json()
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> u32 {
        let metrics = self.client.get("/metrics").await.body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        assert!(value.is_some(), "{name} is not in\n{metrics}");
        value.unwrap().parse().unwrap()
    }

    /// Waits until the status is as wanted, and returns how long that took.
    pub(crate) async fn until(
        &self,
        what: &str,
        wanted: impl Fn(&WorkerStatus) -> bool,
    ) -> Duration {
        let started = Instant::now();
        eventually(what, async || wanted(&self.status().await).then_some(())).await;
        started.elapsed()
    }

    /// Waits until the engine, having begun, computes nothing between two looks, and returns its steps.
    pub(crate) async fn pauses(&self) -> u64 {
        let mut steps = 0;
        eventually("the engine pauses", async || {
            let before = std::mem::replace(&mut steps, self.status().await.engine_steps);
            // As long as many steps take.
            tokio::time::sleep(Duration::from_millis(50)).await;
            (steps > 0 && before == steps).then_some(steps)
        })
        .await
    }
}

/// The signal that ended a process.
pub(crate) fn died_by(status: ExitStatus) -> Option<Signal> {
    status.signal().and_then(Signal::from_named_raw)
}

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
