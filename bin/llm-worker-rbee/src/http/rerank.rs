//! `POST /v1/rerank`.

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use rbee_api::model::ModelKind;
use rbee_api::openai::{InputUsage, RerankDocument, RerankReply, RerankRequest, RerankResult};
use rbee_http::{ApiError, RawJson, RequestContext};

use super::{App, deadline};
use crate::embedding::{Inputs, Request, compute};
use crate::engine::embedder::InputReader;

pub(super) async fn rank(
    State(app): State<App>,
    context: RequestContext,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Json<RerankReply>, ApiError> {
    let deadline = deadline(&headers)?;
    // Nothing is kept of an input, so that nothing could be shared between users.
    let RerankRequest { model, query, documents, top_n, return_documents, user: _ } =
        RerankRequest::parse(&body)?;
    let name = model.to_string();
    let bytes = documents.iter().map(|document| document.len() + query.len()).sum();
    let request = Request { id: context.id, model, asks: ModelKind::Rerank, deadline, bytes };
    let texts = if return_documents { documents.clone() } else { Vec::new() };
    let results =
        compute(&app, request, move |reader, inputs| read(reader, &query, &documents, inputs))
            .await?;
    let mut ranked: Vec<RerankResult> = (0..)
        .zip(results.vectors)
        .map(|(index, scores)| RerankResult {
            index,
            // A classifier with several classes has the one that counts first.
            relevance_score: scores.first().copied().unwrap_or_default(),
            document: None,
        })
        .collect();
    // Documents with the same score stay in their order.
    ranked.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    ranked.truncate(top_n.unwrap_or(u32::MAX) as usize);
    for result in &mut ranked {
        let text = texts.get(result.index as usize).cloned();
        result.document = text.map(|text| RerankDocument { text });
    }
    Ok(Json(RerankReply {
        object: "list".to_owned(),
        model: name,
        results: ranked,
        usage: InputUsage::new(results.tokens),
    }))
}

fn read(
    reader: &dyn InputReader,
    query: &str,
    documents: &[String],
    inputs: &mut Inputs,
) -> Result<(), ApiError> {
    (0_usize..).zip(documents).try_for_each(|(index, document)| {
        inputs.push(|| format!("documents[{index}]"), reader.pair(query, document))
    })
}
