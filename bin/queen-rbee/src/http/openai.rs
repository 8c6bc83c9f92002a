//! OpenAI's part of the table, and the ranking that others added to it: requests
//! are checked once here and forwarded as they came.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use deadline_propagation::Deadline;
use http::HeaderMap;
use input_validation::ModelRef;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::{
    ChatRequest, CompletionRequest, EmbeddingRequest, ModelCard, ModelCardList, RerankRequest,
};
use rbee_http::{ApiError, RawJson, RequestContext};

use super::models::models_of;
use crate::app::App;
use crate::dispatch::{Call, Operation, first_report, forward};
use crate::keys::Requester;

/// How long a listing waits for a queen that has just started.
const LISTING_PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn chat(
    State(app): State<Arc<App>>,
    requester: Requester,
    RequestContext { id }: RequestContext,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    let deadline = app.deadline(&headers)?;
    let request = ChatRequest::parse(&body)?;
    let (model, streams) = (request.model, request.stream.stream);
    let slots = request.generation.choices;
    let client = requester.client(request.generation.user.as_deref());
    let spending = requester.begin(&app, &model)?;
    let operation = Operation::Chat;
    forward(&app, Call { id, operation, model, body, streams, slots, client, spending, deadline })
        .await
}

pub(super) async fn completion(
    State(app): State<Arc<App>>,
    requester: Requester,
    RequestContext { id }: RequestContext,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    let deadline = app.deadline(&headers)?;
    let request = CompletionRequest::parse(&body)?;
    let (model, streams) = (request.model, request.stream.stream);
    let slots = request.generation.choices;
    let client = requester.client(request.generation.user.as_deref());
    let spending = requester.begin(&app, &model)?;
    let operation = Operation::Completion;
    forward(&app, Call { id, operation, model, body, streams, slots, client, spending, deadline })
        .await
}

pub(super) async fn embeddings(
    State(app): State<Arc<App>>,
    requester: Requester,
    RequestContext { id }: RequestContext,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    let deadline = app.deadline(&headers)?;
    let EmbeddingRequest { model, user, .. } = EmbeddingRequest::parse(&body)?;
    let client = requester.client(user.as_deref());
    let spending = requester.begin(&app, &model)?;
    let (operation, streams, slots) = (Operation::Embeddings, false, 1);
    forward(&app, Call { id, operation, model, body, streams, slots, client, spending, deadline })
        .await
}

pub(super) async fn rerank(
    State(app): State<Arc<App>>,
    requester: Requester,
    RequestContext { id }: RequestContext,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    let deadline = app.deadline(&headers)?;
    let RerankRequest { model, user, .. } = RerankRequest::parse(&body)?;
    let client = requester.client(user.as_deref());
    let spending = requester.begin(&app, &model)?;
    let (operation, streams, slots) = (Operation::Rerank, false, 1);
    forward(&app, Call { id, operation, model, body, streams, slots, client, spending, deadline })
        .await
}

pub(super) async fn models(
    State(app): State<Arc<App>>,
    requester: Requester,
) -> Result<Json<ModelCardList>, ApiError> {
    first_report(&app, Deadline::after(LISTING_PATIENCE)).await?;
    let data = models_of(&app, &requester).map(|placed| card(&placed.model)).collect();
    Ok(Json(ModelCardList { object: "list".to_owned(), data }))
}

pub(super) async fn model(
    State(app): State<Arc<App>>,
    requester: Requester,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    first_report(&app, Deadline::after(LISTING_PATIENCE)).await?;
    let name: ModelRef = id.parse().map_err(|_| not_found())?;
    let known = models_of(&app, &requester).find(|placed| placed.model.answers_to(&name));
    known.map(|placed| Json(card(&placed.model))).ok_or_else(not_found)
}

fn card(model: &rbee_api::model::ModelInfo) -> ModelCard {
    ModelCard {
        id: model.display_name(),
        object: "model".to_owned(),
        created: model.added_at_ms / 1000,
        owned_by: "rbee".to_owned(),
        capabilities: model.kind.capabilities().iter().map(ToString::to_string).collect(),
    }
}

fn not_found() -> ApiError {
    let message = "no machine has this model; GET /v1/models lists those there are";
    ErrorDetail::new(ErrorCode::ModelNotFound, message).with_param("model").into()
}
