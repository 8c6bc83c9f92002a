//! A queen and two hives on three machines: what the tests of the network begin with.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use e2e::{Finished, wait_until};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::network::{Loss, Network};
use crate::site::{Daemon, HIVE, LIMIT, QUEEN, Site, behind};

/// The machines' names, in the order of the network; the queen's comes first.
const HIVES: [&str; 2] = ["attic", "cellar"];

/// All of it. Hives are counted from 0.
pub(crate) struct Machines {
    queen: Daemon,
    pub(crate) hives: Vec<Daemon>,
    queen_site: Site,
    pub(crate) sites: Vec<Site>,
    network: Network,
}

impl Machines {
    /// Starts everything; each hive has a model of its own, named like the machine, with a
    /// ready worker.
    pub(crate) fn new() -> Self {
        let network = Network::of(1 + HIVES.len());
        // Nobody else has a machine's model: a stream of one that is gone waits in vain.
        let alone = "local_hive = false\ncontinuation_wait_seconds = 2\n";
        let queen_site = Site::with("", &format!("{alone}{QUEEN}"));
        introduce(&queen_site);
        // A port of the network's own, not of this machine.
        let queen_site = queen_site
            .env("RBEE_QUEEN_BIND", "0.0.0.0:8080")
            .env("RBEE_QUEEN_ALLOW_PLAIN_HTTP", "true");
        let queen = queen_site.launch("queen-rbee", &network.machines[0].wrapper());
        wait_until("the queen serves", LIMIT, || queen_site.serves("queen", queen.pid()));
        let mut machines =
            Self { queen, hives: Vec::new(), queen_site, sites: Vec::new(), network };
        for (at, name) in HIVES.iter().enumerate() {
            let (site, hive) = machines.add_hive(at, name);
            machines.sites.push(site);
            machines.hives.push(hive);
        }
        for (at, name) in HIVES.iter().enumerate() {
            wait_until("the queen knows the hive", LIMIT, || machines.is_online(at));
            assert_eq!(machines.infer(name).ok().trim(), "hello");
        }
        machines
    }

    fn add_hive(&self, at: usize, name: &str) -> (Site, Daemon) {
        let queen = format!("http://{}:8080", Network::address(0));
        let site =
            Site::with(&format!("name = \"{name}\"\nqueen_url = \"{queen}\"\n{HIVE}"), QUEEN);
        share_token(&self.queen_site, &site);
        // What needs no network is done before the hive moves into its own.
        let mut outside = site.hive();
        site.import(name, u8::try_from(at).expect("few"));
        outside.signal(Signal::TERM);
        assert!(outside.wait("the hive ends", LIMIT).success());
        let site =
            site.env("RBEE_HIVE_BIND", "0.0.0.0:9200").env("RBEE_HIVE_ALLOW_PLAIN_HTTP", "true");
        let hive = site.launch("rbee-hive", &self.network.machines[at + 1].wrapper());
        wait_until("the hive serves", LIMIT, || site.serves("hive", hive.pid()));
        (site, hive)
    }

    /// Runs the keeper on the queen's machine.
    pub(crate) fn rbee(&self, arguments: &[&str]) -> Finished {
        self.queen_site.cluster.finish(self.keeper(arguments))
    }

    /// A keeper on the queen's machine, not started yet.
    pub(crate) fn keeper(&self, arguments: &[&str]) -> Command {
        self.keeper_on(0, arguments)
    }

    /// A keeper on the machine of a hive, not started yet.
    pub(crate) fn remote_keeper(&self, at: usize, arguments: &[&str]) -> Command {
        let queen = format!("http://{}:8080", Network::address(0));
        let token = self.queen_site.cluster.home().join("secrets/client.token");
        let mut words = arguments.to_vec();
        words.extend(["--queen", &queen, "--token-file", token.to_str().expect("UTF-8")]);
        self.keeper_on(at + 1, &words)
    }

    fn keeper_on(&self, machine: usize, arguments: &[&str]) -> Command {
        let mut command = behind(
            &self.network.machines[machine].wrapper(),
            &self.queen_site.cluster.command("rbee", arguments),
        );
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn infer(&self, model: &str) -> Finished {
        self.rbee(&["infer", "-m", model, "-p", "hello"])
    }

    /// As `infer`, for five seconds at most.
    pub(crate) fn infer_briefly(&self, model: &str) -> Finished {
        self.rbee(&["infer", "-m", model, "-p", "hello", "--timeout", "5"])
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.rbee(&["status", "--json"]).ok()).expect("JSON")
    }

    /// Returns how many requests the queen is serving.
    pub(crate) fn requests_running(&self) -> Option<u64> {
        self.status()["requests_running"].as_u64()
    }

    /// Returns a hive as the queen lists it.
    fn listed(&self, at: usize) -> Value {
        let status = self.status();
        let hives = status["hives"].as_array().expect("a list").clone();
        hives.into_iter().find(|hive| hive["name"] == HIVES[at]).unwrap_or_default()
    }

    pub(crate) fn is_online(&self, at: usize) -> bool {
        self.listed(at)["state"] == "online"
    }

    /// Says whether the queen has heard of a hive since then. One that is listed
    /// as online may still be missed in the next moment.
    pub(crate) fn was_heard_since(&self, at: usize, then: SystemTime) -> bool {
        let since = then.elapsed().expect("a clock");
        let hive = self.listed(at);
        let age = hive["last_heartbeat_age_ms"].as_u64().map(Duration::from_millis);
        hive["state"] == "online" && age.is_some_and(|age| age < since)
    }

    /// Returns how long the queen has not heard of a hive.
    pub(crate) fn silence(&self, at: usize) -> Duration {
        Duration::from_millis(self.listed(at)["last_heartbeat_age_ms"].as_u64().unwrap_or(0))
    }

    /// Returns the ids and processes of all workers, as their machines have them.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.sites
            .iter()
            .flat_map(|site| [site.living("rbee-hive"), site.living("llm-worker-rbee")].concat())
            .map(|process| process.pid)
            .collect()
    }

    pub(crate) fn cut(&mut self, at: usize, loss: Loss) {
        self.network.cut(at + 1, loss);
    }

    pub(crate) fn heal(&mut self, at: usize, loss: Loss) {
        self.network.heal(at + 1, loss);
    }

    pub(crate) fn queen_log(&self) -> String {
        self.queen_site.log("queen-rbee")
    }

    pub(crate) fn queen_is_alive(&mut self) -> bool {
        self.queen.ended().is_none()
    }
}

/// Has the queen make her home, and writes the machines into her database.
fn introduce(site: &Site) {
    let mut queen = site.queen();
    queen.signal(Signal::TERM);
    assert!(queen.wait("the queen ends", LIMIT).success());
    let machines = Connection::open(site.cluster.home().join("beehives.db")).expect("a database");
    for (at, name) in HIVES.iter().enumerate() {
        let url = format!("http://{}:9200", Network::address(at + 1));
        let sql = "INSERT INTO hive (name, url, created_at_ms) VALUES (?1, ?2, 1)";
        machines.execute(sql, (name, url)).expect("a row");
    }
}

fn share_token(from: &Site, to: &Site) {
    let secrets = to.cluster.home().join("secrets");
    let mut directory = fs::DirBuilder::new();
    directory.recursive(true).mode(0o700).create(&secrets).expect("a folder");
    let mut file = fs::File::options();
    let path = secrets.join("hive.token");
    let mut file =
        file.write(true).create(true).truncate(true).mode(0o600).open(path).expect("a file");
    let token = from.cluster.secret("hive.token");
    std::io::Write::write_all(&mut file, token.as_bytes()).expect("a token");
}
