//! Passes a client's request on to a worker and its answer back. Checks the request as every hop does, and sends on
//! the bytes as they came, with what the queen adds for a stream that can go on elsewhere.

use std::sync::Arc;
use std::time::Duration;

use audit_logging::{Outcome, Trail};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use deadline_propagation::Deadline;
use futures_util::TryStreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use input_validation::{ModelRef, WorkerId};
use metrics::counter;
use rbee_api::error::{CAUSE, ErrorCode, ErrorDetail, LIVES, TAKEN};
use rbee_api::openai::{
    ChatRequest, CompletionRequest, EmbeddingRequest, RequestError, RerankRequest,
};
use rbee_http::{
    ApiError, CallError, Caller, DONE_EVENT, ForwardedBody, Relay, RequestContext, cache_scope,
    collect, relay_events,
};
use serde_json::{Value, json};

use crate::registry::{Fate, Registry, WorkerEnd};

/// What a client is told when its worker is gone.
const BROKEN: &str = "the worker died or broke off before its answer was complete";
/// How long is waited to learn how it ended. The process is told of at once, mostly within a few milliseconds of its
/// connection; one that is there after that lives.
const FATE_WAIT: Duration = Duration::from_millis(150);

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

    /// Checks a request, and says which model it asks for and whether its answer is to be streamed.
    fn read(self, body: &[u8]) -> Result<(ModelRef, bool), RequestError> {
        match self {
            Self::Chat => {
                ChatRequest::parse(body).map(|request| (request.model, request.stream.stream))
            }
            Self::Completion => {
                CompletionRequest::parse(body).map(|request| (request.model, request.stream.stream))
            }
            Self::Embeddings => EmbeddingRequest::parse(body).map(|request| (request.model, false)),
            Self::Rerank => RerankRequest::parse(body).map(|request| (request.model, false)),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "text_completion",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
        }
    }
}

/// Finds out from the last bytes of a stream whether it was whole, however it was cut into pieces.
struct EndOfStream {
    trail: Trail,
    tail: Vec<u8>,
}

impl EndOfStream {
    fn new(trail: Trail) -> Self {
        trail.ends(Outcome::Failure, "incomplete");
        Self { trail, tail: Vec::new() }
    }

    fn see(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let surplus = self.tail.len().saturating_sub(DONE_EVENT.len());
        self.tail.drain(..surplus);
        if self.tail == DONE_EVENT {
            self.trail.ends(Outcome::Success, "ok");
        }
    }
}

fn failed(trail: &Trail, detail: ErrorDetail) -> ApiError {
    trail.ends(Outcome::Failure, detail.code.as_str());
    detail.into()
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
    let (model, wants_stream) = endpoint.read(&parts.client)?;
    let cache_scope = cache_scope(headers)?;
    let (client, guard) = registry.enter(worker).map_err(|e| not_taken(e.into_detail()))?;
    let (client, end) = (client.within(cache_scope), guard.end());
    let trail = Caller::current().trail(&context.id, endpoint.name(), model.as_str());
    trail.assigned(worker.as_str());
    counter!("rbee_hive_requests_forwarded_total").increment(1);
    let (path, id) = (endpoint.path(), &context.id);
    let reply = if parts.is_marked {
        client.forward_marked(path, body, parts.client.len(), id, deadline).await
    } else {
        client.forward(path, body, id, deadline).await
    };
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) if error.was_sent() => {
            return Err(failed(&trail, told_why(error, end).await));
        }
        Err(error) => return Err(failed(&trail, not_taken(into_detail(error)))),
    };
    if wants_stream {
        let relay = Relay {
            request_id: context.id,
            broken: Box::pin(why_it_broke_off(end)),
            deadline,
            guard,
        };
        let mut outcome = EndOfStream::new(trail);
        let events = reply.bytes_stream().inspect_ok(move |bytes| outcome.see(bytes));
        return Ok(relay_events(events, relay));
    }
    let body = match collect(reply, deadline).await {
        Ok(body) => body,
        Err(error) => return Err(failed(&trail, told_why(error, end).await)),
    };
    trail.ends(Outcome::Success, "ok");
    drop(guard);
    let mut response = body.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Adds to what is said of a worker's end that the request never came to it.
fn not_taken(mut detail: ErrorDetail) -> ErrorDetail {
    if detail.code == ErrorCode::WorkerFailed {
        add_figure(&mut detail, TAKEN, json!(false));
    }
    detail
}

fn into_detail(error: CallError) -> ErrorDetail {
    error.into_detail(ErrorCode::WorkerFailed, BROKEN)
}

/// Says why a worker did not answer, and how its process ended, where that is known soon.
async fn told_why(error: CallError, end: WorkerEnd) -> ErrorDetail {
    if matches!(error, CallError::Unreachable(_)) {
        return why_it_broke_off(end).await;
    }
    let mut detail = into_detail(error);
    if detail.code == ErrorCode::WorkerFailed
        && let Some(Fate::Ended(cause)) = end.fate_within(FATE_WAIT).await
    {
        add_figure(&mut detail, CAUSE, json!(cause));
    }
    detail
}

/// Says why the connection to a worker broke: its process has ended, or lives and knows nothing of it.
async fn why_it_broke_off(end: WorkerEnd) -> ErrorDetail {
    let mut detail = ErrorDetail::new(ErrorCode::WorkerFailed, BROKEN);
    match end.fate_within(FATE_WAIT).await {
        Some(Fate::Ended(cause)) => add_figure(&mut detail, CAUSE, json!(cause)),
        Some(Fate::Lives) => add_figure(&mut detail, LIVES, json!(true)),
        None => {}
    }
    detail
}

fn add_figure(detail: &mut ErrorDetail, name: &str, value: Value) {
    let figures = detail.details.get_or_insert_with(|| json!({}));
    if let Some(figures) = figures.as_object_mut() {
        figures.insert(name.to_owned(), value);
    }
}
