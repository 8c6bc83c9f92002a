//! What holds the tokens of a reply to what the request asks for: a compiled
//! form, an end that must not come too early, biases on tokens that exist.

use std::sync::Arc;

use deadline_propagation::Deadline;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::{GenerationOptions, OutputFormat, Sampling};
use rbee_http::ApiError;

use super::time_is_over;
use crate::engine::backend::{PromptError, Tokenizer};
use crate::guide::GuideError;
use crate::sampler::constraint::Constraint;

/// What holds the reply to the form that the request asks for.
pub(super) async fn make_constraint(
    tokenizer: &Arc<dyn Tokenizer>,
    options: &GenerationOptions,
    deadline: Deadline,
) -> Result<Option<Box<dyn Constraint>>, ApiError> {
    check_bias(tokenizer.as_ref(), &options.sampling)?;
    let ends_later = options.ignore_eos || options.min_tokens > 0;
    let param = match (options.format.param(), options.logprobs) {
        (Some(param), _) => param,
        (None, Some(_)) => "logprobs",
        (None, None) if options.ignore_eos => "ignore_eos",
        (None, None) if ends_later => "min_tokens",
        (None, None) => return Ok(None),
    };
    let Some(guide) = tokenizer.guide() else {
        let message = format!("{param} needs a model; this engine only repeats the prompt");
        let detail = ErrorDetail::new(ErrorCode::UnsupportedParameter, message);
        return Err(detail.with_param(param).into());
    };
    if ends_later {
        let tokens_min = (!options.ignore_eos).then_some(options.min_tokens);
        return Ok(Some(guide.later_end(tokens_min)));
    }
    if options.format == OutputFormat::Text {
        return Ok(None);
    }
    let turn = tokio::time::timeout_at(deadline.instant(), guide.turn()).await;
    let turn = turn.map_err(|_| time_is_over())?;
    let (tokenizer, format) = (Arc::clone(tokenizer), options.format.clone());
    // A client that leaves ends the wait, not the work; its turn ends with that.
    let compile = move || {
        let compiled = tokenizer.guide().map(|guide| guide.compile(&format)).transpose();
        drop(turn);
        compiled
    };
    let compiled = tokio::task::spawn_blocking(compile).await.map_err(|error| {
        tracing::error!(%error, "a grammar could not be compiled");
        ApiError::new(ErrorCode::InternalError, "the grammar could not be compiled")
    })?;
    Ok(compiled.map_err(GuideError::into_detail)?.flatten())
}

/// Refuses biases on tokens that the model does not have.
fn check_bias(tokenizer: &dyn Tokenizer, sampling: &Sampling) -> Result<(), ApiError> {
    let tokens: Vec<u32> = sampling.logit_bias.iter().map(|(token, _)| *token).collect();
    match tokenizer.tokens(&tokens) {
        Err(error @ PromptError::UnknownToken { token, .. }) => {
            Err(error.into_detail(&format!("logit_bias.{token}")).into())
        }
        _ => Ok(()),
    }
}
