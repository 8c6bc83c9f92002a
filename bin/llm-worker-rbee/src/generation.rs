//! One request being answered: from the checked body to the events of its job.
//! Makes sure that it ends exactly once, also when its time is over, when it is
//! told to end, or when the engine dies. Dropping it cancels the job.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use deadline_propagation::Deadline;
use input_validation::{ModelRef, RequestId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::{GenerationOptions, OutputFormat, Sampling};
use rbee_http::ApiError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::engine::backend::{Prepared, Prompt, PromptError, Tokenizer};
use crate::engine::memory::Scope;
use crate::engine::{End, EngineHandle, Event, Job};
use crate::guide::GuideError;
use crate::http::App;
use crate::live::LiveGuard;
use crate::reading::ReplyReader;
use crate::reply::LogprobShape;
use crate::sampler::Sampler;
use crate::sampler::constraint::Constraint;
use crate::scheduler::JobId;
use crate::text::TextStream;

/// Prompts up to this many bytes are rendered and tokenised where they arrive;
/// it takes less time than to hand them to another thread. Longer ones would
/// hold up everybody else's tokens.
const INLINE_BYTES_MAX: usize = 2048;

/// Events taken from the engine at once, to be written together.
const EVENTS_AT_ONCE_MAX: usize = 16;

/// A request that has been checked so far as it can be without its prompt.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) model: ModelRef,
    /// Whose computed prompts it may use.
    pub(crate) scope: Scope,
    pub(crate) options: GenerationOptions,
    pub(crate) deadline: Deadline,
    /// The field that the prompt stands in.
    pub(crate) param: &'static str,
    pub(crate) prompt_bytes: usize,
}

/// A job that has been accepted, and all that can end it.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) id: RequestId,
    /// Reads the text; `None` where all of it is content.
    pub(crate) reader: Option<ReplyReader>,
    app: App,
    tokenizer: Arc<dyn Tokenizer>,
    job: JobId,
    events: mpsc::Receiver<Event>,
    /// Events that have been received together and not yet returned.
    ready: VecDeque<Event>,
    received: Vec<Event>,
    ending: oneshot::Receiver<ErrorDetail>,
    expiry: Pin<Box<Sleep>>,
    /// Alternatives told beside each token; `None` where nothing is told.
    logprobs_top: Option<u32>,
    /// Takes the request out of the table of live ones.
    _live: LiveGuard,
}

impl Generation {
    /// Checks a request, makes its prompt with `prepare` and gives it to the engine.
    ///
    /// # Errors
    /// The reason that goes to the client.
    pub(crate) async fn start<F>(app: &App, request: Request, prepare: F) -> Result<Self, ApiError>
    where
        F: FnOnce(&dyn Tokenizer) -> Result<Prepared, PromptError> + Send + 'static,
    {
        let submitted_at = Instant::now();
        if request.deadline.is_expired() {
            return Err(time_is_over().into());
        }
        let loaded = app.ready()?;
        app.check_model(&request.model)?;
        let tokenizer = loaded.generates(&request.model)?;
        let prepared = make_prompt(tokenizer, &request, prepare).await?;
        let Prepared { prompt, format, constraint } = prepared;
        // A reply in a form is content from its first token on.
        let format = format.filter(|_| request.options.format == OutputFormat::Text);
        let tokens_max = room_for_reply(&prompt, loaded.context_tokens, &request)?;
        let permit = app.engine().try_enter()?;
        let form = make_constraint(tokenizer, &request.options, request.deadline).await?;
        let (sender, events) = EngineHandle::events();
        let (live, ending) = app.live().enter(request.id.clone());
        let mut sampler = Sampler::new(request.options.sampling, fresh_seed());
        let speller = Arc::clone(tokenizer);
        sampler.spell_with(Box::new(move |token| speller.spelling(token)));
        if let Some(constraint) = form.or(constraint) {
            sampler.constrain(constraint);
        }
        if let Some(top) = request.options.logprobs {
            sampler.tell_logprobs(top);
        }
        sampler.accept(&prompt.tokens);
        let mut stops = request.options.stop;
        stops.extend(prompt.stops.iter().cloned());
        let job = app.engine().next_job();
        app.engine().submit(Job {
            id: job,
            scope: request.scope,
            tokens_max,
            text: TextStream::new(&stops),
            sampler,
            deadline: request.deadline,
            events: sender,
            submitted_at,
            _permit: permit,
            prompt: Arc::new(prompt),
        })?;
        Ok(Self {
            id: request.id,
            reader: format.map(ReplyReader::new),
            app: app.clone(),
            tokenizer: Arc::clone(tokenizer),
            job,
            events,
            ready: VecDeque::new(),
            received: Vec::new(),
            ending,
            logprobs_top: request.options.logprobs,
            expiry: Box::pin(sleep_until(request.deadline.instant())),
            _live: live,
        })
    }

    /// How the tokens of the reply are told, where they are asked for.
    pub(crate) fn logprob_shape(&self) -> Option<LogprobShape> {
        self.logprobs_top.map(|top| LogprobShape::new(Arc::clone(&self.tokenizer), top))
    }

    /// Waits for the next event; the last one is an end.
    pub(crate) async fn next(&mut self) -> Event {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// As [`Self::next`]. What has been produced is returned before an end
    /// that comes from outside.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(event) = self.ready.pop_front() {
            return Poll::Ready(event);
        }
        let received = &mut self.received;
        if self.events.poll_recv_many(cx, received, EVENTS_AT_ONCE_MAX).is_ready() {
            self.ready.extend(received.drain(..));
            let first = self.ready.pop_front();
            return Poll::Ready(first.unwrap_or_else(|| failed(self.why_closed())));
        }
        if let Poll::Ready(Ok(detail)) = Pin::new(&mut self.ending).poll(cx) {
            return Poll::Ready(failed(detail));
        }
        match self.expiry.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(failed(time_is_over())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// The engine dropped the job without an end.
    fn why_closed(&mut self) -> ErrorDetail {
        self.ending.try_recv().unwrap_or_else(|_| {
            ErrorDetail::new(ErrorCode::WorkerFailed, "the worker's engine broke off")
        })
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.events.close();
        self.app.engine().abandon(self.job);
    }
}

fn failed(detail: ErrorDetail) -> Event {
    Event::End(End::Failed(Box::new(detail)))
}

fn time_is_over() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::DeadlineExceeded, "the time for this request is over")
}

/// What holds the reply to the form that the request asks for.
async fn make_constraint(
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

async fn make_prompt<F>(
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
fn room_for_reply(
    prompt: &Prompt,
    context_tokens: u32,
    request: &Request,
) -> Result<u32, ApiError> {
    let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
    match context_tokens.saturating_sub(prompt_tokens) {
        0 => {
            let message = format!(
                "this model's maximum context length is {context_tokens} tokens, \
                 but the prompt has {prompt_tokens}; shorten it"
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

/// A seed for a request that names none.
fn fresh_seed() -> u64 {
    getrandom::u64().unwrap_or_else(|error| {
        tracing::warn!(%error, "no randomness for a seed; the clock must do");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
    })
}
