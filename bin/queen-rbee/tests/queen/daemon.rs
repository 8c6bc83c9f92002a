//! The real program as a child of the test: started on a home directory and a
//! port of its own, watched, stopped, and never left behind.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rbee_home::{Daemon, Home};
use rbee_tls::Trust;
use reqwest::{Method, RequestBuilder, Response};
use rustix::process::Signal;
use secrets_management::load_or_generate;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// Longest wait for anything that must happen; reached only by a failing test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` gives a value.
///
/// # Panics
/// When it does not within `PATIENCE`.
pub(crate) async fn eventually<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_every(Duration::from_millis(5), what, condition).await
}

/// Waits for a condition that is looked at as rarely as `step` says.
pub(crate) async fn eventually_every<T>(
    step: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < limit, "waited too long: {what}");
        sleep(step).await;
    }
}

/// A home directory that goes away with the test.
pub(crate) struct TestHome {
    directory: TempDir,
    pub(crate) home: Home,
}

impl TestHome {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::open(directory.path()).unwrap();
        Self { directory, home }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn client_token(&self) -> String {
        load_or_generate(&self.home.client_token()).unwrap().expose().to_owned()
    }

    pub(crate) fn hive_token(&self) -> String {
        load_or_generate(&self.home.hive_token()).unwrap().expose().to_owned()
    }

    /// What the program wrote to standard error, all starts on this home together.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path().join("queen.err")).unwrap()
    }

    fn command(&self, settings: &str) -> Command {
        let config = self.path().join("queen.toml");
        fs::write(&config, settings).unwrap();
        let mut command = program();
        command.arg("--home").arg(self.path()).arg("--config").arg(config);
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, settings: &str, arguments: &[&str]) -> Output {
        self.command(settings).args(arguments).output().unwrap()
    }
}

/// The program with an environment that says nothing about rbee.
#[expect(clippy::disallowed_methods, reason = "the test is about the real program")]
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queen-rbee"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RBEE_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", "/nonexistent");
    command
}

/// A running queen.
pub(crate) struct Queen {
    child: Child,
    pub(crate) url: String,
    client_token: String,
    http: reqwest::Client,
}

impl Queen {
    /// Starts one and waits until it listens.
    pub(crate) async fn start(home: &TestHome, settings: &str) -> Self {
        Self::start_with(home, settings, &[]).await
    }

    /// Starts one with more in its environment.
    pub(crate) async fn start_with(
        home: &TestHome,
        settings: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let log = fs::OpenOptions::new();
        let log = log.clone().append(true).create(true).open(home.path().join("queen.err"));
        let child = home
            .command(settings)
            .args(["--bind", "127.0.0.1:0"])
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap();
        let client_token = home.client_token();
        let tls = Trust::nobody().client_config().unwrap();
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy();
        let http = http.build().unwrap();
        let mut queen = Self { child, url: String::new(), client_token, http };
        let pid = queen.child.id();
        queen.url = eventually("the queen writes its run file", async || {
            let run = home.home.read_run_file(Daemon::Queen).unwrap();
            let ended = queen.child.try_wait().unwrap();
            assert!(ended.is_none(), "the queen ended: {}", home.log());
            run.filter(|run| run.pid == pid).map(|run| run.url)
        })
        .await;
        queen
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A request without a credential.
    pub(crate) fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).timeout(PATIENCE)
    }

    /// A request as a client.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(&self.client_token)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn get_json(&self, path: &str) -> Value {
        self.get(path).await.json().await.unwrap()
    }

    /// A chat request for `model`, not yet sent.
    pub(crate) fn chat(&self, model: &str, stream: bool) -> RequestBuilder {
        let messages = serde_json::json!([{"role": "user", "content": "hello"}]);
        self.request(Method::POST, "/v1/chat/completions").json(&serde_json::json!({
            "model": model, "messages": messages, "stream": stream,
        }))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("the queen ends", async || self.child.try_wait().unwrap()).await
    }
}

/// Ends it in good order, so that a hive of its own ends with it, and by force if that takes too long.
impl Drop for Queen {
    fn drop(&mut self) {
        let limit = Instant::now() + PATIENCE;
        // Two different signals: the second one hurries, and equal ones can melt into one.
        for signal in [Signal::TERM, Signal::INT] {
            if matches!(self.child.try_wait(), Ok(None)) {
                self.signal(signal);
            }
        }
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < limit {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        // Fails where the process has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Returns status and error of a reply that is one.
pub(crate) async fn error_of(reply: Response) -> (u16, Value) {
    let status = reply.status().as_u16();
    let body: Value = reply.json().await.unwrap();
    assert!(body["error"]["request_id"].is_string(), "{body}");
    (status, body["error"].clone())
}
