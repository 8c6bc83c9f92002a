//! `POST /v1/embeddings`: the request and the reply.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use input_validation::ModelRef;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fields::{Fields, RequestError};
use super::generation::take_user;
use super::reply::InputUsage;
use crate::limits;

/// One text to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddingInput {
    /// Text, tokenised by the worker; never empty.
    Text(String),
    /// Token ids, taken as they are; never empty. The worker checks that they exist.
    Tokens(Vec<u32>),
}

/// How the numbers of an embedding are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingEncoding {
    /// As a JSON array.
    #[default]
    Float,
    /// As the base64 text of little-endian 32-bit numbers.
    Base64,
}

/// A checked request for embeddings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingRequest {
    /// The model, as the client named it.
    pub model: ModelRef,
    /// What to embed, in the order of the reply; at least one.
    pub inputs: Vec<EmbeddingInput>,
    /// Whether the client sent a list, so that a complaint can name the place in it.
    pub is_list: bool,
    /// How to write the numbers.
    pub encoding: EmbeddingEncoding,
    /// Numbers wanted of each embedding; absent means all that the model gives.
    pub dimensions: Option<u32>,
    /// Whom the client asks for; users of one client take turns.
    pub user: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawInput {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

impl EmbeddingRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    /// [`RequestError`] names the field that is wrong or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse(body)?;
        let model = fields.require("model")?;
        let raw = fields.require("input").map_err(explain_input)?;
        let (inputs, is_list) = check_inputs(raw)?;
        let encoding = fields
            .take("encoding_format")
            .map_err(|_| {
                let reason = "encoding_format is `float` or `base64`";
                RequestError::invalid("encoding_format", reason)
            })?
            .unwrap_or_default();
        let dimensions = fields.take::<u32>("dimensions")?;
        if dimensions == Some(0) {
            return Err(RequestError::invalid("dimensions", "dimensions must be at least 1"));
        }
        let user = take_user(&mut fields)?;
        fields.finish()?;
        Ok(Self { model, inputs, is_list, encoding, dimensions, user })
    }

    /// Returns the JSON path of an input.
    #[must_use]
    pub fn param(&self, index: usize) -> String {
        if self.is_list { format!("input[{index}]") } else { "input".to_owned() }
    }
}

/// The parser knows only that none of the forms fits.
fn explain_input(error: RequestError) -> RequestError {
    match error {
        RequestError::Invalid { param, .. } if param == "input" => {
            let reason = "input is required: a text, a list of texts, a list of token ids, \
                          or a list of lists of token ids";
            RequestError::invalid(param, reason)
        }
        other => other,
    }
}

fn check_inputs(raw: RawInput) -> Result<(Vec<EmbeddingInput>, bool), RequestError> {
    let (inputs, is_list) = match raw {
        RawInput::Text(text) => (vec![EmbeddingInput::Text(text)], false),
        // An empty list fits every form; it is refused below.
        RawInput::Texts(texts) => (texts.into_iter().map(EmbeddingInput::Text).collect(), true),
        RawInput::Tokens(tokens) => (vec![EmbeddingInput::Tokens(tokens)], false),
        RawInput::TokenLists(lists) => {
            (lists.into_iter().map(EmbeddingInput::Tokens).collect(), true)
        }
    };
    let most = limits::EMBEDDING_INPUTS_MAX;
    if inputs.is_empty() || inputs.len() > most {
        let reason = format!("input must have 1 to {most} entries; send more requests");
        return Err(RequestError::invalid("input", reason));
    }
    for (index, input) in inputs.iter().enumerate() {
        let wrong = match input {
            EmbeddingInput::Text(text) if text.is_empty() => "an input is empty; say something",
            EmbeddingInput::Text(text) if text.contains('\0') => {
                "text must not contain a NUL character"
            }
            EmbeddingInput::Tokens(tokens) if tokens.is_empty() => {
                "an input is empty; say something"
            }
            EmbeddingInput::Text(_) | EmbeddingInput::Tokens(_) => continue,
        };
        let param = if is_list { format!("input[{index}]") } else { "input".to_owned() };
        return Err(RequestError::invalid(param, wrong));
    }
    Ok((inputs, is_list))
}

/// The reply: one embedding for each input, in their order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingList {
    /// `list`.
    pub object: String,
    /// The embeddings.
    pub data: Vec<EmbeddingData>,
    /// The model as the client named it.
    pub model: String,
    /// Token counts.
    pub usage: InputUsage,
}

/// The embedding of one input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingData {
    /// `embedding`.
    pub object: String,
    /// The place of the input in the request.
    pub index: u32,
    /// The numbers.
    pub embedding: EmbeddingVector,
}

/// The numbers of one embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EmbeddingVector {
    /// One by one.
    Numbers(Vec<f32>),
    /// The base64 text of little-endian 32-bit numbers.
    Base64(String),
}

impl EmbeddingVector {
    /// Writes numbers as the client asked for them.
    #[must_use]
    pub fn encode(numbers: Vec<f32>, encoding: EmbeddingEncoding) -> Self {
        match encoding {
            EmbeddingEncoding::Float => Self::Numbers(numbers),
            EmbeddingEncoding::Base64 => {
                let bytes: Vec<u8> =
                    numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
                Self::Base64(STANDARD.encode(bytes))
            }
        }
    }
}
