//! `POST /v1/embeddings`.

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::limits::EMBEDDING_NUMBERS_MAX;
use rbee_api::model::ModelKind;
use rbee_api::openai::{
    EmbeddingData, EmbeddingInput, EmbeddingList, EmbeddingRequest, EmbeddingVector, InputUsage,
};
use rbee_http::{ApiError, RawJson, RequestContext};

use super::{App, deadline};
use crate::embedding::{BadInput, Inputs, Request, compute, embedding_for, normalise};
use crate::engine::embedder::InputReader;

pub(super) async fn embed(
    State(app): State<App>,
    context: RequestContext,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Json<EmbeddingList>, ApiError> {
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
    let results = compute(&app, request, move |reader| read(reader, &asked)).await?;
    let data = (0..).zip(results.vectors).map(|(index, mut vector)| {
        normalise(&mut vector, dimensions);
        let embedding = EmbeddingVector::encode(vector, encoding);
        EmbeddingData { object: "embedding".to_owned(), index, embedding }
    });
    Ok(Json(EmbeddingList {
        object: "list".to_owned(),
        data: data.collect(),
        model,
        usage: InputUsage::new(results.tokens),
    }))
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

fn read(reader: &dyn InputReader, asked: &EmbeddingRequest) -> Result<Inputs, BadInput> {
    let params: Vec<String> = (0..asked.inputs.len()).map(|index| asked.param(index)).collect();
    let tokens = asked.inputs.iter().zip(&params).map(|(input, param)| {
        let tokens = match input {
            EmbeddingInput::Text(text) => reader.text(text),
            EmbeddingInput::Tokens(tokens) => reader.tokens(tokens),
        };
        tokens.map_err(|error| BadInput { param: param.clone(), error })
    });
    Ok(Inputs { tokens: tokens.collect::<Result<_, _>>()?, params })
}
