//! Workers of this machine: list, start, stop, logs, and requests on their way through.

use std::sync::Arc;
use std::time::Duration;

use audit_logging::{Event, Kind, Outcome, SubjectKind};
use axum::Json;
use axum::extract::{Query, State};
use axum::response::Response;
use deadline_propagation::Deadline;
use http::HeaderMap;
use input_validation::{WORKER_ID_PREFIX, WorkerId};
use rbee_api::error::ErrorCode;
use rbee_api::queen::Removed;
use rbee_api::worker::{
    StartWorker, WorkerDetail, WorkerInfo, WorkerList, WorkerReset, WorkerState,
};
use rbee_http::{
    ApiError, CallError, Caller, JsonBody, LoadWatch, RawJson, RequestContext, collect, load_events,
};
use serde::Deserialize;
use tokio::time::timeout_at;

use super::paths::Named;
use super::{HiveState, deadline, deadline_within, refuse_if_draining};
use crate::forward::{Endpoint, forward};
use crate::hive::Hive;
use crate::registry::{Forgotten, no_such_worker};
use crate::supervisor::AskedBy;
use crate::worker_logs::{self, Extent};

/// How long a worker may take to tell about itself; it answers beside its engine, within milliseconds.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Lines of a log that are shown when nobody says how many.
const LOG_LINES_DEFAULT: usize = 200;
/// Most lines of a log that can be asked for at once.
const LOG_LINES_MAX: usize = 10_000;
/// Longest time a log is followed in one request.
const LOG_FOLLOW_MAX: Duration = Duration::from_secs(24 * 3600);

pub(super) async fn list(State(hive): HiveState) -> Json<WorkerList> {
    Json(WorkerList { workers: hive.registry.snapshot() })
}

pub(super) async fn show(
    State(hive): HiveState,
    Named(id): Named<WorkerId>,
) -> Result<Json<WorkerDetail>, ApiError> {
    let (worker, client) = hive.registry.look_up(&id).ok_or_else(no_such_worker)?;
    let status = match client {
        Some(client) => client.get("/api/v1/status", Deadline::after(ASK_LIMIT)).await.ok(),
        None => None,
    };
    Ok(Json(WorkerDetail { worker, status }))
}

/// Tells how far a worker's load is, until it is ready or has failed.
pub(super) async fn load(
    State(hive): HiveState,
    headers: HeaderMap,
    Named(id): Named<WorkerId>,
) -> Result<Response, ApiError> {
    let deadline = deadline(&headers)?;
    let changes = hive.registry.changes();
    hive.registry.get(&id).ok_or_else(no_such_worker)?;
    let watch = LoadWatch { deadline, stop: hive.shutdown.stop.clone() };
    let registry = Arc::clone(&hive.registry);
    Ok(load_events(changes, watch, move || registry.get(&id)))
}

pub(super) async fn metrics(
    State(hive): HiveState,
    Named(id): Named<WorkerId>,
) -> Result<String, ApiError> {
    let (_, client) = hive.registry.look_up(&id).ok_or_else(no_such_worker)?;
    let client = client.ok_or_else(no_such_worker)?;
    let deadline = Deadline::after(ASK_LIMIT);
    let no_answer =
        |error: CallError| error.into_detail(ErrorCode::WorkerFailed, "the worker does not answer");
    let reply = client.get_stream("/metrics", deadline).await.map_err(no_answer)?;
    let text = collect(reply, deadline).await.map_err(no_answer)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

pub(super) async fn start(
    State(hive): HiveState,
    JsonBody(request): JsonBody<StartWorker>,
) -> Result<Json<WorkerInfo>, ApiError> {
    refuse_if_draining(&hive)?;
    hive.supervisor.ensure_worker(&request.model, AskedBy::Request).await.map(Json)
}

pub(super) async fn stop(
    State(hive): HiveState,
    headers: HeaderMap,
    Named(id): Named<WorkerId>,
) -> Result<Json<Removed>, ApiError> {
    let deadline = deadline(&headers)?;
    hive.registry.get(&id).ok_or_else(no_such_worker)?;
    let event = Event::new(Kind::WorkerStop, Outcome::Requested);
    Caller::current().note(event.on(SubjectKind::Worker, &id));
    let gone = hive.registry.begin_stop(&id).ok_or_else(no_such_worker)?;
    match timeout_at(deadline.instant(), gone.cancelled()).await {
        Ok(()) => {
            hive.registry.queen_told().await;
            Ok(Json(Removed { removed: id.to_string() }))
        }
        Err(_) => {
            Err(ApiError::new(ErrorCode::DeadlineExceeded, "the worker is ending and not gone yet"))
        }
    }
}

/// Forgets the failures of a worker's model, and starts another in the place of a failed one at once.
pub(super) async fn reset(
    State(hive): HiveState,
    Named(id): Named<WorkerId>,
) -> Result<Json<WorkerReset>, ApiError> {
    refuse_if_draining(&hive)?;
    hive.registry.get(&id).ok_or_else(no_such_worker)?;
    let event = Event::new(Kind::WorkerReset, Outcome::Requested);
    Caller::current().record(event.on(SubjectKind::Worker, &id)).await?;
    let Forgotten { worker, failures, breaker } =
        hive.registry.reset(&id).ok_or_else(no_such_worker)?;
    tracing::info!(worker_id = %id, model = %worker.model_ref, failures, "failures forgotten, as asked");
    let worker = match worker.state {
        WorkerState::Failed => {
            hive.supervisor.ensure_worker(&worker.model_ref, AskedBy::Request).await?
        }
        WorkerState::Starting | WorkerState::Ready | WorkerState::Stopping => worker,
    };
    hive.registry.queen_told().await;
    Ok(Json(WorkerReset { failures_cleared: failures, breaker_was: breaker, worker }))
}

/// Which part of a log is asked for.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LogQuery {
    follow: bool,
    lines: usize,
}

impl Default for LogQuery {
    fn default() -> Self {
        Self { follow: false, lines: LOG_LINES_DEFAULT }
    }
}

pub(super) async fn logs(
    State(hive): HiveState,
    headers: HeaderMap,
    Named(id): Named<WorkerId>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let deadline = deadline_within(&headers, LOG_FOLLOW_MAX, LOG_FOLLOW_MAX)?;
    let extent = Extent { lines: query.lines.min(LOG_LINES_MAX), follow: query.follow, deadline };
    // The daemons' own logs lie beside those of the workers.
    if !id.as_str().starts_with(WORKER_ID_PREFIX) {
        return Err(no_such_worker());
    }
    let path = hive.home.worker_log(&id);
    let opened = worker_logs::open(Arc::clone(&hive.registry), id, path, extent).await;
    opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => no_such_worker(),
        _ => {
            tracing::error!(error = %error, "cannot read a worker's log");
            ApiError::new(
                ErrorCode::InternalError,
                "the log cannot be read; the hive's log says why",
            )
        }
    })
}

pub(super) async fn chat(
    state: HiveState,
    context: RequestContext,
    headers: HeaderMap,
    id: Named<WorkerId>,
    body: RawJson,
) -> Result<Response, ApiError> {
    pass_on(&state, Endpoint::Chat, context, &headers, id, body).await
}

pub(super) async fn complete(
    state: HiveState,
    context: RequestContext,
    headers: HeaderMap,
    id: Named<WorkerId>,
    body: RawJson,
) -> Result<Response, ApiError> {
    pass_on(&state, Endpoint::Completion, context, &headers, id, body).await
}

pub(super) async fn embed(
    state: HiveState,
    context: RequestContext,
    headers: HeaderMap,
    id: Named<WorkerId>,
    body: RawJson,
) -> Result<Response, ApiError> {
    pass_on(&state, Endpoint::Embeddings, context, &headers, id, body).await
}

pub(super) async fn rerank(
    state: HiveState,
    context: RequestContext,
    headers: HeaderMap,
    id: Named<WorkerId>,
    body: RawJson,
) -> Result<Response, ApiError> {
    pass_on(&state, Endpoint::Rerank, context, &headers, id, body).await
}

async fn pass_on(
    hive: &Hive,
    endpoint: Endpoint,
    context: RequestContext,
    headers: &HeaderMap,
    Named(id): Named<WorkerId>,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    refuse_if_draining(hive)?;
    let deadline = deadline(headers)?;
    forward(&hive.registry, &id, endpoint, body, headers, context, deadline).await
}
