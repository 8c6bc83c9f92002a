//! `DELETE /api/v1/requests/{id}` and `POST /api/v1/shutdown`.

use axum::Json;
use axum::extract::{Path, State};
use input_validation::RequestId;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::queen::Removed;
use rbee_api::worker::WorkerStatus;
use rbee_http::ApiError;

use super::{App, status};

pub(super) async fn cancel(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Removed>, ApiError> {
    let unknown = || ApiError::new(ErrorCode::RequestNotFound, "no such request is running here");
    let id: RequestId = id.parse().map_err(|_| unknown())?;
    let detail = ErrorDetail::new(ErrorCode::RequestCancelled, "the request was cancelled");
    match app.live().end(&id, &detail) {
        0 => Err(unknown()),
        _ => Ok(Json(Removed { removed: id.to_string() })),
    }
}

pub(super) async fn shut_down(State(app): State<App>) -> Json<WorkerStatus> {
    app.drain();
    app.0.shutdown.cancel();
    status::show(State(app)).await
}
