//! One job inside the engine: its tokens, what was sent of it and how it ends.
//! Computes nothing and knows no slots.

use rbee_api::error::ErrorDetail;
use rbee_api::openai::{FinishReason, PromptTokensDetails, Usage};
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::super::drafts::Drafts;
use super::super::stats::{JobTimes, Stats};
use super::super::{End, Event, Job};
use crate::text::Flow;

/// A job inside the engine.
pub(super) struct Active {
    pub(super) job: Job,
    /// The prompt, and then the tokens chosen.
    pub(super) tokens: Vec<u32>,
    pub(super) drafts: Drafts,
    /// Tokens of the prompt that were not computed; `None` before that is known.
    pub(super) cached_tokens: Option<u32>,
    generated: u32,
    first_token_at: Option<Instant>,
}

/// Why a job ends.
pub(super) enum Cause {
    Finished(FinishReason),
    Failed(ErrorDetail),
    ReaderGone,
}

impl Cause {
    /// The word that stands in the metrics.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Finished(FinishReason::Stop) => "stop",
            Self::Finished(FinishReason::Length) => "length",
            Self::Failed(_) => "failed",
            Self::ReaderGone => "cancelled",
        }
    }
}

impl Active {
    pub(super) fn new(job: Job) -> Self {
        Self {
            tokens: job.prompt.tokens.clone(),
            job,
            drafts: Drafts::new(),
            cached_tokens: None,
            generated: 0,
            first_token_at: None,
        }
    }

    /// Tokens chosen so far.
    pub(super) fn generated(&self) -> u32 {
        self.generated
    }

    /// Tokens that a slot holds while a reply is computed: all but the last.
    pub(super) fn tokens_held(&self) -> u32 {
        u32::try_from(self.tokens.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    /// Tokens that may still be chosen.
    pub(super) fn tokens_left(&self) -> u32 {
        self.job.tokens_max.saturating_sub(self.generated)
    }

    /// Takes the bytes of one token in, appends to `text` what may be sent of
    /// it and says whether the job ends with it.
    pub(super) fn advance(
        &mut self,
        bytes: &[u8],
        text: &mut String,
        stats: &Stats,
    ) -> Option<Cause> {
        self.generated += 1;
        if self.first_token_at.is_none() {
            self.first_token_at = Some(Instant::now());
            stats.first_token(self.job.submitted_at.elapsed());
        }
        match self.job.text.push(bytes, text) {
            Flow::Stopped => Some(Cause::Finished(FinishReason::Stop)),
            Flow::GoesOn if self.tokens_left() == 0 => Some(Cause::Finished(FinishReason::Length)),
            Flow::GoesOn => None,
        }
    }

    /// Sends the text of one step, if there is any.
    pub(super) fn send(&self, text: String) -> Option<Cause> {
        if text.is_empty() {
            return None;
        }
        match self.job.events.try_send(Event::Text(text)) {
            Ok(()) => None,
            Err(TrySendError::Closed(_)) => Some(Cause::ReaderGone),
            // A job without room in its channel is not computed.
            Err(TrySendError::Full(_)) => {
                tracing::error!("text was lost: a channel is full");
                None
            }
        }
    }

    pub(super) fn times(&self) -> JobTimes {
        JobTimes {
            prompt_tokens: self.prompt_tokens(),
            cached_tokens: self.cached_tokens.unwrap_or_default(),
            generated_tokens: self.generated,
            total: self.job.submitted_at.elapsed(),
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
        if let Err(error) = self.job.events.try_send(Event::End(end)) {
            tracing::debug!(%error, "a reader left before the end");
        }
    }

    fn finished(&mut self, reason: FinishReason) -> End {
        let mut text = String::new();
        // The last of the text can still complete a stop sequence.
        let reason = match self.job.text.finish(&mut text) {
            Flow::Stopped => FinishReason::Stop,
            Flow::GoesOn => reason,
        };
        let prompt_tokens = self.prompt_tokens();
        let cached_tokens = self.cached_tokens.unwrap_or_default();
        let usage = Usage {
            prompt_tokens,
            completion_tokens: self.generated,
            total_tokens: prompt_tokens.saturating_add(self.generated),
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        };
        End::Finished { text, reason, usage }
    }
}
