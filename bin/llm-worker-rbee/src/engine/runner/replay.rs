//! Brings a reply that began elsewhere to where it was: its text, what of it
//! was sent, and whether it had come to its end. Its tokens are computed with
//! the prompt; its sampler has been brought there before.

use rbee_api::openai::FinishReason;

use super::super::Event;
use super::Runner;
use super::active::{Active, Cause};
use crate::scheduler::JobId;
use crate::text::Flow;

impl Runner {
    /// Replays what a job brought with it, once it has a slot. Returns why it
    /// ends, where nothing is left to be computed.
    pub(super) fn replay(&mut self, id: JobId, slot: u32) -> Option<Cause> {
        let active = self.jobs.get_mut(&id)?;
        let tokens = std::mem::take(&mut active.to_replay);
        if tokens.is_empty() {
            return None;
        }
        let pieces = tokens.iter().map(|token| self.backend.piece(slot, *token));
        active.replay(pieces)
    }
}

impl Active {
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
        if self.job.events.try_send(Event::Replayed(sent)).is_err() {
            return Some(Cause::ReaderGone);
        }
        if flow == Flow::Stopped || self.job.sampler.is_complete() {
            return Some(Cause::Finished(FinishReason::Stop));
        }
        (self.tokens_left() == 0).then_some(Cause::Finished(FinishReason::Length))
    }
}
