//! A cluster of the real programs in a home of its own, on ports of its own.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::gguf::{TinyKind, tiny_gguf};
use crate::http::Http;
use crate::leaks::leaks;
use crate::process::{Process, processes_of};
use crate::wait::{pause, wait_for, wait_until};

/// The alias of the starter model.
pub const STARTER_MODEL: &str = "smollm2:135m";
/// Longer than any single command in a test.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// Returns the path of a built program.
///
/// # Panics
/// When it is not built.
#[must_use]
pub fn bin(program: &str) -> PathBuf {
    // Tests run from target/release/deps; the programs lie one folder up.
    let tests = std::env::current_exe().expect("a path of its own");
    let path = tests.ancestors().nth(2).expect("a target folder").join(program);
    assert!(path.exists(), "{} is missing; run `make build`", path.display());
    path
}

/// Returns the file of the starter model.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn starter_model_file() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/rbee-test/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "the starter model is missing; run `make model`");
    path.canonicalize().expect("a real path")
}

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// Exit status, or 128 plus the signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Returns standard output.
    ///
    /// # Panics
    /// When the command failed.
    #[must_use]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
}

/// A home and everything that runs in it; dropped, it stops all of that.
#[derive(Debug)]
pub struct Cluster {
    directory: TempDir,
    environment: Vec<(String, String)>,
    /// Released when everything has been stopped.
    turn: Option<MutexGuard<'static, ()>>,
}

/// Held by the one cluster that computes: two at once on few cores only slow
/// each other down, and then every limit in every test is wrong.
static COMPUTING: Mutex<()> = Mutex::new(());

impl Cluster {
    /// Prepares a home whose workers use the echo engine. Nothing runs yet.
    ///
    /// # Panics
    /// When the home cannot be made.
    #[must_use]
    pub fn echo() -> Self {
        Self::new(&[("RBEE_HIVE_WORKER_ENGINE", "echo")])
    }

    /// Prepares a home whose workers use llama.cpp. Nothing runs yet.
    ///
    /// # Panics
    /// When the home cannot be made.
    #[must_use]
    pub fn llama() -> Self {
        let turn = COMPUTING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cluster = Self::new(&[("RBEE_HIVE_WORKER_ENGINE", "llama")]);
        cluster.turn = Some(turn);
        cluster
    }

    fn new(environment: &[(&str, &str)]) -> Self {
        let cluster = Self {
            directory: TempDir::new().expect("a home"),
            environment: Vec::new(),
            turn: None,
        };
        let ports = [
            ("RBEE_QUEEN_BIND", "127.0.0.1:0"),
            ("RBEE_HIVE_BIND", "127.0.0.1:0"),
            ("RBEE_HIVE_WORKER_PORT_FIRST", "0"),
        ];
        ports
            .iter()
            .chain(environment)
            .fold(cluster, |cluster, (name, value)| cluster.env(name, value))
    }

    /// Adds an environment variable for every program.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes a config file for one program, where it looks by default.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn config(self, program: &str, toml: &str) -> Self {
        let directory = self.directory.path().join(".config/rbee");
        fs::create_dir_all(&directory).expect("a config folder");
        fs::write(directory.join(format!("{program}.toml")), toml).expect("a config file");
        self
    }

    /// Returns `$RBEE_HOME`.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("rbee")
    }

    /// Prepares a program with the cluster's environment and nothing else of ours.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "tests start the programs under test")]
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(bin(program));
        self.prepare(command.args(arguments));
        command
    }

    /// Runs lines of shell as a user would, with the built programs on the search path.
    ///
    /// # Panics
    /// When there is no shell.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "documents tell lines of shell to type")]
    pub fn shell(&self, script: &str) -> Finished {
        let programs = bin("rbee").parent().expect("a folder").display().to_string();
        let mut command = Command::new("/bin/sh");
        self.prepare(command.args(["-euc", script]));
        command.env("PATH", format!("{programs}:/usr/bin:/bin"));
        self.finish(command)
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env_clear()
            .env("HOME", self.directory.path())
            .env("PATH", "/usr/bin:/bin")
            .env("RBEE_HOME", self.home())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    /// Runs `rbee` to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    #[must_use]
    pub fn rbee(&self, arguments: &[&str]) -> Finished {
        finish(self.command("rbee", arguments).spawn().expect("rbee starts"))
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    #[must_use]
    pub fn finish(&self, mut command: Command) -> Finished {
        finish(command.spawn().expect("a program that starts"))
    }

    /// Runs `rbee` to its end with `input` on its standard input.
    ///
    /// # Panics
    /// When it cannot be started or does not end.
    #[must_use]
    pub fn rbee_with_input(&self, arguments: &[&str], input: &[u8]) -> Finished {
        let mut child =
            self.command("rbee", arguments).stdin(Stdio::piped()).spawn().expect("rbee starts");
        child.stdin.take().expect("a pipe").write_all(input).expect("it reads its input");
        finish(child)
    }

    /// Puts a tiny model file into the home's parent and imports it as `alias`.
    ///
    /// # Panics
    /// When the import fails.
    pub fn import_tiny(&self, alias: &str) {
        self.import_tiny_of(alias, TinyKind::Generate);
    }

    /// As `import_tiny`, a model of some kind.
    ///
    /// # Panics
    /// When the import fails.
    pub fn import_tiny_of(&self, alias: &str, kind: TinyKind) {
        let file = self.directory.path().join(format!("{}.gguf", alias.replace(':', "-")));
        let salt = alias.bytes().fold(0_u8, u8::wrapping_add);
        fs::write(&file, tiny_gguf(salt, kind)).expect("a model file");
        let path = file.to_str().expect("a UTF-8 path");
        drop(self.rbee(&["pull", path, "--name", alias]).ok());
    }

    /// Imports the starter model.
    ///
    /// # Panics
    /// When the import fails.
    pub fn import_starter(&self) {
        let file = starter_model_file();
        let path = file.to_str().expect("a UTF-8 path");
        drop(self.rbee(&["pull", path, "--name", STARTER_MODEL]).ok());
    }

    /// Returns a client of the queen with the client token.
    ///
    /// # Panics
    /// When no queen runs.
    #[must_use]
    pub fn queen(&self) -> Http {
        self.caller("queen", &self.secret("client.token"))
    }

    /// Returns a client of the hive with the hive token.
    ///
    /// # Panics
    /// When no hive runs.
    #[must_use]
    pub fn hive(&self) -> Http {
        self.caller("hive", &self.secret("hive.token"))
    }

    /// Returns a client of a daemon with some token, which knows it by the CA of the home where it speaks TLS.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn caller(&self, name: &str, token: &str) -> Http {
        let url = self.url(name);
        if url.starts_with("https:") {
            Http::trusting(&url, Some(token), &self.ca())
        } else {
            Http::new(&url, Some(token))
        }
    }

    /// Returns the certificate of the CA of the home.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn ca(&self) -> String {
        fs::read_to_string(self.home().join("tls/ca.pem")).expect("a CA")
    }

    /// Returns the address that `run/<name>.json` tells. A hive may be about to start: its queen answers before it does.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        let file = format!("run/{name}.json");
        let path = self.home().join(&file);
        let text = wait_for(&file, Duration::from_secs(20), || fs::read_to_string(&path).ok());
        let run: Value = serde_json::from_str(&text).expect("JSON");
        run["url"].as_str().expect("a URL").to_owned()
    }

    /// Returns a secret of the home.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn secret(&self, file: &str) -> String {
        let path = self.home().join("secrets").join(file);
        fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            .trim()
            .to_owned()
    }

    /// Returns the processes of the home.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes_of(self.directory.path())
    }

    /// Waits for the one process of a program and returns it.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn process(&self, program: &str) -> Process {
        wait_for(program, Duration::from_secs(10), || {
            self.processes().into_iter().find(|p| p.program == program && p.state != 'Z')
        })
    }

    /// Returns the workers as the queen lists them.
    ///
    /// # Panics
    /// When no queen runs.
    #[must_use]
    pub fn workers(&self) -> Vec<Value> {
        let reply = self.queen().get("/api/v1/workers");
        reply.json()["workers"].as_array().expect("a list").clone()
    }

    /// Waits until no process of the home is left, and none is a zombie.
    ///
    /// # Panics
    /// When one is.
    pub fn wait_until_empty(&self, limit: Duration) {
        wait_until("no process of the home is left", limit, || self.processes().is_empty());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let leaks = leaks(self.directory.path(), &self.processes());
        self.stop();
        // A test that has failed says why itself.
        assert!(leaks.is_empty() || std::thread::panicking(), "{leaks:#?}");
    }
}

impl Cluster {
    fn stop(&self) {
        for (signal, limit) in [(Signal::TERM, 15), (Signal::KILL, 5)] {
            for process in self.processes() {
                process.signal(signal);
            }
            let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.wait_until_empty(Duration::from_secs(limit));
            }));
            if gone.is_ok() {
                return;
            }
        }
    }
}

/// Waits for a command and keeps what it said; kills it at the limit.
fn finish(mut child: Child) -> Finished {
    use std::os::unix::process::ExitStatusExt;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let start = SystemTime::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child to wait for") {
            break status;
        }
        if start.elapsed().is_ok_and(|waited| waited > COMMAND_LIMIT) {
            child.kill().expect("a child to kill");
        }
        pause();
    };
    Finished {
        code: status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1),
        stdout: stdout.join().expect("standard output"),
        stderr: stderr.join().expect("standard error"),
    }
}

/// Reads a pipe to its end beside the test, so that a talkative command cannot block.
fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).expect("a pipe to read");
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
