//! `rbee embed`: the embeddings of texts, a JSON object a line.

use std::time::Duration;

use input_validation::ModelRef;
use rbee_api::limits::EMBEDDING_INPUTS_MAX;
use rbee_api::openai::{EmbeddingData, EmbeddingVector};
use rbee_http::new_request_id;
use serde::Serialize;

use crate::cli::EmbedArgs;
use crate::error::KeeperError;
use crate::keeper::Keeper;
use crate::model_argument::known_model;
use crate::prompt;
use crate::queen_client::Budget;

#[derive(Debug, Serialize)]
struct Body<'a> {
    model: &'a ModelRef,
    input: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<u32>,
}

/// One embedding, as it is printed.
#[derive(Debug, Serialize)]
struct Line<'a> {
    /// The place of the text among all.
    index: usize,
    text: &'a str,
    embedding: &'a EmbeddingVector,
}

pub(super) async fn embed(keeper: &Keeper, args: EmbedArgs) -> Result<(), KeeperError> {
    let model = known_model(&args.model)?;
    let texts = if args.texts.is_empty() { lines_of_stdin().await? } else { args.texts };
    if texts.is_empty() {
        let hint = "write texts after the model, or pass them on standard input, one a line";
        return Err(KeeperError::usage("there is no text", hint));
    }
    texts.iter().try_for_each(|text| prompt::check(text))?;
    let queen = keeper.ensure_queen().await?;
    let output = &keeper.output;
    for (number, batch) in texts.chunks(EMBEDDING_INPUTS_MAX).enumerate() {
        let body = Body { model: &model, input: batch, dimensions: args.dimensions };
        let body = serde_json::to_vec(&body).map_err(KeeperError::Garbled)?;
        let budget = Budget::new(Duration::from_secs(args.timeout));
        let activity = output.activity(format!("embedding with {model}"));
        let list = queen.embed(body.into(), &new_request_id(), budget).await?;
        drop(activity);
        if list.data.len() != batch.len() {
            return Err(KeeperError::BrokenOff);
        }
        for (EmbeddingData { index, embedding, .. }, text) in list.data.iter().zip(batch) {
            let index = number * EMBEDDING_INPUTS_MAX + *index as usize;
            output.json(&Line { index, text, embedding })?;
        }
        output.detail(&format!("{} tokens", list.usage.total_tokens));
    }
    Ok(())
}

async fn lines_of_stdin() -> Result<Vec<String>, KeeperError> {
    if prompt::stdin_is_terminal() {
        return Ok(Vec::new());
    }
    let text = prompt::read_stdin(String::new()).await?;
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}
