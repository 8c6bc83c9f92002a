//! Passes a client's request on to a worker and its answer back. Checks the request as every hop does, and sends on
//! the bytes as they came, with what the queen adds for a stream that can go on elsewhere.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use deadline_propagation::Deadline;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use input_validation::WorkerId;
use metrics::counter;
use rbee_api::error::{ErrorCode, ErrorDetail, TAKEN};
use rbee_api::openai::{
    ChatRequest, CompletionRequest, EmbeddingRequest, RequestError, RerankRequest,
};
use rbee_http::{ApiError, CallError, ForwardedBody, Relay, RequestContext, collect, relay_events};
use serde_json::json;

use crate::registry::Registry;

/// What a client is told when its worker is gone.
const BROKEN: &str = "the worker died or broke off before its answer was complete";

/// What a request asks a worker for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Endpoint {
    Chat,
    Completion,
    Embeddings,
    Rerank,
}

impl Endpoint {
    const fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Rerank => "/v1/rerank",
        }
    }

    /// Checks a request, and says whether its answer is to be streamed.
    fn wants_stream(self, body: &[u8]) -> Result<bool, RequestError> {
        match self {
            Self::Chat => ChatRequest::parse(body).map(|request| request.stream.stream),
            Self::Completion => CompletionRequest::parse(body).map(|request| request.stream.stream),
            Self::Embeddings => EmbeddingRequest::parse(body).map(|_| false),
            Self::Rerank => RerankRequest::parse(body).map(|_| false),
        }
    }
}

/// Forwards one request. Dropping the response, or the future, ends the request at the worker too.
///
/// # Errors
/// What is wrong with the request, why the worker cannot take it, or the worker's own refusal.
pub(crate) async fn forward(
    registry: &Arc<Registry>,
    worker: &WorkerId,
    endpoint: Endpoint,
    body: Bytes,
    headers: &HeaderMap,
    context: RequestContext,
    deadline: Deadline,
) -> Result<Response, ApiError> {
    let parts = ForwardedBody::split(headers, body.clone())?;
    let wants_stream = endpoint.wants_stream(&parts.client)?;
    let (client, guard) = registry.enter(worker).map_err(|e| not_taken(e.into_detail()))?;
    counter!("rbee_hive_requests_forwarded_total").increment(1);
    let broken = |error: CallError| error.into_detail(ErrorCode::WorkerFailed, BROKEN);
    let (path, id) = (endpoint.path(), &context.id);
    let reply = if parts.is_marked {
        client.forward_marked(path, body, parts.client.len(), id, deadline).await
    } else {
        client.forward(path, body, id, deadline).await
    };
    let reply = reply
        .map_err(|error| if error.was_sent() { broken(error) } else { not_taken(broken(error)) })?;
    if wants_stream {
        let relay = Relay {
            request_id: context.id,
            broken: ErrorCode::WorkerFailed,
            message: BROKEN,
            deadline,
            guard,
        };
        return Ok(relay_events(reply.bytes_stream(), relay));
    }
    let body = collect(reply, deadline).await.map_err(broken)?;
    drop(guard);
    let mut response = body.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Adds to what is said of a worker's end that the request never came to it.
fn not_taken(mut detail: ErrorDetail) -> ErrorDetail {
    if detail.code == ErrorCode::WorkerFailed {
        let figures = detail.details.get_or_insert_with(|| json!({}));
        if let Some(figures) = figures.as_object_mut() {
            figures.insert(TAKEN.to_owned(), json!(false));
        }
    }
    detail
}
