//! A queen with two machines, each with a worker for the same file: what a stream needs to
//! outlive one of them. Breaks nothing itself.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::{Cluster, STARTER_MODEL, starter_model_file};
use crate::http::Http;
use crate::machines::{Machine, free_address};
use crate::process::Process;
use crate::wait::wait_until;

/// Longest wait for the workers.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Both machines.
#[derive(Debug)]
pub struct Pair {
    // Ends before the cluster, which ends what it leaves behind.
    attic: Machine,
    /// The queen and her own machine.
    pub cluster: Cluster,
    model: &'static str,
}

impl Pair {
    /// Starts machines with an echo worker each; `hive` is the config of both hives.
    ///
    /// # Panics
    /// When a program does not start.
    #[must_use]
    pub fn echo(hive: &str) -> Self {
        Self::echo_under(hive, "")
    }

    /// The same with a config of the queen's.
    ///
    /// # Panics
    /// When a program does not start.
    #[must_use]
    pub fn echo_under(hive: &str, queen: &str) -> Self {
        let address = free_address();
        let cluster = Cluster::echo()
            .env("RBEE_QUEEN_BIND", &address)
            .config("rbee-hive", hive)
            .config("queen-rbee", queen);
        cluster.import_tiny("tiny");
        let file = cluster.home().with_file_name("tiny.gguf");
        Self::start(cluster, &address, file, "tiny")
    }

    /// Starts machines with a worker of the starter model each; `hive` is the config of
    /// both hives.
    ///
    /// # Panics
    /// When a program does not start.
    #[must_use]
    pub fn llama(hive: &str) -> Self {
        let address = free_address();
        let cluster = Cluster::llama().env("RBEE_QUEEN_BIND", &address).config("rbee-hive", hive);
        cluster.import_starter();
        Self::start(cluster, &address, starter_model_file(), STARTER_MODEL)
    }

    fn start(cluster: Cluster, address: &str, file: PathBuf, model: &'static str) -> Self {
        let attic = cluster.add_machine("attic", address);
        attic.import(&file, model);
        let pair = Self { attic, cluster, model };
        pair.ask_for_workers();
        pair.wait_until_warm();
        pair
    }

    /// Returns the name of the model that both have.
    #[must_use]
    pub fn model(&self) -> &'static str {
        self.model
    }

    /// Returns both machines.
    #[must_use]
    pub fn hives(&self) -> [Http; 2] {
        [self.cluster.hive(), self.attic.hive()]
    }

    /// Has the machine whose worker is gone start another one.
    ///
    /// # Panics
    /// When a hive refuses.
    pub fn ask_for_workers(&self) {
        for hive in self.hives() {
            let reply = hive.post("/api/v1/workers", &json!({"model": self.model}));
            assert!(reply.status < 300, "{}", reply.body);
        }
    }

    /// Returns how many workers the queen knows to be ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.cluster.workers().iter().filter(|worker| worker["state"] == "ready").count()
    }

    /// Waits until both workers live, are ready and have nothing to do.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_until_warm(&self) {
        wait_until("two workers are ready and idle", READY_LIMIT, || {
            let (workers, living) = (self.cluster.workers(), self.worker_processes());
            let is_warm = |worker: &&Value| {
                worker["state"] == "ready"
                    && worker["slots_available"] == worker["slots_total"]
                    && living.iter().any(|process| worker["pid"] == process.pid)
            };
            workers.iter().filter(is_warm).count() == 2
        });
    }

    /// Returns the living processes of the workers.
    #[must_use]
    pub fn worker_processes(&self) -> Vec<Process> {
        let all = self.cluster.processes().into_iter();
        all.filter(|process| process.program == "llm-worker-rbee" && process.state != 'Z').collect()
    }

    /// Returns the process of a worker that has a request, as the queen counts it.
    #[must_use]
    pub fn busy_worker(&self) -> Option<Process> {
        let workers = self.cluster.workers();
        let mut busy =
            workers.iter().filter(|worker| worker["slots_available"] != worker["slots_total"]);
        let pid = busy.next()?["pid"].as_u64()?;
        self.worker_processes().into_iter().find(|process| u64::from(process.pid) == pid)
    }
}
