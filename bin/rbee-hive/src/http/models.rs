//! Models of this machine.

use std::sync::Arc;

use audit_logging::{Event, Kind, Outcome, SubjectKind};
use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use input_validation::ModelRef;
use model_catalog::Model;
use rbee_api::error::ErrorCode;
use rbee_api::model::{ModelList, PullRequest};
use rbee_api::queen::Removed;
use rbee_http::{ApiError, Caller, JsonBody};
use tokio::runtime::Handle;
use tokio::time::timeout_at;

use super::paths::Named;
use super::{HiveState, deadline, refuse_if_draining};
use crate::models::ImportContext;

pub(super) async fn list(State(hive): HiveState) -> Result<Json<ModelList>, ApiError> {
    Ok(Json(ModelList { models: hive.models.list().await? }))
}

pub(super) async fn pull(
    State(hive): HiveState,
    headers: HeaderMap,
    JsonBody(request): JsonBody<PullRequest>,
) -> Result<Response, ApiError> {
    refuse_if_draining(&hive)?;
    let registry = Arc::clone(&hive.registry);
    let stop = hive.shutdown.stop.clone();
    let context = ImportContext { deadline: deadline(&headers)?, stop, tasks: &hive.tasks };
    let caller = Caller::current();
    let event = |outcome| {
        let event = Event::new(Kind::ModelPull, outcome);
        event.on(SubjectKind::Model, &request.reference)
    };
    caller.record(event(Outcome::Requested)).await?;
    let done = event(Outcome::Success);
    let registered = move |model: &Model| {
        caller.note(done.clone().with("sha256", &model.sha256));
        registry.retire_renamed(model);
        registry.forget(&model.reference);
        Handle::current().block_on(registry.queen_told());
    };
    hive.models.import(request, context, registered).await
}

/// Removes a model that no worker needs: idle workers of it are stopped first, busy ones are a reason to refuse.
pub(super) async fn remove(
    State(hive): HiveState,
    headers: HeaderMap,
    Named(name): Named<ModelRef>,
) -> Result<Json<Removed>, ApiError> {
    let deadline = deadline(&headers)?;
    let model = hive.models.find(&name).await?;
    let reference = model.map_or(name, |model| model.reference);
    let event = |outcome| Event::new(Kind::ModelDelete, outcome).on(SubjectKind::Model, &reference);
    let caller = Caller::current();
    caller.note(event(Outcome::Requested));
    let removal = hive.registry.begin_removal(&reference)?;
    if timeout_at(deadline.instant(), removal.unused()).await.is_err() {
        return Err(ApiError::new(
            ErrorCode::ModelInUse,
            "a worker of the model did not end in time",
        ));
    }
    hive.models.remove(&reference).await?;
    caller.note(event(Outcome::Success));
    drop(removal);
    hive.registry.forget(&reference);
    hive.registry.queen_told().await;
    tracing::info!(model = %reference, "model removed");
    Ok(Json(Removed { removed: reference.to_string() }))
}
