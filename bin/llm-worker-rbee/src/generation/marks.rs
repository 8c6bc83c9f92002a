//! What the queen wants to be told of a stream, and what a client has of it
//! already: read from a request, checked, and handed to the jobs.

use input_validation::Sha256Hex;
use rbee_api::continuation::{ChoiceProgress, Delivered, ReplyHead};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::headers::CLIENT_BYTES;
use rbee_api::openai::{PromptTokensDetails, StreamOptions, Usage};
use rbee_http::{ApiError, ForwardedBody};

use super::Generation;
use super::choice::Choice;
use crate::engine::Earlier;
use crate::reply::Heading;
use crate::sampler::Sampler;

/// Random numbers that one token can take: two draws, each again under a constraint.
const DRAWS_PER_TOKEN_MAX: u64 = 4;

/// Whether a stream is marked, and where it begins.
#[derive(Debug)]
pub(crate) enum Marks {
    Unwanted,
    /// Marked from its beginning, or from what a client has of it.
    Wanted(Option<Delivered>),
}

impl Marks {
    /// Reads what is asked for beside the client's body. Only streams are marked.
    ///
    /// # Errors
    /// `validation_failed` for what no queen wrote, `worker_failed` for a reply
    /// of another model file than `model_sha256`.
    pub(crate) fn read(
        body: &ForwardedBody,
        stream: StreamOptions,
        choices: u32,
        model_sha256: Option<&Sha256Hex>,
    ) -> Result<Self, ApiError> {
        if !body.is_marked || !stream.stream {
            return Ok(Self::Unwanted);
        }
        let delivered = body.delivered()?;
        if let Some(delivered) = &delivered {
            check(delivered, choices)?;
            let theirs = &delivered.head.model_sha256;
            if theirs.as_ref().zip(model_sha256).is_some_and(|(theirs, ours)| theirs != ours) {
                let message = "the reply was begun by another model file than this worker has";
                return Err(ApiError::new(ErrorCode::WorkerFailed, message));
            }
        }
        Ok(Self::Wanted(delivered))
    }

    /// Returns what heads a reply that goes on here.
    pub(crate) fn head(&self) -> Option<&ReplyHead> {
        self.delivered().map(|delivered| &delivered.head)
    }

    pub(crate) fn are_wanted(&self) -> bool {
        matches!(self, Self::Wanted(_))
    }

    /// Returns how far a choice has come elsewhere.
    pub(crate) fn choice(&self, index: u32) -> Option<&ChoiceProgress> {
        self.delivered().and_then(|delivered| delivered.choice(index))
    }

    /// Returns the tokens of a choice whose end a client has.
    pub(super) fn ended(&self, index: u32) -> Option<&ChoiceProgress> {
        self.choice(index).filter(|choice| choice.has_ended)
    }

    /// Says how many of the choices have something left to be made here.
    pub(super) fn live(&self, choices: u32) -> u32 {
        let ended = (0..choices).filter(|index| self.ended(*index).is_some()).count();
        choices.saturating_sub(u32::try_from(ended).unwrap_or(u32::MAX))
    }

    /// Returns what the job of a choice has to know, and brings its sampler to where it was.
    ///
    /// # Errors
    /// `worker_failed` where the reply cannot go on here.
    pub(super) fn earlier(
        &self,
        index: u32,
        tokens_max: u32,
        sampler: &mut Sampler,
    ) -> Result<Option<Earlier>, ApiError> {
        let Some(choice) = self.choice(index) else {
            return Ok(self.are_wanted().then(Earlier::default));
        };
        if choice.tokens.len() > tokens_max as usize {
            let message = "the reply is longer than this worker's context has room for";
            return Err(ApiError::new(ErrorCode::WorkerFailed, message));
        }
        sampler.resume(&choice.tokens, choice.draws).map_err(|error| {
            let message = format!("the reply cannot go on here: {error}");
            ApiError::new(ErrorCode::WorkerFailed, message)
        })?;
        let tokens = choice.tokens.clone();
        Ok(Some(Earlier { tokens, cached_tokens: Some(choice.cached_tokens) }))
    }

    fn delivered(&self) -> Option<&Delivered> {
        match self {
            Self::Unwanted => None,
            Self::Wanted(delivered) => delivered.as_ref(),
        }
    }
}

impl Generation {
    /// Leaves a choice out whose end a client has, and counts it.
    pub(super) fn skip(&mut self, index: u32, ended: &ChoiceProgress, prompt_tokens: usize) {
        let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
        let (prompt_tokens, completion_tokens) = (count(prompt_tokens), count(ended.tokens.len()));
        let details = PromptTokensDetails { cached_tokens: ended.cached_tokens };
        let usage = Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: details,
        };
        self.choices.push(Choice::ended(self.app.engine().next_job()));
        self.count(index as usize, usage);
    }

    /// Whether the stream is to be marked, and what a client has of it.
    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Returns what another worker has to know of the reply as a whole.
    pub(crate) fn head(&self, heading: &Heading) -> ReplyHead {
        let (id, created) = heading.name();
        let model_sha256 = self.app.model_sha256().cloned();
        ReplyHead { id: id.to_owned(), created, seed: self.seed, model_sha256 }
    }
}

fn check(delivered: &Delivered, choices: u32) -> Result<(), ApiError> {
    let is_possible = |choice: &ChoiceProgress| {
        let tokens = u64::try_from(choice.tokens.len()).unwrap_or(u64::MAX);
        choice.index < choices && choice.draws <= tokens.saturating_mul(DRAWS_PER_TOKEN_MAX)
    };
    let ended = delivered.choices.iter().filter(|choice| choice.has_ended).count();
    if delivered.choices.iter().all(is_possible) && ended < choices as usize {
        return Ok(());
    }
    let message = "what follows the client's body is no reply to it that could go on";
    let detail = ErrorDetail::new(ErrorCode::ValidationFailed, message);
    Err(detail.with_param(CLIENT_BYTES).into())
}
