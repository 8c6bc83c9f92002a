//! One request for embeddings or scores being answered: from the checked body
//! to the results of its job. Makes sure that it ends exactly once, also when
//! its time is over, when it is told to end, or when the engine dies. Dropping
//! it cancels the job.

use std::sync::Arc;

use audit_logging::Outcome;
use deadline_propagation::Deadline;
use input_validation::{ModelRef, RequestId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::model::ModelKind;
use rbee_http::{ApiError, Caller};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::engine::backend::{Loaded, PromptError};
use crate::engine::embedder::{Embedding, InputReader, Job};
use crate::http::App;
use crate::scheduler::JobId;

/// Requests of up to this many bytes are tokenised where they arrive; larger
/// ones would hold up everybody else's answers.
const INLINE_BYTES_MAX: usize = 2048;

/// A request that has been checked so far as it can be without its inputs.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) model: ModelRef,
    /// What the model must be for.
    pub(crate) asks: ModelKind,
    pub(crate) deadline: Deadline,
    /// Size of what is to be tokenised.
    pub(crate) bytes: usize,
}

/// The inputs of a request as the engine computes them.
#[derive(Debug)]
pub(crate) struct Inputs {
    context_tokens: u32,
    tokens: Vec<Vec<u32>>,
}

impl Inputs {
    /// Adds an input that came from the field `param` names. Whoever gets an
    /// error stops reading, so that no more than one input is ever longer than
    /// the context.
    ///
    /// # Errors
    /// The input cannot be used; nothing is cut off silently.
    pub(crate) fn push(
        &mut self,
        param: impl FnOnce() -> String,
        read: Result<Vec<u32>, PromptError>,
    ) -> Result<(), ApiError> {
        match read {
            Ok(tokens) if tokens.len() <= self.context_tokens as usize => {
                self.tokens.push(tokens);
                Ok(())
            }
            Ok(tokens) => Err(self.too_long(&param(), tokens.len())),
            Err(error) => Err(error.into_detail(&param()).into()),
        }
    }

    fn too_long(&self, param: &str, tokens: usize) -> ApiError {
        let context_tokens = self.context_tokens;
        let message = format!(
            "this model's maximum context length is {context_tokens} tokens, \
             but {param} has {tokens}; shorten or split it"
        );
        ErrorDetail::new(ErrorCode::ContextLengthExceeded, message)
            .with_param(param)
            .with_details(serde_json::json!({
                "context_tokens": context_tokens,
                "prompt_tokens": tokens,
            }))
            .into()
    }
}

/// What came out, one result for each input.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub(crate) tokens: u64,
}

/// Returns what the model here can do, if a request may ask it now.
///
/// # Errors
/// The worker is not ready, holds another model, or one of another kind.
pub(crate) fn embedding_for<'a>(
    app: &'a App,
    request: &Request,
) -> Result<(&'a Loaded, &'a Embedding), ApiError> {
    if request.deadline.is_expired() {
        return Err(time_is_over().into());
    }
    let loaded = app.ready()?;
    app.check_model(&request.model)?;
    Ok((loaded, loaded.embeds(request.asks, &request.model)?))
}

/// Makes the inputs with `prepare`, gives them to the engine and waits for the
/// results. Dropping the future cancels the job.
///
/// # Errors
/// The reason that goes to the client.
pub(crate) async fn compute<F>(app: &App, request: Request, prepare: F) -> Result<Results, ApiError>
where
    F: FnOnce(&dyn InputReader, &mut Inputs) -> Result<(), ApiError> + Send + 'static,
{
    let (operation, model) = (request.asks.as_str(), request.model.as_str());
    let trail = Caller::current().trail(&request.id, operation, model);
    let results = compute_inputs(app, request, prepare).await;
    match &results {
        Ok(_) => trail.ends(Outcome::Success, "ok"),
        Err(error) => trail.ends(Outcome::Failure, error.code().as_str()),
    }
    results
}

async fn compute_inputs<F>(app: &App, request: Request, prepare: F) -> Result<Results, ApiError>
where
    F: FnOnce(&dyn InputReader, &mut Inputs) -> Result<(), ApiError> + Send + 'static,
{
    let submitted_at = Instant::now();
    let (loaded, embedding) = embedding_for(app, &request)?;
    // Whoever has no place does not get the work of being tokenised either.
    let permit = app.engine().try_enter()?;
    let inputs = Inputs { context_tokens: loaded.context_tokens, tokens: Vec::new() };
    let inputs = read_inputs(&embedding.reader, request.bytes, inputs, prepare).await?;
    let tokens = inputs.iter().map(|input| input.len() as u64).sum();
    let (reply, results) = oneshot::channel();
    let (_live, ending) = app.live().enter(request.id, request.deadline);
    let id = app.engine().next_job();
    app.engine().embed(Job {
        id,
        inputs,
        deadline: request.deadline,
        reply,
        submitted_at,
        _permit: permit,
    })?;
    let mut pending = Pending { app, id, results };
    let vectors = tokio::select! {
        biased;
        results = &mut pending.results => results.map_err(|_| broke_off())?,
        Ok(detail) = ending => Err(detail),
        () = sleep_until(request.deadline.instant()) => Err(time_is_over()),
    }?;
    let are_numbers = vectors.iter().flatten().all(|number| number.is_finite());
    if vectors.iter().any(Vec::is_empty) || !are_numbers {
        tracing::error!("the model gave a result that is no number");
        let message = "the model gave a result that is no number for these inputs";
        return Err(ApiError::new(ErrorCode::WorkerFailed, message));
    }
    Ok(Results { vectors, tokens })
}

/// A job in the engine that ends when nobody waits for it any more.
struct Pending<'a> {
    app: &'a App,
    id: JobId,
    results: oneshot::Receiver<Result<Vec<Vec<f32>>, ErrorDetail>>,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.results.close();
        self.app.engine().abandon(self.id);
    }
}

async fn read_inputs<F>(
    reader: &Arc<dyn InputReader>,
    bytes: usize,
    mut inputs: Inputs,
    prepare: F,
) -> Result<Vec<Vec<u32>>, ApiError>
where
    F: FnOnce(&dyn InputReader, &mut Inputs) -> Result<(), ApiError> + Send + 'static,
{
    if bytes <= INLINE_BYTES_MAX {
        prepare(reader.as_ref(), &mut inputs)?;
        return Ok(inputs.tokens);
    }
    let reader = Arc::clone(reader);
    let task = tokio::task::spawn_blocking(move || {
        prepare(reader.as_ref(), &mut inputs).map(|()| inputs.tokens)
    });
    task.await.map_err(|error| {
        tracing::error!(%error, "inputs could not be prepared");
        ApiError::new(ErrorCode::InternalError, "the inputs could not be prepared")
    })?
}

fn broke_off() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::WorkerFailed, "the worker's engine broke off")
}

fn time_is_over() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::DeadlineExceeded, "the time for this request is over")
}

/// Cuts a vector to `width` numbers and scales it to length 1. A vector of
/// zeros has no direction and stays.
pub(crate) fn normalise(vector: &mut Vec<f32>, width: u32) {
    vector.truncate(width as usize);
    let square: f64 = vector.iter().map(|number| f64::from(*number).powi(2)).sum();
    if square > 0.0 {
        let length = square.sqrt();
        for number in vector {
            *number = scaled(*number, length);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the result is an f32 again, at most 1")]
fn scaled(number: f32, length: f64) -> f32 {
    (f64::from(number) / length) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_cut_and_then_scaled_to_length_one() {
        let cut = |mut vector: Vec<f32>, width| {
            normalise(&mut vector, width);
            vector
        };
        assert_eq!(cut(vec![3.0, 4.0], 2), [0.6, 0.8]);
        assert_eq!(cut(vec![3.0, 4.0, 99.0], 2), [0.6, 0.8]);
        assert_eq!(cut(vec![0.0, 0.0], 2), [0.0, 0.0]);
        assert_eq!(cut(vec![1e30, 0.0], 2), [1.0, 0.0]);
    }
}
