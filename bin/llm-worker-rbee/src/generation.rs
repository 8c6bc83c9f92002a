//! One request being answered: from the checked body to the parts of its reply,
//! of one choice or of several from the same prompt. Makes sure that it ends
//! exactly once, also when its time is over, when it is told to end, or when
//! the engine dies. Dropping it cancels all of its jobs.

mod choice;
mod form;
mod marks;
mod prompt;
mod seed;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use audit_logging::{Outcome, Trail};
use deadline_propagation::Deadline;
use input_validation::{ModelRef, RequestId};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::{FinishReason, GenerationOptions, OutputFormat, Sampling, Usage};
use rbee_http::{ApiError, Caller};
use rbee_llama::reply::ReplyFormat;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::engine::backend::{Prepared, Prompt, PromptError, Tokenizer};
use crate::engine::memory::Scope;
use crate::engine::request::RequestProgress;
use crate::engine::{End, EngineHandle, Event, Job, Trace};
use crate::http::App;
use crate::live::LiveGuard;
use crate::reading::ReplyReader;
use crate::reply::{Heading, LogprobShape};
use crate::sampler::Sampler;
use crate::sampler::constraint::{Constraint, ConstraintError};
use crate::text::{PlacedLogprobs, TextStream};
use choice::Choice;
pub(crate) use marks::Marks;

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
    pub(crate) marks: Marks,
}

/// A request that has been accepted: its jobs, and all that can end them.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) id: RequestId,
    app: App,
    tokenizer: Arc<dyn Tokenizer>,
    /// How a reply is read; `None` where all of it is content.
    format: Option<Arc<ReplyFormat>>,
    choices: Vec<Choice>,
    /// The choice that is asked first for its next part.
    turn: usize,
    usage: Usage,
    ending: oneshot::Receiver<ErrorDetail>,
    expiry: Pin<Box<Sleep>>,
    /// Alternatives told beside each token; `None` where nothing is told.
    logprobs_top: Option<u32>,
    /// What the choices are drawn with.
    seed: u64,
    marks: Marks,
    /// Takes the request out of the table of live ones.
    trail: Trail,
    _live: LiveGuard,
}

/// What is new in one of the choices.
#[derive(Debug)]
pub(crate) struct Part {
    /// Which one, counted from 0.
    pub(crate) choice: u32,
    /// More text; empty at most where the choice ends.
    pub(crate) text: String,
    /// Its tokens, where they were asked for.
    pub(crate) logprobs: Vec<PlacedLogprobs>,
    /// Why the choice ended, with its last part.
    pub(crate) end: Option<FinishReason>,
    /// The text that a client has of it, in a part of its own that comes first.
    pub(crate) replayed: Option<String>,
    /// What another worker has to know to go on after it.
    pub(crate) trace: Option<Trace>,
}

impl Generation {
    /// Checks a request, makes its prompt with `prepare` and gives a job for
    /// each of its choices to the engine, or none.
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
        let live = request.marks.live(request.options.choices);
        // Before the prompt is made: what waits for that is bounded, too.
        let permits = app.engine().try_enter_many(live)?;
        let prepared = prompt::make_prompt(tokenizer, &request, prepare).await?;
        let Prepared { prompt, format, constraint } = prepared;
        let Request { id, options, deadline, .. } = &request;
        // A reply in a form is content from its first token on.
        let format = format.filter(|_| options.format == OutputFormat::Text);
        let tokens_max = prompt::room_for_reply(&prompt, loaded.context_tokens, &request)?;
        let form = form::make_constraint(tokenizer, options, *deadline).await?;
        let constraints =
            for_each_choice(form.or(constraint), live).map_err(ConstraintError::into_detail)?;
        let (guard, ending) = app.live().enter(id.clone(), *deadline);
        let mut generation = Self {
            id: id.clone(),
            app: app.clone(),
            tokenizer: Arc::clone(tokenizer),
            format,
            choices: Vec::with_capacity(options.choices as usize),
            turn: 0,
            usage: Usage::default(),
            ending,
            expiry: Box::pin(sleep_until(deadline.instant())),
            logprobs_top: options.logprobs,
            seed: seed::of(&request),
            marks: Marks::Unwanted,
            trail: Caller::current().trail(id, "generate", request.model.as_str()),
            _live: guard,
        };
        let common = Common {
            prompt: Arc::new(prompt),
            tokens_max,
            progress: Arc::new(RequestProgress::new(submitted_at, options.choices)),
            request,
        };
        let mut jobs = permits.into_iter().zip(constraints);
        for index in 0..common.request.options.choices {
            if let Some(ended) = common.request.marks.ended(index) {
                generation.skip(index, ended, common.prompt.tokens.len());
            } else if let Some((permit, constraint)) = jobs.next() {
                generation.submit(&common, permit, constraint)?;
            }
        }
        generation.marks = common.request.marks;
        Ok(generation)
    }

    /// Gives the engine the job of the next choice.
    fn submit(
        &mut self,
        common: &Common,
        permit: OwnedSemaphorePermit,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<(), ApiError> {
        let Common { prompt, tokens_max, progress, request } = common;
        let index = u32::try_from(self.choices.len()).unwrap_or(u32::MAX);
        // Every choice draws on its own, and the first one as it would alone.
        let seed = self.seed.wrapping_add(u64::from(index));
        let sampling = Sampling { seed: Some(seed), ..request.options.sampling.clone() };
        let mut sampler = Sampler::new(sampling, seed);
        let speller = Arc::clone(&self.tokenizer);
        sampler.spell_with(Box::new(move |token| speller.spelling(token)));
        if let Some(constraint) = constraint {
            sampler.constrain(constraint);
        }
        if let Some(top) = self.logprobs_top {
            sampler.tell_logprobs(top);
        }
        sampler.accept(&prompt.tokens);
        let earlier = request.marks.earlier(index, *tokens_max, &mut sampler)?;
        let stops = [request.options.stop.as_slice(), &prompt.stops].concat();
        let (sender, events) = EngineHandle::events();
        let job = self.app.engine().next_job();
        self.choices.push(Choice::new(job, events));
        self.app.engine().submit(Job {
            id: job,
            scope: request.scope,
            tokens_max: *tokens_max,
            text: TextStream::new(&stops),
            sampler,
            earlier,
            deadline: request.deadline,
            events: sender,
            request: Arc::clone(progress),
            _permit: permit,
            prompt: Arc::clone(prompt),
        })
    }

    /// How many replies there are.
    pub(crate) fn choices(&self) -> u32 {
        u32::try_from(self.choices.len()).unwrap_or(u32::MAX)
    }

    /// Makes what reads one of the replies; `None` where all of it is content.
    pub(crate) fn reader(&self, heading: &Heading, choice: u32) -> Option<ReplyReader> {
        let name = format!("{}/{choice}", heading.name().0);
        self.format.clone().map(|format| ReplyReader::new(format, name))
    }

    /// How the tokens of the reply are told, where they are asked for.
    pub(crate) fn logprob_shape(&self) -> Option<LogprobShape> {
        self.logprobs_top.map(|top| LogprobShape::new(Arc::clone(&self.tokenizer), top))
    }

    /// Whether all choices have ended, so that no part comes any more.
    pub(crate) fn is_complete(&self) -> bool {
        self.choices.iter().all(Choice::has_ended)
    }

    /// The token counts of the choices that have ended: the prompt's of the
    /// first one, and the tokens of all replies.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Waits for the next part, as [`Self::poll_part`].
    pub(crate) async fn next(&mut self) -> Result<Part, Box<ErrorDetail>> {
        poll_fn(|cx| self.poll_part(cx)).await
    }

    /// Returns the next part of any choice. What has been produced is returned
    /// before an end that comes from outside. Nothing comes after the last part
    /// of the last choice, or after an error.
    ///
    /// # Errors
    /// Why the request failed; a choice that fails takes the others with it.
    pub(crate) fn poll_part(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Part, Box<ErrorDetail>>> {
        let count = self.choices.len();
        for index in (self.turn..count).chain(0..self.turn) {
            let Some(choice) = self.choices.get_mut(index) else { continue };
            if choice.has_ended() {
                continue;
            }
            if let Poll::Ready(event) = choice.poll_event(cx) {
                self.turn = (index + 1) % count;
                return Poll::Ready(self.part(index, event));
            }
        }
        if let Poll::Ready(Ok(detail)) = Pin::new(&mut self.ending).poll(cx) {
            return Poll::Ready(Err(self.failed(detail)));
        }
        match self.expiry.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(self.failed(time_is_over()))),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads an event of a choice; `None` where the engine dropped its job
    /// without an end.
    fn part(&mut self, index: usize, event: Option<Event>) -> Result<Part, Box<ErrorDetail>> {
        let choice = u32::try_from(index).unwrap_or(u32::MAX);
        let part = |text, logprobs, end, trace| Part {
            choice,
            text,
            logprobs,
            end,
            replayed: None,
            trace,
        };
        match event {
            Some(Event::Text { text, logprobs, trace }) => Ok(part(text, logprobs, None, trace)),
            Some(Event::Replayed(text)) => {
                let nothing_new = part(String::new(), Vec::new(), None, None);
                Ok(Part { replayed: Some(text), ..nothing_new })
            }
            Some(Event::End(End::Finished { text, logprobs, reason, usage, trace })) => {
                self.count(index, usage);
                if self.is_complete() {
                    self.trail.ends(Outcome::Success, "ok");
                }
                Ok(part(text, logprobs, Some(reason), trace))
            }
            Some(Event::End(End::Failed(detail))) => Err(self.failed(*detail)),
            None => {
                let detail = self.why_closed();
                Err(self.failed(detail))
            }
        }
    }

    fn count(&mut self, index: usize, usage: Usage) {
        let total = &mut self.usage;
        if index == 0 {
            total.prompt_tokens = usage.prompt_tokens;
            total.prompt_tokens_details = usage.prompt_tokens_details;
        }
        total.completion_tokens = total.completion_tokens.saturating_add(usage.completion_tokens);
        total.total_tokens = total.prompt_tokens.saturating_add(total.completion_tokens);
    }

    /// Ends what is still going on, whose reader hears no more of it.
    fn failed(&mut self, detail: ErrorDetail) -> Box<ErrorDetail> {
        self.cancel();
        self.trail.ends(Outcome::Failure, detail.code.as_str());
        Box::new(detail)
    }

    /// The engine dropped a job without an end.
    fn why_closed(&mut self) -> ErrorDetail {
        self.ending.try_recv().unwrap_or_else(|_| {
            ErrorDetail::new(ErrorCode::WorkerFailed, "the worker's engine broke off")
        })
    }

    fn cancel(&mut self) {
        // All of them first: none shall begin what another one has left.
        self.choices.iter_mut().for_each(Choice::close);
        for choice in &self.choices {
            self.app.engine().abandon(choice.job);
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// What the jobs of one request have in common.
struct Common {
    prompt: Arc<Prompt>,
    tokens_max: u32,
    progress: Arc<RequestProgress>,
    request: Request,
}

/// Copies what replies are held to, so that it is compiled once.
fn for_each_choice(
    constraint: Option<Box<dyn Constraint>>,
    choices: u32,
) -> Result<Vec<Option<Box<dyn Constraint>>>, ConstraintError> {
    let copies = (1..choices).map(|_| constraint.as_ref().map(|held| held.try_clone()).transpose());
    let mut all = copies.collect::<Result<Vec<_>, _>>()?;
    all.push(constraint);
    Ok(all)
}

fn time_is_over() -> ErrorDetail {
    ErrorDetail::new(ErrorCode::DeadlineExceeded, "the time for this request is over")
}
