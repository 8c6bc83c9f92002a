//! A hive without processes: speaks the hive's side of the wire, answers as the
//! test scripts it, and remembers what it was asked.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::{StreamExt as _, stream};
use http::HeaderMap;
use input_validation::{ModelRef, NodeName, Sha256Hex, WorkerId};
use rbee_api::continuation::Delivered;
use rbee_api::error::{ErrorCode, ErrorDetail, TAKEN};
use rbee_api::headers::{CACHE_SCOPE, CLIENT_BYTES};
use rbee_api::hive::{HiveSnapshot, HiveStatus, Resources, SnapshotReply};
use rbee_api::model::{ModelInfo, ModelKind, ModelList};
use rbee_api::queen::Removed;
use rbee_api::worker::{Backend, StartWorker, WorkerInfo, WorkerReset, WorkerState};
use rbee_api::worker_exit::Breaker;
use rbee_http::{
    Access, ApiError, Authenticator, HopClient, JsonBody, Metrics, Principal, RawJson, Readiness,
    RouteTable, Server, event_stream_response,
};
use secrets_management::Secret;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What a scripted reply does after its pieces.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// Ends in good order.
    Whole,
    /// Breaks the connection.
    Broken,
    /// Sends nothing more and does not end.
    Open,
}

/// One answer to a forwarded request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Json(&'static str),
    Error(ErrorCode),
    /// The worker ended before the request came to it.
    NotTaken,
    Events(Vec<String>, End),
    /// Breaks the connection before the head of a reply.
    NoHead,
}

/// The state of the fake.
pub(crate) struct FakeHive {
    pub(crate) url: String,
    token: Arc<Secret>,
    models: Mutex<Vec<ModelInfo>>,
    workers: Mutex<Vec<WorkerInfo>>,
    sequence: AtomicU64,
    /// Answers to forwarded requests, used up one by one, the last one for ever.
    replies: Mutex<VecDeque<Reply>>,
    /// What was forwarded: worker, path below it, body, request id.
    pub(crate) forwarded: Mutex<Vec<Forwarded>>,
    /// Whether it tells its models when asked, as a hive does; without it the
    /// queen has to wait for a report.
    pub(crate) tells_models: AtomicBool,
    /// Calls to start a worker.
    pub(crate) starts: AtomicUsize,
    /// The answer to a start; without one, a fresh worker that is starting.
    pub(crate) refuse_start: Mutex<Option<ErrorCode>>,
    /// A start waits for a permit.
    pub(crate) start_gate: Semaphore,
    /// Notified when the queen lets go of a reply that is `Open`.
    pub(crate) let_go: Notify,
    /// What a pull sends.
    pub(crate) pull: Mutex<(Vec<String>, End)>,
    /// Paths of other requests, in order.
    pub(crate) asked: Mutex<Vec<String>>,
    _stop: DropGuard,
}

#[derive(Debug, Clone)]
pub(crate) struct Forwarded {
    pub(crate) worker: String,
    pub(crate) path: String,
    pub(crate) body: Bytes,
    pub(crate) request_id: String,
    pub(crate) timeout_ms: u64,
    /// How much of the body is the client's, where a marked stream is asked for.
    pub(crate) client_bytes: Option<usize>,
    /// Whose computed prompts it may use.
    pub(crate) cache_scope: Option<String>,
}

impl Forwarded {
    /// What the client has of the reply already.
    pub(crate) fn delivered(&self) -> Option<Delivered> {
        let rest = &self.body[self.client_bytes?..];
        (!rest.is_empty()).then(|| serde_json::from_slice(rest).unwrap())
    }
}

impl FakeHive {
    /// Listens on a free port; knows the token that the queen shows.
    pub(crate) async fn start(token: Secret) -> Arc<Self> {
        let listener = rbee_http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let stop = CancellationToken::new();
        let token = Arc::new(token);
        let hive = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            token: Arc::clone(&token),
            models: Mutex::default(),
            workers: Mutex::default(),
            sequence: AtomicU64::new(0),
            replies: Mutex::default(),
            forwarded: Mutex::default(),
            tells_models: AtomicBool::new(false),
            starts: AtomicUsize::new(0),
            refuse_start: Mutex::default(),
            start_gate: Semaphore::new(Semaphore::MAX_PERMITS),
            let_go: Notify::new(),
            pull: Mutex::new((Vec::new(), End::Whole)),
            asked: Mutex::default(),
            _stop: stop.clone().drop_guard(),
        });
        let digest = auth_min::TokenDigest::of(token.expose());
        let authenticator: Authenticator =
            Arc::new(move |shown, _| shown.digest().matches(&digest).then_some(Principal::Peer));
        let weak = Arc::downgrade(&hive);
        let table = RouteTable::<std::sync::Weak<Self>>::new()
            .health(Readiness::new(|| Ok(())))
            .get("/api/v1/status", Access::Peer, status)
            .post("/api/v1/workers", Access::Peer, start_worker)
            .delete("/api/v1/workers/{id}", Access::Peer, stop_worker)
            .post("/api/v1/workers/{id}/reset", Access::Peer, reset_worker)
            .get("/api/v1/workers/{id}/logs", Access::Peer, logs)
            .post("/api/v1/workers/{id}/v1/chat/completions", Access::Peer, chat)
            .post("/api/v1/workers/{id}/v1/completions", Access::Peer, completion)
            .get("/api/v1/models", Access::Peer, models)
            .post("/api/v1/models/pull", Access::Peer, pull)
            .delete("/api/v1/models/{*reference}", Access::Peer, remove_model);
        let router = table.build(weak, authenticator, metrics());
        tokio::spawn(Server::new(listener, router, Duration::ZERO).run(stop));
        hive
    }

    /// Sends the queen what the hive has now.
    pub(crate) async fn report(&self, queen_url: &str) -> SnapshotReply {
        self.report_as("local", queen_url).await
    }

    /// The same under the name of a machine.
    pub(crate) async fn report_as(&self, name: &str, queen_url: &str) -> SnapshotReply {
        let snapshot = HiveSnapshot {
            epoch: 1,
            sequence: self.sequence.fetch_add(1, Ordering::SeqCst),
            draining: false,
            plain_http_on_network: false,
            resources: Resources::default(),
            models: self.models.lock().unwrap().clone(),
            workers: self.workers.lock().unwrap().clone(),
        };
        let queen = HopClient::new(queen_url, Arc::clone(&self.token)).unwrap();
        let deadline = Deadline::after(Duration::from_secs(10));
        let path = format!("/api/v1/hives/{name}/heartbeat");
        queen.post(&path, &snapshot, deadline).await.unwrap()
    }

    pub(crate) fn add_model(&self, alias: Option<&str>, reference: &str) {
        let mut models = self.models.lock().unwrap();
        let age = u64::try_from(models.len()).unwrap();
        models.push(ModelInfo {
            reference: reference.parse().unwrap(),
            alias: alias.map(|alias| alias.parse().unwrap()),
            size_bytes: 98_362_432,
            sha256: Sha256Hex::from_bytes(&[7; 32]),
            kind: ModelKind::Generate,
            architecture: "llama".to_owned(),
            quantisation: Some("Q4_1".to_owned()),
            context_length: 2048,
            parameters: None,
            added_at_ms: 1_700_000_000_123 + age,
        });
    }

    /// Adds a worker for the first model, or changes its state.
    pub(crate) fn set_worker(&self, id: &str, state: WorkerState) {
        let model = self.models.lock().unwrap()[0].clone();
        let mut workers = self.workers.lock().unwrap();
        workers.retain(|worker| worker.id.as_str() != id);
        workers.push(worker_info(id, &model, state));
    }

    pub(crate) fn set_load_progress(&self, id: &str, share: f32) {
        let mut workers = self.workers.lock().unwrap();
        let worker = workers.iter_mut().find(|worker| worker.id.as_str() == id).unwrap();
        worker.load_progress = share;
    }

    pub(crate) fn fail_worker(&self, id: &str, failure: ErrorDetail) {
        self.set_worker(id, WorkerState::Failed);
        let mut workers = self.workers.lock().unwrap();
        workers.iter_mut().find(|worker| worker.id.as_str() == id).unwrap().failure = Some(failure);
    }

    pub(crate) fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        *self.replies.lock().unwrap() = replies.into_iter().collect();
    }

    pub(crate) fn forwarded_count(&self) -> usize {
        self.forwarded.lock().unwrap().len()
    }

    fn next_reply(&self) -> Reply {
        let mut replies = self.replies.lock().unwrap();
        if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() }
            .expect("the test scripts a reply")
    }

    fn note(&self, asked: impl Into<String>) {
        self.asked.lock().unwrap().push(asked.into());
    }
}

/// One recorder a process, shared by the hives of all tests.
fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::install("fake").unwrap()).clone()
}

fn worker_info(id: &str, model: &ModelInfo, state: WorkerState) -> WorkerInfo {
    let slots = if state == WorkerState::Ready { 4 } else { 0 };
    WorkerInfo {
        id: id.parse().unwrap(),
        model_ref: model.reference.clone(),
        alias: model.alias.clone(),
        backend: Backend::Echo,
        device: "cpu".to_owned(),
        url: "http://127.0.0.1:1".to_owned(),
        state,
        load_progress: 0.0,
        slots_total: slots,
        slots_available: slots,
        pid: Some(1),
        started_at_ms: 1,
        last_heartbeat_ms: None,
        failure: None,
        restart_count: 0,
        last_exit: None,
        breaker: rbee_api::worker_exit::Breaker::Closed,
        next_try_at_ms: None,
    }
}

type Hive = State<std::sync::Weak<FakeHive>>;

/// The test is over; whoever still asks is told so.
fn alive(hive: &std::sync::Weak<FakeHive>) -> Result<Arc<FakeHive>, ApiError> {
    hive.upgrade().ok_or_else(|| ApiError::new(ErrorCode::Draining, "the test is over"))
}

async fn status(State(hive): Hive) -> Result<Json<HiveStatus>, ApiError> {
    let hive = alive(&hive)?;
    let workers = hive.workers.lock().unwrap().clone();
    Ok(Json(HiveStatus {
        name: "local".parse::<NodeName>().unwrap(),
        version: "0".to_owned(),
        pid: std::process::id(),
        managed: false,
        draining: false,
        plain_http_on_network: false,
        uptime_ms: 1,
        audit: rbee_api::audit::AuditStatus::default(),
        resources: Resources::default(),
        models: 1,
        workers,
    }))
}

async fn start_worker(
    State(hive): Hive,
    JsonBody(StartWorker { model }): JsonBody<StartWorker>,
) -> Result<Json<WorkerInfo>, ApiError> {
    let hive = alive(&hive)?;
    let number = hive.starts.fetch_add(1, Ordering::SeqCst) + 1;
    hive.start_gate.acquire().await.unwrap().forget();
    if let Some(code) = *hive.refuse_start.lock().unwrap() {
        return Err(ApiError::new(code, "scripted"));
    }
    let known = hive.models.lock().unwrap().iter().find(|known| known.answers_to(&model)).cloned();
    let known = known.ok_or_else(|| ApiError::new(ErrorCode::ModelNotFound, "scripted"))?;
    let worker = worker_info(&format!("w-{number}"), &known, WorkerState::Starting);
    hive.workers.lock().unwrap().push(worker.clone());
    Ok(Json(worker))
}

async fn stop_worker(State(hive): Hive, Path(id): Path<String>) -> Result<Json<Removed>, ApiError> {
    let hive = alive(&hive)?;
    hive.note(format!("stop {id}"));
    hive.workers.lock().unwrap().retain(|worker| worker.id.as_str() != id);
    Ok(Json(Removed { removed: id.parse::<WorkerId>().unwrap().to_string() }))
}

/// The worker's model has a fresh one in its place.
async fn reset_worker(
    State(hive): Hive,
    Path(id): Path<String>,
) -> Result<Json<WorkerReset>, ApiError> {
    let hive = alive(&hive)?;
    hive.note(format!("reset {id}"));
    let model = hive.models.lock().unwrap()[0].clone();
    let worker = worker_info("w-fresh", &model, WorkerState::Starting);
    Ok(Json(WorkerReset { failures_cleared: 3, breaker_was: Breaker::Open, worker }))
}

async fn logs(
    State(hive): Hive,
    Path(id): Path<String>,
    axum::extract::RawQuery(query): axum::extract::RawQuery,
) -> Result<String, ApiError> {
    let hive = alive(&hive)?;
    hive.note(format!("logs {id} {}", query.unwrap_or_default()));
    if id == "w-unknown" {
        return Err(ApiError::new(ErrorCode::WorkerNotFound, "scripted"));
    }
    Ok(format!("log of {id}\n"))
}

async fn chat(
    hive: Hive,
    id: Path<String>,
    headers: HeaderMap,
    body: RawJson,
) -> Result<Response, ApiError> {
    forward(hive, id, "chat/completions", &headers, body)
}

async fn completion(
    hive: Hive,
    id: Path<String>,
    headers: HeaderMap,
    body: RawJson,
) -> Result<Response, ApiError> {
    forward(hive, id, "completions", &headers, body)
}

fn forward(
    State(hive): Hive,
    Path(worker): Path<String>,
    path: &str,
    headers: &HeaderMap,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    let hive = alive(&hive)?;
    let text = |name| headers[name].to_str().unwrap().to_owned();
    hive.forwarded.lock().unwrap().push(Forwarded {
        worker,
        path: path.to_owned(),
        body,
        request_id: text("x-request-id"),
        timeout_ms: text("x-request-timeout-ms").parse().unwrap(),
        client_bytes: headers
            .contains_key(CLIENT_BYTES)
            .then(|| text(CLIENT_BYTES).parse().unwrap()),
        cache_scope: headers.contains_key(CACHE_SCOPE).then(|| text(CACHE_SCOPE)),
    });
    match hive.next_reply() {
        Reply::Error(code) => Err(ApiError::new(code, "scripted")),
        Reply::NotTaken => {
            let detail = ErrorDetail::new(ErrorCode::WorkerFailed, "scripted");
            Err(detail.with_details(serde_json::json!({TAKEN: false})).into())
        }
        Reply::Json(text) => Ok(([("content-type", "application/json")], text).into_response()),
        Reply::Events(pieces, end) => Ok(events(&hive, pieces, end)),
        // The head waits for the first piece of the body, which never comes.
        Reply::NoHead => {
            let broken = stream::iter([Err::<Bytes, _>(io::Error::other("scripted"))]);
            Ok(event_stream_response(broken))
        }
    }
}

fn events(hive: &Arc<FakeHive>, pieces: Vec<String>, end: End) -> Response {
    struct LetGo(Arc<FakeHive>);
    impl Drop for LetGo {
        fn drop(&mut self) {
            self.0.let_go.notify_one();
        }
    }
    let pieces = stream::iter(pieces).then(|piece| async move {
        // Each piece leaves alone, as tokens do.
        tokio::task::yield_now().await;
        Ok::<_, io::Error>(Bytes::from(piece))
    });
    match end {
        End::Whole => event_stream_response(pieces),
        End::Broken => {
            // What came before has left when it breaks.
            let broken = stream::once(async {
                tokio::task::yield_now().await;
                Err(io::Error::other("scripted"))
            });
            event_stream_response(pieces.chain(broken))
        }
        End::Open => {
            let guard = LetGo(Arc::clone(hive));
            let open = stream::once(async move {
                let _guard = guard;
                std::future::pending().await
            });
            event_stream_response(pieces.chain(open))
        }
    }
}

async fn models(State(hive): Hive) -> Result<Json<ModelList>, ApiError> {
    let hive = alive(&hive)?;
    if !hive.tells_models.load(Ordering::SeqCst) {
        return Err(ApiError::new(ErrorCode::Loading, "scripted"));
    }
    Ok(Json(ModelList { models: hive.models.lock().unwrap().clone() }))
}

async fn pull(
    State(hive): Hive,
    JsonBody(request): JsonBody<rbee_api::model::PullRequest>,
) -> Result<Response, ApiError> {
    let hive = alive(&hive)?;
    hive.note(format!("pull {}", request.reference));
    let (pieces, end) = hive.pull.lock().unwrap().clone();
    Ok(events(&hive, pieces, end))
}

async fn remove_model(
    State(hive): Hive,
    Path(reference): Path<String>,
) -> Result<Json<Removed>, ApiError> {
    let hive = alive(&hive)?;
    let reference: ModelRef = reference.parse().unwrap();
    hive.note(format!("remove {reference}"));
    Ok(Json(Removed { removed: reference.to_string() }))
}
