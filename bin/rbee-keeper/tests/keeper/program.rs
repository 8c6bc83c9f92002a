//! The program under test: started with an environment of its own, and never waited for without a limit.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

/// Far more than any step takes; a test that gets here has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// How a run ended and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Parses standard output as one JSON value.
    pub(crate) fn json(&self) -> serde_json::Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Waits for `work` within the limit.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what} took longer than {LIMIT:?}"),
    }
}

/// One way to call the program.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    home: PathBuf,
    env: Vec<(String, String)>,
}

impl Program {
    /// `home` becomes both the user's home and, under `rbee`, that of rbee.
    pub(crate) fn new(home: &Path) -> Self {
        Self::at(Path::new(env!("CARGO_BIN_EXE_rbee")), home)
    }

    /// Calls a copy of the program at `path`.
    pub(crate) fn at(path: &Path, home: &Path) -> Self {
        let env = vec![("RBEE_HOME".to_owned(), home.join("rbee").display().to_string())];
        Self { path: path.to_owned(), home: home.to_owned(), env }
    }

    /// Sets a variable; an empty one counts as absent.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    #[expect(clippy::disallowed_methods, reason = "a test of a program starts the program")]
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", &self.home)
            .envs(self.env.iter().map(|(name, value)| (OsStr::new(name), OsStr::new(value))))
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs to the end.
    pub(crate) async fn run(&self, args: &[&str]) -> Ended {
        end(self.command(args).spawn().unwrap()).await
    }

    /// Runs to the end with `input` on standard input.
    pub(crate) async fn run_with_input(&self, args: &[&str], input: &[u8]) -> Ended {
        use tokio::io::AsyncWriteExt as _;
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that refuses its arguments does not read on.
        stdin.write_all(input).await.ok();
        drop(stdin);
        end(child).await
    }
}

/// Waits for the end of a child and collects what it said.
pub(crate) async fn end(mut child: Child) -> Ended {
    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    let out = child.stdout.take();
    let err = child.stderr.take();
    let read_out = async {
        if let Some(mut out) = out {
            out.read_to_end(&mut stdout).await.unwrap();
        }
    };
    let read_err = async {
        if let Some(mut err) = err {
            err.read_to_end(&mut stderr).await.unwrap();
        }
    };
    let ((), (), status) =
        within("the program", async { tokio::join!(read_out, read_err, child.wait()) }).await;
    Ended {
        code: status.unwrap().code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// Reads from `source` until `wanted` has come, and returns everything up to then.
pub(crate) async fn read_until(
    source: &mut (impl tokio::io::AsyncRead + Unpin),
    wanted: &str,
) -> String {
    let mut seen = Vec::new();
    within(&format!("reading up to {wanted:?}"), async {
        while !String::from_utf8_lossy(&seen).contains(wanted) {
            let mut piece = [0; 4096];
            let count = source.read(&mut piece).await.unwrap();
            assert_ne!(count, 0, "no {wanted:?} in {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&piece[..count]);
        }
    })
    .await;
    String::from_utf8_lossy(&seen).into_owned()
}

/// Sends a signal to a child that has not been waited for, so that its id is its own.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}
