//! Makes the prompt of a request, once for all of its choices, and says what room
//! it leaves for a reply.

use std::sync::Arc;

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::ApiError;

use super::Request;
use crate::engine::backend::{Prepared, Prompt, PromptError, Tokenizer};

/// Prompts up to this many bytes are rendered and tokenised where they arrive;
/// it takes less time than to hand them to another thread. Longer ones would
/// hold up everybody else's tokens.
const INLINE_BYTES_MAX: usize = 2048;

pub(super) async fn make_prompt<F>(
    tokenizer: &Arc<dyn Tokenizer>,
    request: &Request,
    prepare: F,
) -> Result<Prepared, ApiError>
where
    F: FnOnce(&dyn Tokenizer) -> Result<Prepared, PromptError> + Send + 'static,
{
    let outcome = if request.prompt_bytes <= INLINE_BYTES_MAX {
        prepare(tokenizer.as_ref())
    } else {
        let tokenizer = Arc::clone(tokenizer);
        let task = tokio::task::spawn_blocking(move || prepare(tokenizer.as_ref()));
        task.await.map_err(|error| {
            tracing::error!(%error, "a prompt could not be prepared");
            ApiError::new(ErrorCode::InternalError, "the prompt could not be prepared")
        })?
    };
    outcome.map_err(|error| error.into_detail(request.param).into())
}

/// The most tokens the reply can have: what the request allows, within what
/// the prompt leaves of the context.
pub(super) fn room_for_reply(
    prompt: &Prompt,
    context_tokens: u32,
    request: &Request,
) -> Result<u32, ApiError> {
    let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
    match context_tokens.saturating_sub(prompt_tokens) {
        0 => {
            let message = format!(
                "this model's maximum context length is {context_tokens} tokens, \
                 but the prompt has {prompt_tokens}; shorten it, or raise worker.context_tokens in rbee-hive.toml"
            );
            Err(ErrorDetail::new(ErrorCode::ContextLengthExceeded, message)
                .with_param(request.param)
                .with_details(serde_json::json!({
                    "context_tokens": context_tokens,
                    "prompt_tokens": prompt_tokens,
                }))
                .into())
        }
        room => Ok(request.options.max_tokens.map_or(room, |wanted| wanted.min(room))),
    }
}
