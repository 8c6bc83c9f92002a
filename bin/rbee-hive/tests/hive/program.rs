//! One hive under test: its home, its process, and a client with its token.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use deadline_propagation::Deadline;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelInfo;
use rbee_api::queen::{Removed, RunFile};
use rbee_api::worker::{WorkerInfo, WorkerList, WorkerState};
use rbee_http::{CallError, HopClient, collect};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::processes::{eventually, signal, working_in};
use crate::{gguf, stream};

/// Far more than anything here takes, and short enough to wait for when something is broken.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) fn soon() -> Deadline {
    Deadline::after(LIMIT)
}

/// The home directory of a hive, which outlives it.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// Writes a file beside the home, and returns its path.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// The program with this home, a free port and an environment of its own.
    #[expect(clippy::disallowed_methods, reason = "a test of a program starts the program")]
    pub(crate) fn command(&self, config: &str, arguments: &[&str]) -> Command {
        let worker = worker_program();
        let engine_and_port = "worker_port_first = 0\n";
        let path = self.file("rbee-hive.toml", format!("{engine_and_port}{config}").as_bytes());
        let mut command = Command::new(env!("CARGO_BIN_EXE_rbee-hive"));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.directory.path())
            .env("RBEE_HOME", self.home())
            .env("RBEE_CONFIG", path)
            .env("RBEE_HIVE_BIND", "127.0.0.1:0")
            .env("RBEE_HIVE_WORKER_ENGINE", "echo")
            .env("RBEE_HIVE_WORKER_PATH", worker)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn output(&self, config: &str, arguments: &[&str]) -> Output {
        self.command(config, arguments).output().unwrap()
    }

    pub(crate) async fn start(self) -> Hive {
        self.start_with("", &[]).await
    }

    /// Starts a hive and waits until it serves.
    pub(crate) async fn start_with(self, config: &str, arguments: &[&str]) -> Hive {
        let log = self.directory.path().join("hive.log");
        let log_file = fs::File::options().append(true).create(true).open(&log).unwrap();
        let mut command = self.command(config, arguments);
        command.stdout(log_file.try_clone().unwrap()).stderr(log_file);
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        let home = self.home();
        let mut served = || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(&log).unwrap());
            let text = fs::read(home.join("run/hive.json")).ok()?;
            serde_json::from_slice::<RunFile>(&text).ok().filter(|run| run.pid == pid)
        };
        let run = eventually("the hive serves", LIMIT, || std::future::ready(served())).await;
        let token = secrets_management::load_file(&home.join("secrets/hive.token")).unwrap();
        let client = HopClient::new(&run.url, Arc::new(token)).unwrap();
        Hive { place: Some(self), child, url: run.url, client, log, exit: None }
    }
}

/// The worker lies where cargo puts all programs of the workspace.
pub(crate) fn worker_program() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_rbee-hive")).with_file_name("llm-worker-rbee");
    assert!(path.exists(), "run `cargo build --release -p llm-worker-rbee` first");
    path
}

/// A hive that runs. Dropping it ends it and all its workers.
pub(crate) struct Hive {
    place: Option<Place>,
    child: Child,
    pub(crate) url: String,
    pub(crate) client: HopClient,
    log: PathBuf,
    exit: Option<ExitStatus>,
}

impl Drop for Hive {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if let Some(place) = &self.place {
            for pid in working_in(&place.home()) {
                signal(pid, Signal::KILL);
            }
        }
    }
}

impl Hive {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn place(&self) -> &Place {
        self.place.as_ref().unwrap()
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.place().home()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.url.strip_prefix("http://").unwrap().parse().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let child = &mut self.child;
        let mut poll = || child.try_wait().unwrap();
        let exit = eventually("the hive ends", limit, || std::future::ready(poll())).await;
        self.exit = Some(exit);
        exit
    }

    /// Kills the process and keeps its home and its workers.
    pub(crate) fn kill(mut self) -> Place {
        self.child.kill().unwrap();
        self.exit = Some(self.child.wait().unwrap());
        self.place.take().unwrap()
    }

    pub(crate) async fn get<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
    ) -> Result<T, CallError> {
        self.client.get(path, soon()).await
    }

    /// Gives the home of a hive that has ended back.
    pub(crate) fn into_place(mut self) -> Place {
        assert!(self.exit.is_some(), "the hive runs");
        self.place.take().unwrap()
    }

    /// The text of the metrics.
    pub(crate) async fn metrics(&self) -> String {
        let metrics = self.client.get_stream("/metrics", soon()).await.unwrap();
        String::from_utf8(collect(metrics, soon()).await.unwrap().to_vec()).unwrap()
    }

    /// Imports a tiny model under an alias.
    pub(crate) async fn import(&self, alias: &str) -> ModelInfo {
        self.import_as(alias, alias.as_bytes()[0]).await
    }

    /// Imports a tiny model under an alias, one of its own for each `content`.
    pub(crate) async fn import_as(&self, alias: &str, content: u8) -> ModelInfo {
        let path = self.place().file(&format!("{alias}.gguf"), &gguf::tiny(content));
        let request = json!({"reference": format!("file:{}", path.display()), "alias": alias});
        match stream::pull(&self.client, &request).await.unwrap().pop() {
            Some(rbee_api::model::PullEvent::Done { model }) => model,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn start_worker(&self, model: &str) -> Result<WorkerInfo, Box<ErrorDetail>> {
        refused(self.client.post("/api/v1/workers", &json!({"model": model}), soon()).await)
    }

    pub(crate) async fn workers(&self) -> Vec<WorkerInfo> {
        self.get::<WorkerList>("/api/v1/workers").await.unwrap().workers
    }

    pub(crate) async fn worker(&self, id: &str) -> Option<WorkerInfo> {
        self.workers().await.into_iter().find(|worker| worker.id.as_str() == id)
    }

    /// Waits until a worker is in a state.
    pub(crate) async fn worker_in(&self, id: &str, state: WorkerState) -> WorkerInfo {
        eventually(&format!("{id} is {state:?}"), LIMIT, || async {
            self.worker(id).await.filter(|worker| worker.state == state)
        })
        .await
    }

    /// Imports a model, starts a worker for it and waits until that is ready.
    pub(crate) async fn ready_worker(&self, alias: &str) -> WorkerInfo {
        self.import(alias).await;
        let worker = self.start_worker(alias).await.unwrap();
        self.worker_in(worker.id.as_str(), WorkerState::Ready).await
    }

    pub(crate) async fn stop_worker(&self, id: &str) -> Result<Removed, Box<ErrorDetail>> {
        refused(self.client.delete(&format!("/api/v1/workers/{id}"), soon()).await)
    }

    pub(crate) async fn remove_model(&self, name: &str) -> Result<Removed, Box<ErrorDetail>> {
        refused(self.client.delete(&format!("/api/v1/models/{name}"), soon()).await)
    }

    /// Asks a worker, through the hive, and waits for the whole answer.
    pub(crate) async fn chat(&self, worker: &str, prompt: &str) -> Result<Value, Box<ErrorDetail>> {
        let request = json!({"model": "tiny", "messages": [{"role": "user", "content": prompt}]});
        let path = format!("/api/v1/workers/{worker}/v1/chat/completions");
        refused(self.client.post(&path, &request, soon()).await)
    }
}

/// The value of a metric without labels.
pub(crate) fn value(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

/// Unpacks the hive's own refusal.
pub(crate) fn refused<T>(result: Result<T, CallError>) -> Result<T, Box<ErrorDetail>> {
    result.map_err(|error| match error {
        CallError::Refused(detail) => detail,
        other => panic!("not an answer of rbee: {other:?}"),
    })
}

pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, Box<ErrorDetail>>) -> ErrorCode {
    result.unwrap_err().code
}
