//! Models on the machines: listed, pulled, removed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use audit_logging::{Event, Kind, Outcome, SubjectKind};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use deadline_propagation::Deadline;
use futures_util::stream;
use input_validation::ModelRef;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::PullRequest;
use rbee_api::queen::{PlacedModel, PlacedModelList, Removed};
use rbee_http::{ApiError, Caller, JsonBody, event_stream_response};
use tokio::time::Instant;

use crate::app::App;
use crate::cluster::HiveView;
use crate::dispatch::{first_report, online_hive};
use crate::keys::Requester;
use crate::pull_relay::PullRelay;

/// How long a listing waits for a queen that has just started.
const LISTING_PATIENCE: Duration = Duration::from_secs(10);
/// Longest pull: a day is enough for any model over any line.
const PULL_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a pull waits for a machine that is being started.
const PULL_PATIENCE: Duration = Duration::from_secs(30);
/// How long a machine may take to remove a file.
const REMOVE_LIMIT: Duration = Duration::from_secs(60);

/// Returns every model once, with the machines that have it, oldest first. Those that are stale are left out.
fn known_models(app: &App) -> Vec<PlacedModel> {
    let mut placed: BTreeMap<ModelRef, PlacedModel> = BTreeMap::new();
    for hive in app.registry.view().hives.into_iter().filter(HiveView::is_listed) {
        for model in hive.snapshot.iter().flat_map(|snapshot| &snapshot.models) {
            let fresh = || PlacedModel { model: model.clone(), hives: Vec::new() };
            let entry = placed.entry(model.reference.clone()).or_insert_with(fresh);
            entry.hives.push(hive.name.clone());
        }
    }
    let mut models: Vec<_> = placed.into_values().collect();
    models.sort_by_key(|placed| placed.model.added_at_ms);
    models
}

/// Returns the models that a caller may know of, as [`known_models`].
pub(super) fn models_of(app: &App, requester: &Requester) -> impl Iterator<Item = PlacedModel> {
    known_models(app).into_iter().filter(|placed| requester.may_use(&placed.model))
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    requester: Requester,
) -> Result<Json<PlacedModelList>, ApiError> {
    first_report(&app, Deadline::after(LISTING_PATIENCE)).await?;
    Ok(Json(PlacedModelList { models: models_of(&app, &requester).collect() }))
}

pub(super) async fn pull(
    State(app): State<Arc<App>>,
    JsonBody(request): JsonBody<PullRequest>,
) -> Result<Response, ApiError> {
    let counted = app.admit()?;
    let event = Event::new(Kind::ModelPull, Outcome::Requested);
    Caller::current().record(event.on(SubjectKind::Model, &request.reference)).await?;
    let hive = online_hive(&app, &app.local, Deadline::after(PULL_PATIENCE)).await?;
    let silent = "the machine that should pull does not answer";
    let asked = hive.post_stream("/api/v1/models/pull", &request, Deadline::after(PULL_LIMIT));
    let reply = tokio::select! {
        reply = asked => reply.map_err(|error| error.into_detail(ErrorCode::HiveUnreachable, silent)),
        () = app.registry.falls_silent(&app.local, Instant::now()) => {
            Err(ErrorDetail::new(ErrorCode::HiveUnreachable, silent))
        }
    }?;
    let cut = app.cut.clone();
    let events = stream::unfold((app, reply.bytes_stream()), |(app, mut pieces)| async {
        let piece = app.registry.next_piece(&app.local, &mut pieces).await?;
        Some((piece, (app, pieces)))
    });
    Ok(event_stream_response(PullRelay::new(Box::pin(events), counted, cut)))
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Path(reference): Path<String>,
) -> Result<Json<Removed>, ApiError> {
    first_report(&app, Deadline::after(LISTING_PATIENCE)).await?;
    let name: ModelRef = reference.parse().map_err(|_| not_found())?;
    let known = known_models(&app).into_iter().find(|placed| placed.model.answers_to(&name));
    let placed = known.ok_or_else(not_found)?;
    let event = Event::new(Kind::ModelDelete, Outcome::Requested);
    Caller::current().note(event.on(SubjectKind::Model, &placed.model.reference));
    // The alphabet of references leaves this one character to be escaped in a path.
    let path = format!("/api/v1/models/{}", placed.model.reference.as_str().replace('%', "%25"));
    for hive in &placed.hives {
        let deadline = Deadline::after(REMOVE_LIMIT);
        let hive = online_hive(&app, hive, deadline).await?;
        let removed: Result<Removed, _> = hive.delete(&path, deadline).await;
        removed.map_err(|error| {
            error.into_detail(
                ErrorCode::HiveUnreachable,
                "the machine with the model does not answer",
            )
        })?;
    }
    Ok(Json(Removed { removed: placed.model.reference.to_string() }))
}

fn not_found() -> ApiError {
    let message = "no machine has this model; `rbee list` shows those there are";
    ErrorDetail::new(ErrorCode::ModelNotFound, message).into()
}
