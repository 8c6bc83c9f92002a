//! `POST /v1/rerank`: the request and the reply, in the form that Jina and
//! Cohere gave them and that inference servers have taken over.

use input_validation::ModelRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::{Fields, RequestError, in_range};
use super::generation::take_user;
use super::reply::InputUsage;
use crate::limits;

/// A checked request to rank documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RerankRequest {
    /// The model, as the client named it.
    pub model: ModelRef,
    /// What the documents are to answer; never empty.
    pub query: String,
    /// The documents; at least one, none empty.
    pub documents: Vec<String>,
    /// Most results wanted; absent means one for each document.
    pub top_n: Option<u32>,
    /// Whether the results carry the documents' texts.
    pub return_documents: bool,
    /// Whom the client asks for; users of one client take turns.
    pub user: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawDocument {
    Text(String),
    Object(RerankDocument),
}

impl RerankRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    /// [`RequestError`] names the field that is wrong or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.require("model")?;
        let query: String = fields.require("query")?;
        check_text("query", &query)?;
        fields.check_no_lists_in("documents")?;
        let documents = check_documents(fields.require("documents")?)?;
        let top_n = fields
            .take::<u32>("top_n")?
            .map(|top_n| in_range("top_n", top_n, 1, u32::MAX))
            .transpose()?;
        let return_documents = fields.take("return_documents")?.unwrap_or(false);
        let user = take_user(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, query, documents, top_n, return_documents, user })
    }
}

fn check_documents(raw: Vec<RawDocument>) -> Result<Vec<String>, RequestError> {
    let most = limits::RERANK_DOCUMENTS_MAX;
    if raw.is_empty() || raw.len() > most {
        let reason = format!("documents must have 1 to {most} entries");
        return Err(RequestError::invalid("documents", reason));
    }
    let mut documents = Vec::with_capacity(raw.len());
    for (index, document) in raw.into_iter().enumerate() {
        let text = match document {
            RawDocument::Text(text) | RawDocument::Object(RerankDocument { text }) => text,
        };
        check_text(&format!("documents[{index}]"), &text)?;
        documents.push(text);
    }
    Ok(documents)
}

fn check_text(param: &str, text: &str) -> Result<(), RequestError> {
    if text.is_empty() {
        return Err(RequestError::invalid(param, format!("{param} is empty; say something")));
    }
    if text.contains('\0') {
        return Err(RequestError::invalid(param, "text must not contain a NUL character"));
    }
    Ok(())
}

/// The reply: the best document first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerankReply {
    /// `list`.
    pub object: String,
    /// The model as the client named it.
    pub model: String,
    /// One entry a document, or the `top_n` best.
    pub results: Vec<RerankResult>,
    /// Token counts.
    pub usage: InputUsage,
}

/// How well one document answers the query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerankResult {
    /// The place of the document in the request.
    pub index: u32,
    /// The model's score as it gives it; larger is better, and what range it has is the model's affair.
    pub relevance_score: f32,
    /// The document, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<RerankDocument>,
}

/// A document as an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RerankDocument {
    /// Its text.
    pub text: String,
}
