//! A second machine of a cluster: another hive on a home of its own, which the
//! queen reaches by its address.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::http::Http;
use crate::wait::wait_for;

/// Longest wait for a program to start.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A hive beside the queen's own.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    home: PathBuf,
    token: String,
}

/// Returns an address at which nobody listens now, for a program whose address
/// others have to know before it starts.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

impl Cluster {
    /// Adds a machine with its own hive, which reports to the queen at
    /// `queen_address`, and starts the queen anew, who knows it from then on.
    ///
    /// # Panics
    /// When a program does not start.
    #[must_use]
    pub fn add_machine(&self, name: &str, queen_address: &str) -> Machine {
        drop(self.rbee(&["queen", "stop"]).ok());
        let home = self.home().with_file_name(format!("rbee-{name}"));
        let token = self.secret("hive.token");
        make_private(&home.join("secrets"));
        let secret = home.join("secrets/hive.token");
        fs::write(&secret, &token).expect("a token");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("a private file");
        let child = self
            .command("rbee-hive", &[])
            .env("RBEE_HOME", &home)
            .env("RBEE_HIVE_NAME", name)
            .env("RBEE_HIVE_QUEEN_URL", format!("http://{queen_address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a hive starts");
        let machine = Machine { child, home, token };
        let url = machine.url();
        let machines =
            rusqlite::Connection::open(self.home().join("beehives.db")).expect("a database");
        machines.execute("INSERT INTO hive VALUES (?1, ?2, 1)", (name, &url)).expect("a row");
        drop(self.rbee(&["queen", "start"]).ok());
        machine
    }
}

impl Machine {
    /// Returns a client of its hive.
    ///
    /// # Panics
    /// When the hive does not run.
    #[must_use]
    pub fn hive(&self) -> Http {
        Http::new(&self.url(), Some(&self.token))
    }

    /// Imports a model file.
    ///
    /// # Panics
    /// When the import fails.
    pub fn import(&self, file: &Path, alias: &str) {
        let body = json!({"reference": format!("file:{}", file.display()), "alias": alias});
        let reply = self.hive().post("/api/v1/models/pull", &body);
        assert!(reply.body.contains("\"done\""), "{}", reply.body);
    }

    fn url(&self) -> String {
        wait_for("the hive writes its run file", START_LIMIT, || {
            let text = fs::read_to_string(self.home.join("run/hive.json")).ok()?;
            let run: Value = serde_json::from_str(&text).ok()?;
            Some(run["url"].as_str()?.to_owned())
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The cluster ends its workers, as all processes of its homes.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn make_private(directory: &Path) {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.expect("a folder");
}
