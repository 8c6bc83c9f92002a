//! `POST /v1/embeddings`.

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::limits::EMBEDDING_NUMBERS_MAX;
use rbee_api::model::ModelKind;
use rbee_api::openai::{
    EmbeddingData, EmbeddingEncoding, EmbeddingInput, EmbeddingList, EmbeddingRequest,
    EmbeddingVector, InputUsage,
};
use rbee_http::{ApiError, RawJson, RequestContext};
use tokio::task::spawn_blocking;

use super::{App, deadline};
use crate::embedding::{Inputs, Request, Results, compute, embedding_for, normalise};
use crate::engine::embedder::InputReader;

/// Replies of up to this many numbers are written where they are asked for;
/// larger ones would hold up everybody else's answers.
const INLINE_NUMBERS_MAX: usize = 16_384;

pub(super) async fn embed(
    State(app): State<App>,
    context: RequestContext,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    let deadline = deadline(&headers)?;
    let asked = EmbeddingRequest::parse(&body)?;
    let model = asked.model.to_string();
    let (encoding, wanted, inputs) = (asked.encoding, asked.dimensions, asked.inputs.len());
    let request = Request {
        id: context.id,
        model: asked.model.clone(),
        asks: ModelKind::Embed,
        deadline,
        bytes: body.len(),
    };
    let dimensions = embedding_for(&app, &request)?.1.dimensions.choose(wanted)?;
    check_reply_size(inputs, dimensions)?;
    let results =
        compute(&app, request, move |reader, inputs| read(reader, &asked, inputs)).await?;
    let numbers = inputs.saturating_mul(dimensions as usize);
    let write = move || write(results, model, dimensions, encoding);
    let written = if numbers <= INLINE_NUMBERS_MAX {
        write()
    } else {
        spawn_blocking(write).await.map_err(|error| defect(&error))?
    };
    let body = written.map_err(|error| defect(&error))?;
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

fn write(
    results: Results,
    model: String,
    dimensions: u32,
    encoding: EmbeddingEncoding,
) -> Result<Vec<u8>, serde_json::Error> {
    let data = (0..).zip(results.vectors).map(|(index, mut vector)| {
        normalise(&mut vector, dimensions);
        let embedding = EmbeddingVector::encode(vector, encoding);
        EmbeddingData { object: "embedding".to_owned(), index, embedding }
    });
    serde_json::to_vec(&EmbeddingList {
        object: "list".to_owned(),
        data: data.collect(),
        model,
        usage: InputUsage::new(results.tokens),
    })
}

fn defect(error: &dyn std::error::Error) -> ApiError {
    tracing::error!(%error, "the embeddings cannot be written");
    ApiError::new(ErrorCode::InternalError, "the reply could not be written")
}

fn check_reply_size(inputs: usize, dimensions: u32) -> Result<(), ApiError> {
    let most = EMBEDDING_NUMBERS_MAX / dimensions.max(1) as usize;
    if inputs <= most {
        return Ok(());
    }
    let message = format!(
        "this model's embeddings are so large that a request may have {most} inputs; send more requests"
    );
    Err(ErrorDetail::new(ErrorCode::ValidationFailed, message).with_param("input").into())
}

fn read(
    reader: &dyn InputReader,
    asked: &EmbeddingRequest,
    inputs: &mut Inputs,
) -> Result<(), ApiError> {
    (0..).zip(&asked.inputs).try_for_each(|(index, input)| {
        let tokens = match input {
            EmbeddingInput::Text(text) => reader.text(text),
            EmbeddingInput::Tokens(tokens) => reader.tokens(tokens),
        };
        inputs.push(|| asked.param(index), tokens)
    })
}
