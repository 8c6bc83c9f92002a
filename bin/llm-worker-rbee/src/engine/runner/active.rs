//! One job inside the engine: its tokens, what was sent of it and how it ends.
//! Computes nothing and knows no slots.

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::openai::{FinishReason, PromptTokensDetails, Usage};
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::super::drafts::Drafts;
use super::super::stats::{JobTimes, Outcome, Stats};
use super::super::{End, Event, Job, Trace};
use super::replay::Retraced;
use crate::sampler::constraint::ConstraintError;
use crate::text::{Flow, LogprobQueue};

/// A job inside the engine.
pub(super) struct Active {
    pub(super) job: Job,
    /// The prompt, and then the tokens chosen.
    pub(super) tokens: Vec<u32>,
    pub(super) drafts: Drafts,
    /// Tokens of the prompt that were not computed; `None` before that is known.
    pub(super) cached_tokens: Option<u32>,
    /// Tokens chosen elsewhere whose text has not been made here.
    pub(super) to_replay: Vec<u32>,
    /// Tokens at the end of `tokens` that a step is still to lead to, though they are known.
    pub(super) retraced: Retraced,
    /// The text of what was chosen elsewhere, until its reader is told of it.
    pub(super) replayed: Option<String>,
    generated: u32,
    /// How many of them were chosen elsewhere.
    generated_earlier: u32,
    /// Tokens told in traces, those of the prompt included; `None` where none are.
    traced: Option<usize>,
    /// Random numbers drawn for the tokens so far.
    draws: u64,
    first_token_at: Option<Instant>,
    pub(super) logprobs: LogprobQueue,
}

/// What one step adds to a reply.
#[derive(Debug, Default)]
pub(super) struct Delta {
    text: String,
    /// Whether a stop sequence came.
    stopped: bool,
}

/// Why no token could be chosen: the request's own constraint, or the model.
pub(super) fn no_token(failure: Option<&ConstraintError>) -> ErrorDetail {
    failure.cloned().map_or_else(
        || ErrorDetail::new(ErrorCode::WorkerFailed, "the model gave no result"),
        ConstraintError::into_detail,
    )
}

/// Why a job ends.
pub(super) enum Cause {
    Finished(FinishReason),
    Failed(ErrorDetail),
    ReaderGone,
}

impl Cause {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Finished(FinishReason::Stop | FinishReason::ToolCalls) => Outcome::Stop,
            Self::Finished(FinishReason::Length) => Outcome::Length,
            Self::Failed(_) => Outcome::Failed,
            Self::ReaderGone => Outcome::Cancelled,
        }
    }
}

impl Active {
    pub(super) fn new(mut job: Job) -> Self {
        let is_traced = job.earlier.is_some();
        let earlier = job.earlier.take().unwrap_or_default();
        let tokens = [job.prompt.tokens.as_slice(), &earlier.tokens].concat();
        let generated = u32::try_from(earlier.tokens.len()).unwrap_or(u32::MAX);
        Self {
            traced: is_traced.then_some(tokens.len()),
            tokens,
            draws: job.sampler.draws(),
            job,
            drafts: Drafts::new(),
            cached_tokens: earlier.cached_tokens,
            to_replay: earlier.tokens,
            retraced: Retraced::default(),
            replayed: None,
            generated,
            generated_earlier: generated,
            first_token_at: None,
            logprobs: LogprobQueue::default(),
        }
    }

    /// Tokens chosen so far.
    pub(super) fn generated(&self) -> u32 {
        self.generated
    }

    /// Tokens that a slot holds while a reply is computed: all but the last, and
    /// but those that are retraced.
    pub(super) fn tokens_held(&self) -> u32 {
        let ahead = self.retraced.tokens_left as usize + 1;
        u32::try_from(self.tokens.len().saturating_sub(ahead)).unwrap_or(u32::MAX)
    }

    /// The token that comes after those held.
    pub(super) fn next_token(&self) -> Option<u32> {
        self.tokens.get(self.tokens_held() as usize).copied()
    }

    /// Tokens that may still be chosen.
    pub(super) fn tokens_left(&self) -> u32 {
        self.job.tokens_max.saturating_sub(self.generated)
    }

    /// Takes the bytes of one token in, adds to `delta` what may be sent of it
    /// and says whether the job ends with it.
    pub(super) fn advance(
        &mut self,
        bytes: &[u8],
        delta: &mut Delta,
        stats: &Stats,
    ) -> Option<Cause> {
        self.generated += 1;
        self.draws = self.job.sampler.draws();
        if self.first_token_at.is_none() {
            self.first_token_at = Some(Instant::now());
            if let Some(since_submitted) = self.job.request.has_token() {
                stats.first_token(since_submitted);
            }
        }
        if let Some(logprobs) = self.job.sampler.take_logprobs() {
            self.logprobs.add(self.job.text.decoded_bytes(), logprobs);
        }
        match self.job.text.push(bytes, &mut delta.text) {
            Flow::Stopped => {
                delta.stopped = true;
                Some(Cause::Finished(FinishReason::Stop))
            }
            Flow::GoesOn if self.job.sampler.is_complete() => {
                Some(Cause::Finished(FinishReason::Stop))
            }
            Flow::GoesOn if self.tokens_left() == 0 => Some(Cause::Finished(FinishReason::Length)),
            Flow::GoesOn => None,
        }
    }

    /// Sends what one step adds, if that is anything.
    pub(super) fn send(&mut self, delta: Delta) -> Option<Cause> {
        let Delta { text, stopped } = delta;
        let logprobs = if text.is_empty() { Vec::new() } else { self.logprobs.release(&text) };
        if stopped {
            self.logprobs.forget();
        }
        if text.is_empty() {
            return None;
        }
        let trace = self.trace();
        match self.job.events.try_send(Event::Text { text, logprobs, trace }) {
            Ok(()) => None,
            Err(TrySendError::Closed(_)) => Some(Cause::ReaderGone),
            // A job without room in its channel is not computed.
            Err(TrySendError::Full(_)) => {
                tracing::error!("text was lost: a channel is full");
                None
            }
        }
    }

    /// What another worker has to know to go on from here.
    fn trace(&mut self) -> Option<Trace> {
        let traced = self.traced?;
        let prompt_tokens = self.prompt_tokens();
        self.traced = Some(self.tokens.len());
        Some(Trace {
            tokens: self.tokens.get(traced..).unwrap_or_default().to_vec(),
            draws: self.draws,
            prompt_tokens,
            cached_tokens: self.cached_tokens.unwrap_or_default(),
            is_whole: self.logprobs.is_empty(),
        })
    }

    pub(super) fn times(&self) -> JobTimes {
        JobTimes {
            prompt_tokens: self.prompt_tokens(),
            cached_tokens: self.cached_tokens.unwrap_or_default(),
            generated_tokens: self.generated - self.generated_earlier,
            generation: self.first_token_at.map(|at| at.elapsed()).unwrap_or_default(),
        }
    }

    fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.job.prompt.tokens.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn tell_end(mut self, cause: Cause) {
        let end = match cause {
            Cause::Finished(reason) => self.finished(reason),
            Cause::Failed(detail) => End::Failed(Box::new(detail)),
            Cause::ReaderGone => return,
        };
        // Whoever reads the end finds the place free.
        let Job { events, _permit: permit, .. } = self.job;
        drop(permit);
        if let Err(error) = events.try_send(Event::End(end)) {
            tracing::debug!(%error, "a reader left before the end");
        }
    }

    fn finished(&mut self, reason: FinishReason) -> End {
        let mut text = String::new();
        // The last of the text can still complete a stop sequence.
        let (reason, logprobs) = match self.job.text.finish(&mut text) {
            Flow::Stopped => (FinishReason::Stop, self.logprobs.release(&text)),
            Flow::GoesOn => (reason, self.logprobs.release_all(&text)),
        };
        let prompt_tokens = self.prompt_tokens();
        let cached_tokens = self.cached_tokens.unwrap_or_default();
        let usage = Usage {
            prompt_tokens,
            completion_tokens: self.generated,
            total_tokens: prompt_tokens.saturating_add(self.generated),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        };
        End::Finished { text, logprobs, reason, usage, trace: self.trace() }
    }
}
