//! Machines that are paired: how one gets in, what it does then, and what a thief can do with what it holds.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use e2e::{Cluster, Finished, Http, Reply, free_address, tiny_gguf, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Longest wait for a program, or for a machine to be heard of.
const LIMIT: Duration = Duration::from_secs(30);
/// Within this long a machine that is forgotten is believed no more.
const FORGOTTEN: Duration = Duration::from_secs(1);

/// A queen who speaks TLS and has no hive of her own.
fn queen() -> Cluster {
    queen_who_hears(1)
}

/// The same, to whom machines report every so many seconds.
fn queen_who_hears(seconds: u32) -> Cluster {
    let interval = format!("heartbeat_interval_seconds = {seconds}\n");
    let settings = format!("local_hive = false\n{interval}[tls]\nmode = 'local'\n");
    // The machines keep her address.
    let cluster = Cluster::echo()
        .env("RBEE_QUEEN_BIND", &free_address())
        .config("queen-rbee", &settings)
        .config("rbee-hive", &interval);
    drop(cluster.rbee(&["queen", "start"]).ok());
    cluster
}

fn code_for(cluster: &Cluster, name: &str) -> String {
    cluster.rbee(&["hive", "pair", name]).ok().trim().to_owned()
}

/// Another machine: a home and an address of its own.
struct Machine<'c> {
    cluster: &'c Cluster,
    home: PathBuf,
    address: String,
    hive: Option<Child>,
}

impl<'c> Machine<'c> {
    fn new(cluster: &'c Cluster, name: &str) -> Self {
        let home = cluster.home().with_file_name(format!("rbee-{name}"));
        fs::DirBuilder::new().mode(0o700).create(&home).expect("a home");
        let free = TcpListener::bind("127.0.0.2:0").expect("a free port");
        let address = free.local_addr().expect("an address").to_string();
        Self { cluster, home, address, hive: None }
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.cluster.command("rbee-hive", arguments);
        command.env("RBEE_HOME", &self.home).env("RBEE_HIVE_BIND", &self.address);
        command
    }

    /// Types a code.
    fn pair(&self, code: &str) -> Finished {
        let mut command = self.command(&["--pair"]);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
        let typed = child.stdin.take().expect("a pipe").write_all(format!("{code}\n").as_bytes());
        typed.ok();
        let output = child.wait_with_output().expect("it ends");
        Finished {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn start(&mut self) -> String {
        let mut command = self.command(&[]);
        let hive = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let pid = hive.id();
        self.hive = Some(hive);
        let run = self.home.join("run/hive.json");
        let told = || {
            let run: Value = serde_json::from_str(&fs::read_to_string(&run).ok()?).ok()?;
            (run["pid"] == pid).then(|| run["url"].as_str().expect("a URL").to_owned())
        };
        e2e::wait_for("the hive writes its run file", LIMIT, told)
    }

    fn stop(&mut self) {
        if let Some(mut hive) = self.hive.take() {
            let pid = rustix::process::Pid::from_child(&hive);
            rustix::process::kill_process(pid, Signal::TERM).expect("a signal");
            hive.wait().expect("it ends");
        }
    }

    /// Gives the machine a model, before it is one of a cluster.
    fn import(&mut self, alias: &str) {
        let file = self.home.join("tiny.gguf");
        fs::write(&file, tiny_gguf(7, e2e::TinyKind::Generate)).expect("a model file");
        let url = self.start();
        let token = fs::read_to_string(self.home.join("secrets/hive.token")).expect("a token");
        let body = json!({"reference": format!("file:{}", file.display()), "alias": alias});
        let reply = Http::new(&url, Some(token.trim())).post("/api/v1/models/pull", &body);
        assert!(reply.body.contains("\"done\""), "{}", reply.body);
        self.stop();
    }

    /// What a thief finds on its disk.
    fn kept(&self) -> Value {
        let path = self.home.join("secrets/pairing.json");
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, 0o600);
        serde_json::from_str(&fs::read_to_string(path).expect("text")).expect("JSON")
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if let Some(mut hive) = self.hive.take() {
            hive.kill().ok();
            hive.wait().ok();
        }
    }
}

fn is_online(cluster: &Cluster, name: &str) -> bool {
    let hives = cluster.queen().get("/api/v1/hives").json();
    let mut hives = hives["hives"].as_array().expect("a list").iter();
    hives.any(|hive| hive["name"] == name && hive["state"] == "online")
}

#[test]
fn a_paired_machine_answers_prompts_over_mutual_tls() {
    let cluster = queen();
    let mut attic = Machine::new(&cluster, "attic");
    attic.import("tiny");
    let told = attic.pair(&code_for(&cluster, "attic")).ok();
    assert!(told.contains("attic") && told.contains(&cluster.url("queen")), "{told}");
    let url = attic.start();
    assert_eq!(url, format!("https://{}", attic.address));
    wait_until("the queen hears of the machine", LIMIT, || is_online(&cluster, "attic"));
    assert!(cluster.rbee(&["run", "tiny", "hello there"]).ok().contains("hello there"));
    let listed = cluster.rbee(&["hive", "list"]).ok();
    assert!(listed.contains("attic") && listed.contains(&url), "{listed}");

    // Both forget nothing when they are started again.
    drop(cluster.rbee(&["queen", "stop"]).ok());
    attic.stop();
    drop(cluster.rbee(&["queen", "start"]).ok());
    attic.start();
    wait_until("the queen hears of it again", LIMIT, || is_online(&cluster, "attic"));
    assert!(cluster.rbee(&["run", "tiny", "hello again"]).ok().contains("hello again"));
}

#[test]
fn a_queen_that_is_started_anew_asks_the_machines_that_she_knows() {
    // They report so seldom that nothing but a question tells what they have.
    let cluster = queen_who_hears(300);
    let mut attic = Machine::new(&cluster, "attic");
    attic.import("tiny");
    drop(attic.pair(&code_for(&cluster, "attic")).ok());
    attic.start();
    wait_until("the queen hears of the machine", LIMIT, || is_online(&cluster, "attic"));
    drop(cluster.rbee(&["queen", "stop"]).ok());
    drop(cluster.rbee(&["queen", "start"]).ok());
    wait_until("she knows what it has", LIMIT, || cluster.rbee(&["list"]).ok().contains("tiny"));
    assert!(cluster.rbee(&["run", "tiny", "hello there"]).ok().contains("hello there"));
}

/// The parts of a code: the machine and the queen, the fingerprint, the secret.
fn parts(code: &str) -> (&str, &str, &str) {
    let (place, proof) = code.split_once('#').expect("a code");
    let (fingerprint, secret) = proof.split_once('.').expect("a code");
    (place, fingerprint, secret)
}

#[test]
fn a_code_opens_one_door_once() {
    let cluster = queen();
    let code = code_for(&cluster, "attic");
    let (_, _, secret) = parts(&code);
    let url = cluster.url("queen");
    let key = format!("04{}", "11".repeat(64));
    let claim = |token: &str, name: &str, hive: &str, key: &str| -> Reply {
        let body = json!({"url": hive, "public_key": key});
        cluster.caller("queen", token).post(&format!("/api/v1/hives/{name}/pair"), &body)
    };
    let good = "https://127.0.0.2:9200";
    let guessed = secret.replace(|digit: char| digit.is_ascii_digit(), "0");
    for (token, name, hive, key, status) in [
        (guessed.as_str(), "attic", good, key.as_str(), 401),
        (&cluster.secret("client.token"), "attic", good, &key, 403),
        (&cluster.secret("hive.token"), "attic", good, &key, 403),
        (secret, "cellar", good, &key, 403),
        (secret, "attic", "http://127.0.0.2:9200", &key, 400),
        (secret, "attic", good, "04", 400),
        (secret, "attic", good, &key, 200),
        (secret, "attic", good, &key, 401),
    ] {
        let reply = claim(token, name, hive, key);
        assert_eq!(reply.status, status, "{name} {hive}: {}", reply.body);
    }
    let second = code_for(&cluster, "attic");
    let (_, _, secret) = parts(&second);
    let elsewhere = Http::trusting(&url, Some(secret), &cluster.ca());
    for path in ["/v1/models", "/api/v1/status", "/api/v1/keys", "/metrics"] {
        assert_eq!(elsewhere.get(path).status, 403, "{path}");
    }
    let refused = cluster.rbee(&["hive", "pair", "local"]);
    assert!(refused.code != 0 && refused.stderr.contains("name"), "{}", refused.stderr);
}

#[test]
fn a_machine_tells_its_secret_to_the_queen_of_the_code_alone() {
    let cluster = queen();
    let code = code_for(&cluster, "attic");
    let (place, fingerprint, secret) = parts(&code);
    let attic = Machine::new(&cluster, "attic");
    let forged = format!("{place}#{}.{secret}", fingerprint.replace(['1', '2', '3'], "4"));
    let refused = attic.pair(&forged);
    assert_eq!(refused.code, 69, "{}", refused.stderr);
    assert!(!attic.home.join("secrets/pairing.json").exists());
    let nonsense = attic.pair("nonsense");
    assert!(
        nonsense.code == 2 && nonsense.stderr.contains("rbee hive pair"),
        "{}",
        nonsense.stderr
    );
    // Nobody has used it up.
    drop(attic.pair(&code).ok());
    let again = attic.pair(&code);
    assert!(again.code == 77 && again.stderr.contains("once"), "{}", again.stderr);
}

/// The routes of a daemon with who may call them, as `(method, path, access)`.
fn routes(cluster: &Cluster, program: &str) -> Vec<(String, String, String)> {
    let output = cluster.command(program, &["--print-routes"]).output().expect("it prints");
    let listing = String::from_utf8(output.stdout).expect("text");
    let words = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        let mut next = || words.next().expect("a word");
        (next().to_uppercase(), next(), next())
    };
    listing.lines().map(words).collect()
}

fn filled(template: &str, name: &str) -> String {
    let part = |part: &str| match part {
        "{name}" => name.to_owned(),
        part if part.starts_with('{') => "w-1".to_owned(),
        part => part.to_owned(),
    };
    template.split('/').map(part).collect::<Vec<_>>().join("/")
}

#[test]
fn a_stolen_hive_opens_nothing_but_its_own_report() {
    let cluster = queen();
    let mut urls = Vec::new();
    let mut machines = Vec::new();
    for name in ["attic", "cellar"] {
        let mut machine = Machine::new(&cluster, name);
        drop(machine.pair(&code_for(&cluster, name)).ok());
        urls.push(machine.start());
        machines.push(machine);
    }
    wait_until("both are heard of", LIMIT, || {
        is_online(&cluster, "attic") && is_online(&cluster, "cellar")
    });
    let kept = machines[0].kept();
    let text = |field: &str| kept[field].as_str().expect("text").to_owned();
    let (certificate, key, own) = (text("certificate"), text("key"), text("token"));
    let tokens = [own.clone(), cluster.secret("client.token"), cluster.secret("hive.token")];
    let mut opened = Vec::new();
    for (daemon, program, url) in [
        ("queen", "queen-rbee", cluster.url("queen")),
        ("attic", "rbee-hive", urls[0].clone()),
        ("cellar", "rbee-hive", urls[1].clone()),
    ] {
        for (method, path, access) in routes(&cluster, program) {
            for (token, name) in
                tokens.iter().flat_map(|token| [(token, "attic"), (token, "cellar")])
            {
                let thief = Http::credulous(&url, Some(token), Some((&certificate, &key)));
                let body = (method == "POST").then(|| json!({}));
                let reply = thief.call(&method, &filled(&path, name), body.as_ref());
                if access != "public" && !matches!(reply.status, 401 | 403) {
                    opened.push(format!("{daemon} {method} {}", filled(&path, name)));
                    assert_eq!(*token, own, "{opened:?}");
                }
            }
        }
    }
    opened.dedup();
    let reports =
        ["heartbeat", "audit"].map(|what| format!("queen POST /api/v1/hives/attic/{what}"));
    assert_eq!(opened, reports);

    // The token alone opens nothing anywhere, and the one that other hives share speaks for no paired one.
    let report = "/api/v1/hives/attic/heartbeat";
    assert_eq!(cluster.caller("queen", &own).post(report, &json!({})).status, 401);
    let shared = cluster.caller("queen", &cluster.secret("hive.token")).post(report, &snapshot());
    assert_eq!(shared.status, 403, "{}", shared.body);
    let status = Http::credulous(&urls[0], Some(&own), None).get("/api/v1/status");
    assert_eq!(status.status, 401, "{}", status.body);
}

/// A report of a machine that has nothing.
fn snapshot() -> Value {
    json!({
        "epoch": 1, "sequence": 1, "draining": false, "models": [], "workers": [],
        "resources": {
            "cores": 1, "memory_total_bytes": 1, "memory_available_bytes": 1,
            "disk_total_bytes": 1, "disk_available_bytes": 1, "gpus": [],
        },
    })
}

#[test]
fn a_forgotten_machine_is_believed_no_more_at_once() {
    let cluster = queen();
    let mut attic = Machine::new(&cluster, "attic");
    drop(attic.pair(&code_for(&cluster, "attic")).ok());
    attic.start();
    wait_until("the queen hears of the machine", LIMIT, || is_online(&cluster, "attic"));
    let kept = attic.kept();
    let text = |field: &str| kept[field].as_str().expect("text").to_owned();
    let (certificate, key) = (text("certificate"), text("key"));
    let url = cluster.url("queen");
    // One connection for all, opened before.
    let thief = Http::credulous(&url, Some(&text("token")), Some((&certificate, &key)));
    let audit = || thief.post("/api/v1/hives/attic/audit", &json!({"checkpoint": null})).status;
    assert_eq!(audit(), 200);
    assert!(cluster.rbee(&["hive", "forget", "attic"]).ok().contains("attic"));
    wait_until("it is refused", FORGOTTEN, || audit() == 401);
    let listed = cluster.rbee(&["hive", "list"]).ok();
    assert!(!listed.contains("attic"), "{listed}");
    let again = cluster.rbee(&["hive", "forget", "attic"]);
    assert!(again.code != 0 && again.stderr.contains("hive list"), "{}", again.stderr);
    drop(cluster.rbee(&["queen", "stop"]).ok());
    drop(cluster.rbee(&["queen", "start"]).ok());
    let listed = cluster.rbee(&["hive", "list"]).ok();
    assert!(!listed.contains("attic"), "{listed}");
}
