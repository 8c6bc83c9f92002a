//! The OpenAPI documents: they describe the routes that are served, lie in the
//! repository as the programs print them, and hold for what the programs answer.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use e2e::{Cluster, Http, TinyKind, wait_until};
use serde_json::{Value, json};

const DAEMONS: [&str; 3] = ["queen-rbee", "rbee-hive", "llm-worker-rbee"];

/// What a worker that no hive started is told, and shown.
const WORKER_TOKEN: &str = "token-of-a-worker-without-a-hive-0123456789";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn printed(cluster: &Cluster, program: &str, flag: &str) -> String {
    let output = cluster.command(program, &[flag]).output().expect("it starts");
    assert!(output.status.success(), "{program} {flag}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn document(cluster: &Cluster, program: &str) -> Value {
    serde_json::from_str(&printed(cluster, program, "--print-openapi")).expect("JSON")
}

#[test]
fn documents_describe_exactly_the_routes_that_are_served() {
    let cluster = Cluster::echo();
    for program in DAEMONS {
        let document = document(&cluster, program);
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("methods") {
                let security = &operation["security"][0];
                let caller = security.as_object().and_then(|of| of.iter().next());
                // Of clients, the scope that they need.
                let caller =
                    caller.map_or("public", |(kind, scopes)| scopes[0].as_str().unwrap_or(kind));
                described.insert(format!("{method} {path} {caller}"));
            }
        }
        let served: BTreeSet<String> = printed(&cluster, program, "--print-routes")
            .lines()
            .map(|line| line.replace("{*", "{"))
            .collect();
        assert_eq!(described, served, "{program}: see crates/rbee-api/src/openapi");
    }
}

#[test]
fn the_documents_in_the_repository_are_those_that_the_programs_print() {
    let cluster = Cluster::echo();
    for program in DAEMONS {
        let path = repository().join(format!("docs/openapi/{program}.json"));
        let kept = fs::read_to_string(&path).unwrap_or_default();
        let current = kept == printed(&cluster, program, "--print-openapi");
        assert!(current, "{} is not current; `make openapi` writes it anew", path.display());
    }
}

/// What stands for the names that only some values of are known.
struct Names {
    models: Value,
    worker: String,
}

/// Fits a document to one cluster: existing names, so that requests get past the first check;
/// nothing that ends what is examined, goes on for long, or has no time.
fn fitted(mut document: Value, names: &Names, callers: &[&str]) -> Value {
    let paths = document["paths"].as_object_mut().expect("paths");
    paths.remove("/api/v1/shutdown");
    for item in paths.values_mut() {
        let methods = item.as_object_mut().expect("methods");
        methods.retain(|_, operation| {
            let of = operation["security"][0].as_object().and_then(|of| of.keys().next());
            callers.contains(&of.map_or("public", String::as_str))
        });
        for (method, operation) in methods {
            let parameters = operation["parameters"].as_array_mut().expect("parameters");
            parameters.retain(|parameter| parameter.get("$ref").is_none());
            parameters.retain(|parameter| parameter["name"] != "follow");
            for parameter in parameters.iter_mut().filter(|parameter| parameter["in"] == "path") {
                let reference = parameter["schema"]["$ref"].as_str().unwrap_or_default();
                parameter["schema"] = match reference.rsplit('/').next() {
                    _ if method == "delete" => json!({"enum": ["nobody-1"]}),
                    Some("WorkerId") => json!({"enum": [names.worker, "w-0"]}),
                    Some("NodeName") => json!({"enum": ["local", "nobody"]}),
                    _ => json!({"enum": names.models}),
                };
            }
            if let Some(body) = operation.get_mut("requestBody") {
                name_models(body, &names.models);
            }
        }
    }
    paths.retain(|_, item| item.as_object().is_some_and(|methods| !methods.is_empty()));
    document
}

/// Puts names of models where a model is to be named.
fn name_models(value: &mut Value, models: &Value) {
    let is_reference = value["$ref"] == "#/components/schemas/ModelRef";
    let is_name = value["description"].as_str().is_some_and(|text| text.starts_with("A model by"));
    match value {
        Value::Object(_) if is_name || is_reference => *value = json!({"enum": models}),
        Value::Object(fields) => fields.values_mut().for_each(|field| name_models(field, models)),
        Value::Array(items) => items.iter_mut().for_each(|item| name_models(item, models)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A path is text whatever stands in it, so that 0 is a good name of a key; schemathesis takes it for a number.
const EXCEPTIONS: &str = r#"
[[operations]]
include-name = "DELETE /api/v1/keys/{name}"
checks.negative_data_rejection.enabled = false
"#;

/// Has schemathesis look for requests that are answered otherwise than the document says.
#[expect(clippy::disallowed_methods, reason = "schemathesis is a program")]
fn examine(document: &Value, url: &str, token: &str) {
    let directory = tempfile::TempDir::new().expect("a folder");
    let file = directory.path().join("document.json");
    fs::write(&file, document.to_string()).expect("a file");
    fs::write(directory.path().join("schemathesis.toml"), EXCEPTIONS).expect("a file");
    let program = repository().join("target/rbee-test/clients/schemathesis/bin/schemathesis");
    let output = Command::new(program)
        .arg("run")
        .arg(&file)
        .args(["--url", url, "--header", &format!("Authorization: Bearer {token}")])
        .args(["--phases", "examples,coverage,fuzzing", "--mode", "all"])
        .args(["--max-examples", "10", "--seed", "1", "--generation-database", "none"])
        .args(["--continue-on-failure", "--request-timeout", "20", "--no-color"])
        .args(["--exclude-checks", "positive_data_acceptance"])
        .args(["--suppress-health-check", "all", "--max-time", "60"])
        .current_dir(directory.path())
        .output()
        .expect("schemathesis starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("passed"), "nothing was examined: {said}");
}

fn models_of(cluster: &Cluster, aliases: &[&str]) -> Value {
    let listed = cluster.queen().get("/api/v1/models").json();
    let references = listed["models"].as_array().expect("models").iter();
    let references = references.map(|model| model["reference"].as_str().expect("a reference"));
    let unknown = ["nobody:1b", "file:/no/such/file.gguf"];
    json!(aliases.iter().copied().chain(references).chain(unknown).collect::<Vec<_>>())
}

#[test]
fn queen_and_hive_answer_as_their_documents_say() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    cluster.import_tiny_of("tiny-embed", TinyKind::Embed);
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let worker = cluster.workers()[0]["id"].as_str().expect("an id").to_owned();
    let models = models_of(&cluster, &["tiny", "tiny-embed"]);
    // An alias may well be given to another model meanwhile.
    let reference = models[2].as_str().expect("a reference").to_owned();
    let names = Names { models, worker };

    let queen = document(&cluster, "queen-rbee");
    let (client, hive) = (cluster.secret("client.token"), cluster.secret("hive.token"));
    examine(&fitted(queen.clone(), &names, &["public", "client"]), &cluster.url("queen"), &client);
    examine(&fitted(queen, &names, &["public", "peer"]), &cluster.url("queen"), &hive);
    let document = fitted(document(&cluster, "rbee-hive"), &names, &["public", "peer", "worker"]);
    examine(&document, &cluster.url("hive"), &hive);

    let answer = cluster.rbee(&["infer", "-m", &reference, "-p", "still here"]).ok();
    assert!(answer.contains("still here"), "{answer}");
}

/// A worker that no hive started.
struct LoneWorker {
    child: Child,
    url: String,
}

impl LoneWorker {
    fn start(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let mut command = cluster.command(
            "llm-worker-rbee",
            &[
                "--engine=echo",
                "--worker-id=w-lone",
                "--model-name=tiny",
                "--hive-url=http://127.0.0.1:1",
            ],
        );
        let mapping = FdMapping { parent_fd: listener.into(), child_fd: 3 };
        command.fd_mappings(vec![mapping]).expect("one mapping");
        command.env("LISTEN_FDS", "1").stdin(Stdio::piped());
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let secrets = json!({"token": WORKER_TOKEN, "callback_token": WORKER_TOKEN});
        let input = child.stdin.take().expect("a pipe");
        serde_json::to_writer(input, &secrets).expect("it reads its secrets");
        Self { child, url }
    }
}

impl Drop for LoneWorker {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_worker_answers_as_its_document_says() {
    let cluster = Cluster::echo();
    let worker = LoneWorker::start(&cluster);
    let http = Http::new(&worker.url, Some(WORKER_TOKEN));
    wait_until("the worker is ready", Duration::from_secs(20), || {
        http.try_call("GET", "/readyz", None).is_some_and(|reply| reply.status == 200)
    });
    let names = Names { models: json!(["tiny", "nobody:1b"]), worker: "w-lone".to_owned() };
    let document = fitted(document(&cluster, "llm-worker-rbee"), &names, &["public", "peer"]);
    examine(&document, &worker.url, WORKER_TOKEN);
    assert_eq!(http.get("/readyz").status, 200);
}
