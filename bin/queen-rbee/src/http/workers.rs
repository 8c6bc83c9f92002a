//! Workers on all machines: listed, stopped, their logs read.

use std::sync::Arc;
use std::time::Duration;

use audit_logging::{Event, Kind, Outcome, SubjectKind};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use deadline_propagation::Deadline;
use futures_util::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use input_validation::WorkerId;
use rbee_api::error::ErrorCode;
use rbee_api::queen::{PlacedWorkerDetail, PlacedWorkerList, PlacedWorkerReset, Removed};
use rbee_api::worker::{WorkerDetail, WorkerReset};
use rbee_http::{ApiError, CallError, Caller, HopClient, LoadWatch, load_events};
use serde_json::json;

use crate::app::App;
use crate::dispatch::online_hive;

/// How long a machine may take to ask a worker about itself.
const SHOW_LIMIT: Duration = Duration::from_secs(5);
/// How long a machine may take to stop a worker: its drain and its end.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// How long a machine may take to start a process; loading the model comes after it.
const RESET_LIMIT: Duration = Duration::from_secs(30);
/// How long a log can be followed with one request.
const LOGS_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest query that is handed on.
const QUERY_BYTES_MAX: usize = 256;

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<PlacedWorkerList> {
    Json(PlacedWorkerList { workers: app.workers() })
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<PlacedWorkerDetail>, ApiError> {
    let id: WorkerId = id.parse().map_err(|_| not_found())?;
    let hive = app.registry.hive_of(&id).ok_or_else(not_found)?;
    let deadline = Deadline::after(SHOW_LIMIT);
    let client = online_hive(&app, &hive, deadline).await?;
    let detail = client.get(&format!("/api/v1/workers/{id}"), deadline).await;
    let mut detail: WorkerDetail = detail.map_err(no_answer)?;
    detail.worker.slots_available = app.registry.view().slots_available(&detail.worker);
    Ok(Json(PlacedWorkerDetail { hive, detail }))
}

/// Tells how far a worker's load is, until it is ready or has failed.
pub(super) async fn load(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id: WorkerId = id.parse().map_err(|_| not_found())?;
    let deadline = app.deadline(&headers)?;
    let changes = app.registry.subscribe();
    app.registry.hive_of(&id).ok_or_else(not_found)?;
    let watch = LoadWatch { deadline, stop: app.shutdown.asked().clone() };
    let look = move || {
        let workers = app.workers().into_iter().map(|placed| placed.worker);
        workers.into_iter().find(|worker| worker.id == id)
    };
    Ok(load_events(changes, watch, look))
}

pub(super) async fn stop(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Removed>, ApiError> {
    let id: WorkerId = id.parse().map_err(|_| not_found())?;
    let hive = app.registry.hive_of(&id).ok_or_else(not_found)?;
    let event = Event::new(Kind::WorkerStop, Outcome::Requested);
    Caller::current().note(event.on(SubjectKind::Worker, &id).with("machine", &hive));
    let deadline = Deadline::after(STOP_LIMIT);
    let client = online_hive(&app, &hive, deadline).await?;
    let removed = client.delete(&format!("/api/v1/workers/{id}"), deadline).await;
    removed.map(Json).map_err(no_answer)
}

/// Has a worker's machine forget the failures of its model, and start another in the place of a failed one at once.
pub(super) async fn reset(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<PlacedWorkerReset>, ApiError> {
    let id: WorkerId = id.parse().map_err(|_| not_found())?;
    let hive = app.registry.hive_of(&id).ok_or_else(not_found)?;
    let event = Event::new(Kind::WorkerReset, Outcome::Requested);
    Caller::current().record(event.on(SubjectKind::Worker, &id).with("machine", &hive)).await?;
    let deadline = Deadline::after(RESET_LIMIT);
    let client = online_hive(&app, &hive, deadline).await?;
    let nothing = json!({});
    let reset = client.post(&format!("/api/v1/workers/{id}/reset"), &nothing, deadline).await;
    let reset: WorkerReset = reset.map_err(no_answer)?;
    app.registry.note_worker(&hive, reset.worker.clone());
    Ok(Json(PlacedWorkerReset { hive, reset }))
}

pub(super) async fn logs(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let id: WorkerId = id.parse().map_err(|_| not_found())?;
    let query = query.filter(|query| query.len() <= QUERY_BYTES_MAX);
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    let path = format!("/api/v1/workers/{id}/logs{query}");
    for hive in hives_to_ask(&app, &id) {
        match hive.get_stream(&path, Deadline::after(LOGS_LIMIT)).await {
            Ok(reply) => return Ok(text_response(&app, reply.bytes_stream())),
            Err(CallError::Refused(detail)) if detail.code == ErrorCode::WorkerNotFound => {}
            Err(error) => return Err(no_answer(error)),
        }
    }
    Err(not_found())
}

/// The machine that names the worker; else all, since logs outlive workers.
fn hives_to_ask(app: &App, id: &WorkerId) -> Vec<HopClient> {
    let names = match app.registry.hive_of(id) {
        Some(hive) => vec![hive],
        None => app.registry.view().hives.into_iter().map(|hive| hive.name).collect(),
    };
    names.iter().filter_map(|name| app.registry.client(name)).collect()
}

/// A log that is followed has no end of its own: it ends when the queen is to stop.
fn text_response<S, E>(app: &App, text: S) -> Response
where
    S: futures_util::Stream<Item = Result<bytes::Bytes, E>> + Send + 'static,
    E: Into<axum::BoxError> + Send + 'static,
{
    let text = text.take_until(app.shutdown.asked().clone().cancelled_owned());
    let mut response = Body::from_stream(text).into_response();
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn not_found() -> ApiError {
    let message = "no machine has this worker; `rbee ps` shows those there are";
    ApiError::new(ErrorCode::WorkerNotFound, message)
}

fn no_answer(error: CallError) -> ApiError {
    let message = "the machine with the worker does not answer";
    error.into_detail(ErrorCode::HiveUnreachable, message).into()
}
