//! Moves tokens between slots and states outside, as the memory decides: gives
//! slots to waiting jobs, brings what their prompts share with others, closes
//! gaps, and makes room when the context is full.

use std::sync::Arc;

use rbee_api::error::{ErrorCode, ErrorDetail};

use super::super::backend::Unusable;
use super::super::memory::{Source, StoredId};
use super::Runner;
use super::active::Cause;

/// Steps that a gap is left open for the next job to fill.
const GAP_STEPS: u32 = 8;

impl Runner {
    /// Gives free slots to the jobs that wait, first come, first served, and
    /// lets those begin whose beginnings are there.
    pub(super) fn give_slots(&mut self) {
        while !self.is_full
            && let Some(active) = self.scheduler.next_waiting().and_then(|id| self.jobs.get(&id))
        {
            let Some(slot) = self.memory.occupy(active.job.scope, &active.tokens) else { break };
            if let Some(waited) = active.job.request.admitted() {
                self.stats.admitted(waited);
            }
            self.scheduler.admit(slot);
        }
        for slot in self.scheduler.awaiting() {
            self.begin(slot);
        }
    }

    /// Brings the beginning of a job's prompt into its slot, unless somebody
    /// is about to have more of it.
    fn begin(&mut self, slot: u32) {
        let Some(id) = self.scheduler.job_in(slot) else { return };
        let Some(active) = self.jobs.get(&id) else { return };
        let scope = active.job.scope;
        let source = self.memory.source(slot, scope, active.tokens_prefilled());
        if let Source::Kept { id: kept, .. } = source
            && !self.has_read(kept)
        {
            return;
        }
        let Some(active) = self.jobs.get(&id) else { return };
        let (tokens, prompt): (Arc<[u32]>, _) =
            (Arc::from(active.tokens_prefilled()), Arc::clone(&active.job.prompt));
        let generated = active.generated();
        let Some(len) = self.bring(slot, source) else { return };
        self.backend.begin(slot, &prompt, generated);
        self.memory.begin(slot, scope, &tokens, len as usize);
        self.scheduler.begin(slot, u32::try_from(tokens.len()).unwrap_or(u32::MAX), len);
        if let Some(active) = self.jobs.get_mut(&id) {
            active.cached_tokens.get_or_insert(len);
        }
        if let Some(cause) = self.replay(id, slot) {
            self.end(id, cause);
        }
    }

    /// Makes a slot hold what `source` says, and returns how many tokens that
    /// is; `None` for later.
    fn bring(&mut self, slot: u32, source: Source) -> Option<u32> {
        let tokens = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let kept = match source {
            Source::Later => return None,
            Source::Here { len } => len,
            Source::Nothing | Source::Slot { .. } | Source::Stored { .. } | Source::Kept { .. } => {
                0
            }
        };
        self.store(slot, kept);
        let (brought, len) = match source {
            Source::Nothing | Source::Later => (self.backend.cut(slot, 0), 0),
            Source::Here { len } => (self.backend.cut(slot, tokens(len)), len),
            Source::Slot { from, len } => (self.backend.copy(from, slot, tokens(len)), len),
            Source::Stored { id, len } => (self.restore(slot, id, tokens(len)), len),
            Source::Kept { id, len } => (self.restore_kept(slot, id, tokens(len)), len),
        };
        match brought {
            Ok(()) => Some(tokens(len)),
            Err(error) => {
                tracing::debug!(%error, slot, "a prompt is computed from its beginning");
                if let Source::Stored { id, .. } = source {
                    self.memory.discard(id);
                }
                self.empty(slot);
                Some(0)
            }
        }
    }

    fn restore(&mut self, slot: u32, id: StoredId, len: u32) -> Result<(), Unusable> {
        let whole = self.memory.stored_len(id) == len as usize;
        let gone = || Unusable { reason: "the stored state is gone".to_owned() };
        let state = self.memory.stored(id).ok_or_else(gone)?;
        self.backend.restore(slot, state, len)?;
        if whole {
            // The slot holds all of it now, and is stored again when it must go.
            self.memory.discard(id);
        }
        Ok(())
    }

    /// Stores what a slot holds beyond its first `kept` tokens before it goes.
    fn store(&mut self, slot: u32, kept: usize) {
        if !self.memory.is_worth_storing(slot, kept) {
            return;
        }
        match self.backend.save(slot) {
            Ok(state) => {
                let displaced = self.memory.store(slot, state);
                self.keep_displaced(displaced);
            }
            Err(error) => tracing::warn!(%error, "a conversation could not be stored"),
        }
    }

    /// Moves a job next to the others when a gap between them stays open.
    pub(super) fn close_gap(&mut self) {
        let Some((from, to)) = self.memory.gap() else {
            self.steps_with_gap = 0;
            return;
        };
        self.steps_with_gap += 1;
        if self.steps_with_gap < GAP_STEPS {
            return;
        }
        self.steps_with_gap = 0;
        let Some(active) = self.scheduler.job_in(from).and_then(|id| self.jobs.get(&id)) else {
            return;
        };
        let (prompt, generated) = (Arc::clone(&active.job.prompt), active.generated());
        let len = u32::try_from(self.memory.len(from)).unwrap_or(u32::MAX);
        self.store(to, 0);
        self.memory.forget(to);
        let moved = self.backend.copy(from, to, len).and_then(|()| self.backend.cut(from, 0));
        if let Err(error) = moved {
            tracing::warn!(%error, "a job could not be moved to another slot");
            return;
        }
        self.backend.begin(to, &prompt, generated);
        self.memory.relocate(from, to);
        self.scheduler.relocate(from, to);
    }

    /// Makes room in a context that is full: what nobody computes on goes
    /// first, then the youngest job has to wait, and is computed on later.
    pub(super) fn give_way(&mut self) {
        if let Some(slot) = self.memory.idle_slots().first().copied() {
            self.store(slot, 0);
            self.empty(slot);
            return;
        }
        let Some(slot) = self.scheduler.youngest() else { return };
        if self.scheduler.running_len() > 1 {
            tracing::info!("a request waits: the context memory is full");
            self.stats.preempted();
            self.is_full = true;
            self.store(slot, 0);
            self.stop_retracing(slot);
            self.scheduler.preempt(slot);
            self.memory.end(slot);
            self.empty(slot);
        } else if let Some(id) = self.scheduler.job_in(slot) {
            let message = "the worker's context memory is too small for this request";
            let detail = ErrorDetail::new(ErrorCode::ContextLengthExceeded, message);
            self.end(id, Cause::Failed(detail));
            self.empty(slot);
        }
    }

    pub(super) fn empty(&mut self, slot: u32) {
        self.memory.forget(slot);
        if let Err(error) = self.backend.cut(slot, 0) {
            tracing::error!(%error, "a slot could not be emptied");
        }
    }
}
