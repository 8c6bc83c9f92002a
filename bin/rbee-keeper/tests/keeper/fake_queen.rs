//! A queen at the process boundary: the real HTTP layers with scripted answers. The model's name chooses the script,
//! and every request for a reply is kept.

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use auth_min::TokenDigest;
use axum::Json;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::queen::RunFile;
use rbee_home::{Daemon, Home, LockGuard, RunFileGuard};
use rbee_http::{
    Access, ApiError, Authenticator, DONE_EVENT, Metrics, Principal, RawJson, Readiness,
    RouteTable, Server, bind, event, event_stream_response,
};
use secrets_management::{Secret, load_or_generate};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cluster;
use crate::program::Program;

/// The queen, for as long as it is kept.
pub(crate) struct FakeQueen {
    pub(crate) home: TempDir,
    pub(crate) url: String,
    pub(crate) token: Secret,
    pub(crate) script: Arc<Script>,
    /// Dropped before the lock, as a daemon that ends does.
    run_file: Option<RunFileGuard>,
    lock: Option<LockGuard>,
    stop: CancellationToken,
}

/// What the answers depend on and what is seen.
#[derive(Default)]
pub(crate) struct Script {
    /// Lets the model `gated` go on.
    pub(crate) gate: Notify,
    /// A reply was dropped before its end.
    pub(crate) dropped: Notify,
    /// A shutdown was asked for.
    pub(crate) shutdown: Notify,
    requests: Mutex<Vec<Value>>,
}

impl Script {
    /// Takes out what was asked so far.
    pub(crate) fn requests(&self) -> Vec<Value> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }

    fn keep(&self, request: Value) {
        self.requests.lock().unwrap().push(request);
    }
}

impl FakeQueen {
    /// Starts with a home of its own, as a running queen would leave it.
    pub(crate) async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        Self::start_in(home).await
    }

    /// Starts on a home that may have been used before.
    pub(crate) async fn start_in(home: TempDir) -> Self {
        let layout = Home::open(&home.path().join("rbee")).unwrap();
        let token = load_or_generate(&layout.client_token()).unwrap();
        let lock = layout.lock(Daemon::Queen).unwrap();
        let listener = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let script = Arc::new(Script::default());
        let stop = CancellationToken::new();
        let router = routes().build(Arc::clone(&script), authenticator(&token), metrics());
        let server = Server::new(listener, router, Duration::ZERO);
        tokio::spawn(server.run(stop.clone()));
        let run = RunFile::plain(url.clone(), std::process::id());
        let run_file = layout.write_run_file(Daemon::Queen, &lock, &run).unwrap();
        Self { home, url, token, script, run_file: Some(run_file), lock: Some(lock), stop }
    }

    /// The program, which will find this queen.
    pub(crate) fn program(&self) -> Program {
        Program::new(self.home.path())
    }

    /// Ends as a daemon does.
    pub(crate) fn end(&mut self) {
        self.stop.cancel();
        self.run_file = None;
        self.lock = None;
    }
}

impl Drop for FakeQueen {
    fn drop(&mut self) {
        self.end();
    }
}

fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::install("test").unwrap()).clone()
}

fn authenticator(token: &Secret) -> Authenticator {
    let expected = TokenDigest::of(token.expose());
    Arc::new(move |shown, _| shown.digest().matches(&expected).then_some(Principal::Client))
}

fn routes() -> RouteTable<Arc<Script>> {
    RouteTable::new()
        .health(Readiness::new(|| Ok(())))
        .post("/v1/chat/completions", Access::Admin, chat)
        .post("/v1/embeddings", Access::Admin, embed)
        .get("/api/v1/status", Access::Admin, || async { Json(cluster::status()) })
        .get("/api/v1/workers", Access::Admin, workers)
        .get("/api/v1/models", Access::Admin, || async { Json(cluster::models()) })
        .delete("/api/v1/workers/{id}", Access::Admin, remove)
        .post("/api/v1/workers/{id}/reset", Access::Admin, reset)
        .delete("/api/v1/models/{*reference}", Access::Admin, remove)
        .get("/api/v1/workers/{id}/logs", Access::Admin, logs)
        .post("/api/v1/models/pull", Access::Admin, pull)
        .post("/api/v1/shutdown", Access::Admin, shutdown)
}

/// What failed has a successor; what runs goes on.
async fn reset(axum::extract::Path(id): axum::extract::Path<String>) -> Json<Value> {
    Json(cluster::reset(&id))
}

/// Each embedding is the length of its text.
async fn embed(State(script): State<Arc<Script>>, RawJson(body): RawJson) -> Json<Value> {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let texts = request["input"].as_array().unwrap().clone();
    script.keep(request);
    let data: Vec<Value> = (0..)
        .zip(&texts)
        .map(|(index, text)| {
            let length = text.as_str().unwrap().len();
            json!({ "object": "embedding", "index": index, "embedding": [length] })
        })
        .collect();
    let tokens = texts.len();
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Json(json!({ "object": "list", "data": data, "model": "m", "usage": usage }))
}

/// The worker of the model `heavy` is there once it was asked for.
async fn workers(State(script): State<Arc<Script>>) -> Json<Value> {
    let mut known = cluster::workers();
    let is_wanted = |request: &Value| request["model"] == "heavy";
    if script.requests.lock().unwrap().iter().any(is_wanted) {
        known["workers"].as_array_mut().unwrap().push(cluster::loading_worker());
    }
    Json(known)
}

async fn remove(axum::extract::Path(name): axum::extract::Path<String>) -> Json<Value> {
    Json(json!({ "removed": name }))
}

async fn shutdown(State(script): State<Arc<Script>>) -> Json<Value> {
    script.shutdown.notify_one();
    Json(json!({}))
}

#[derive(Deserialize)]
struct LogsQuery {
    lines: usize,
    follow: bool,
}

async fn logs(Query(LogsQuery { lines, follow }): Query<LogsQuery>) -> String {
    let all = ["first\n", "second\n", "third\n"];
    let followed = if follow { "followed\n" } else { "" };
    all[all.len().saturating_sub(lines)..].concat() + followed
}

async fn pull(State(script): State<Arc<Script>>, RawJson(body): RawJson) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let bad = request["reference"].as_str().unwrap().ends_with("bad.gguf");
    script.keep(request);
    let last = if bad {
        let error = ErrorDetail::new(ErrorCode::InvalidModelFile, "the file is not GGUF");
        json!({ "event": "failed", "error": error })
    } else {
        json!({ "event": "done", "model": cluster::model() })
    };
    let progress = json!({ "event": "progress", "done_bytes": 1, "total_bytes": 2 });
    let events = [progress, last].map(|value| event(value.to_string().as_bytes()));
    event_stream_response(stream::iter(events.map(Ok::<_, Infallible>)))
}

/// Notes when a reply is dropped; disarmed by `done`.
struct Watched(Arc<Script>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.dropped.notify_one();
    }
}

async fn chat(State(script): State<Arc<Script>>, RawJson(body): RawJson) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let model = request["model"].as_str().unwrap().to_owned();
    let said = request["messages"].as_array().unwrap().last().unwrap()["content"].to_string();
    let streamed = request["stream"] == true;
    script.keep(request);
    if let Some(code) = model.strip_prefix("err:") {
        let code: ErrorCode = serde_json::from_value(json!(code)).unwrap();
        return ApiError::new(code, format!("scripted {code}")).into_response();
    }
    if !streamed {
        return Json(whole(&model)).into_response();
    }
    let text = |text: &str| chunk(json!({ "content": text }), Value::Null);
    let end = || vec![chunk(json!({}), json!("stop")), usage(), Bytes::from_static(DONE_EVENT)];
    let fixed = |events: Vec<Bytes>| respond(stream::iter(events));
    match model.as_str() {
        "gated" => {
            let gate = async move {
                script.gate.notified().await;
                text("two")
            };
            let first = stream::iter([text("one ")]);
            respond(first.chain(stream::once(gate)).chain(stream::iter(end())))
        }
        "held" | "heavy" => {
            let gate = async move {
                script.gate.notified().await;
                text("two")
            };
            respond(stream::once(gate).chain(stream::iter(end())))
        }
        "silent" => fixed(end()),
        "thinking" => {
            let thought = |text: &str| chunk(json!({ "reasoning_content": text }), Value::Null);
            fixed([vec![thought("Hm, \u{1b}[2J"), thought("so."), text("42")], end()].concat())
        }
        "hanging" => {
            let watched = Watched(script);
            let forever = stream::pending().map(move |never: Bytes| {
                let _held = &watched;
                never
            });
            respond(stream::iter([text("begun ")]).chain(forever))
        }
        "endless" => {
            let watched = Watched(script);
            let piece = text(&"tick ".repeat(1000));
            respond(stream::repeat(piece).map(move |piece| {
                let _held = &watched;
                piece
            }))
        }
        "failing" => {
            let error = ErrorDetail::new(ErrorCode::WorkerFailed, "the worker died");
            fixed(vec![text("half "), event(json!({ "error": error }).to_string().as_bytes())])
        }
        "breaking" => fixed(vec![text("half ")]),
        "escaping" => fixed([vec![text("\u{1b}[2J\u{1b}]0;x\u{7}ok\n")], end()].concat()),
        _ => fixed([vec![text("You said: "), text(&said)], end()].concat()),
    }
}

fn respond(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let role = chunk(json!({ "role": "assistant", "content": "" }), Value::Null);
    event_stream_response(stream::iter([role]).chain(events).map(Ok::<_, Infallible>))
}

fn chunk(delta: Value, finish_reason: Value) -> Bytes {
    let choices = json!([{
        "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason,
    }]);
    frame(choices, Value::Null)
}

fn usage() -> Bytes {
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10 });
    frame(json!([]), usage)
}

fn frame(choices: Value, usage: Value) -> Bytes {
    let value = json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": choices, "usage": usage,
    });
    event(value.to_string().as_bytes())
}

fn whole(model: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": "All at once.", "refusal": null },
            "logprobs": null,
            "finish_reason": "length",
        }],
        "usage": { "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10 },
    })
}

/// Writes a token file as a user would who got the token from somewhere.
pub(crate) fn write_token(path: &Path, token: &str) {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).unwrap();
    writeln!(file, "{token}").unwrap();
}
