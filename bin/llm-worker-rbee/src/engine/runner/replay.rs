//! Brings a reply that began elsewhere to where it was: its text, what of it
//! was sent, whether it had come to its end, and what its slot holds. Its
//! sampler has been brought there before.
//!
//! A token that is computed with many others of its text differs in the last digits
//! from one computed alone, and with it all that come after. So the prompt is
//! computed first, as it was then, and then the reply, a token a step, beside whatever
//! else is decoded. Where that takes too long, the rest is computed at once; with
//! tiles in pieces too small for those, if there is time, which give the same digits.

use std::time::Duration;

use rbee_api::openai::FinishReason;
use tokio::time::Instant;

use super::super::Event;
use super::Runner;
use super::active::{Active, Cause};
use crate::scheduler::{Entry, JobId, Work};
use crate::text::Flow;

/// How long a reply may take to come to where it was, once its prompt is computed, and
/// how long in pieces after that. Its reader waits meanwhile.
const RETRACING_MAX: Duration = Duration::from_secs(1);

/// A reply on its way to where it was.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Retraced {
    /// Known tokens that a step is still to lead to.
    pub(super) tokens_left: u32,
    /// When its prompt was there.
    since: Option<Instant>,
}

impl Runner {
    /// Replays what a job brought with it, once it has a slot. Returns why it
    /// ends, where nothing is left to be computed.
    pub(super) fn replay(&mut self, id: JobId, slot: u32) -> Option<Cause> {
        let active = self.jobs.get_mut(&id)?;
        let tokens = std::mem::take(&mut active.to_replay);
        if tokens.is_empty() {
            return None;
        }
        let tokens_left = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        active.retraced = Retraced { tokens_left, since: None };
        let pieces = tokens.iter().map(|token| self.backend.piece(slot, *token));
        active.replay(pieces)
    }

    /// Takes a step that led to a token which is known; whether it was one.
    pub(super) fn retrace(&mut self, entry: &Entry) -> bool {
        let Some(active) = self.jobs.get_mut(&entry.job) else { return false };
        if !active.retraces() {
            return false;
        }
        if let Work::Decode { .. } = entry.work {
            let computed = active.next_token();
            self.memory.extend(entry.slot, computed.as_slice());
        }
        let held = self.memory.len(entry.slot);
        let left = active.tokens.len().saturating_sub(held + 1);
        active.retraced.tokens_left = u32::try_from(left).unwrap_or(u32::MAX);
        active.retraced.since.get_or_insert_with(Instant::now);
        if !active.retraces() {
            active.tell_replayed();
        }
        true
    }

    /// Has all that is known of a job that gives way computed at once when it comes back.
    pub(super) fn stop_retracing(&mut self, slot: u32) {
        let active = self.scheduler.job_in(slot).and_then(|id| self.jobs.get_mut(&id));
        active.into_iter().for_each(Active::stop_retracing);
    }

    /// Has more of a reply computed at once, where a token a step would take too long.
    pub(super) fn hurry_replays(&mut self) {
        let step = self.pace.decoding(self.scheduler.load().0.max(1));
        let tile_tokens = self.memory.tile_tokens();
        for slot in 0..self.scheduler.slots() {
            let active = self.scheduler.job_in(slot).and_then(|id| self.jobs.get_mut(&id));
            let Some(active) = active.filter(|active| active.retraced.is_late(step)) else {
                continue;
            };
            let tokens = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
            let (all, held) = (tokens(active.tokens.len()), tokens(self.memory.len(slot)));
            let rest = all.saturating_sub(held);
            let in_pieces = self.pace.outside_tiles(rest, all);
            let piece = if tile_tokens > 1 && in_pieces <= RETRACING_MAX {
                rest.min(tile_tokens - 1)
            } else {
                rest
            };
            tracing::debug!(tokens = rest, piece, "a reply is replayed faster");
            if piece == rest {
                active.stop_retracing();
            }
            self.scheduler.begin(slot, held + piece, held);
        }
    }
}

impl Retraced {
    /// Whether it would not be done in time with steps of this length.
    fn is_late(&self, step: Duration) -> bool {
        let takes = step.saturating_mul(self.tokens_left);
        self.tokens_left > 0
            && self.since.is_some_and(|since| since.elapsed() + takes > RETRACING_MAX)
    }
}

impl Active {
    /// Whether the next step leads to a token that is known.
    pub(super) fn retraces(&self) -> bool {
        self.retraced.tokens_left > 0
    }

    /// The tokens that are computed together when it gets a slot: all that are
    /// known, but for those of a reply that began elsewhere.
    pub(super) fn tokens_prefilled(&self) -> &[u32] {
        let prefilled = self.tokens.len().saturating_sub(self.to_replay.len());
        self.tokens.get(..prefilled).unwrap_or_default()
    }

    fn stop_retracing(&mut self) {
        self.retraced = Retraced::default();
        self.tell_replayed();
    }

    /// Tells the reader where the reply goes on, which is the first it hears: from now
    /// on something new is computed.
    fn tell_replayed(&mut self) {
        let Some(text) = self.replayed.take() else { return };
        if let Err(error) = self.job.events.try_send(Event::Replayed(text)) {
            tracing::debug!(%error, "a reader left before its reply went on");
        }
    }

    fn replay<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> Option<Cause> {
        let mut sent = String::new();
        let mut flow = Flow::GoesOn;
        for piece in pieces {
            flow = self.job.text.push(piece, &mut sent);
            if flow == Flow::Stopped {
                break;
            }
        }
        // Tells the places of later tokens.
        self.logprobs.release(&sent);
        self.replayed = Some(sent);
        let cause = self.end_of_replay(flow);
        if cause.is_some() {
            self.tell_replayed();
        }
        cause
    }

    /// Why nothing is left to be computed, where that is so.
    fn end_of_replay(&self, flow: Flow) -> Option<Cause> {
        if flow == Flow::Stopped || self.job.sampler.is_complete() {
            return Some(Cause::Finished(FinishReason::Stop));
        }
        (self.tokens_left() == 0).then_some(Cause::Finished(FinishReason::Length))
    }
}
