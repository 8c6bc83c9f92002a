//! Carries states to disk and back: what was displaced at once, the rest when
//! the engine has nothing to do or ends. Waits for no disk while anything else
//! can be computed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::backend::Unusable;
use super::super::disk::{Kept, News, Write, WriteOutcome};
use super::super::memory::{Displaced, KeptId, Scope, Unsaved};
use super::Runner;

/// How long nothing is asked before conversations are written: a chat that goes
/// on at once would only have them written again.
const KEEP_AFTER: Duration = Duration::from_secs(5);
/// How often it is looked whether the disk has done something.
const NEWS_POLL: Duration = Duration::from_millis(20);

impl Runner {
    /// Takes in what the disk's threads have done.
    pub(super) fn take_news(&mut self) {
        let Some(disk) = &mut self.disk else { return };
        let news = disk.take_news();
        let hangs = disk.hangs();
        for item in news {
            self.take_item(item);
        }
        if let Some(disk) = &self.disk {
            disk.set_states(self.memory.kept_len());
            self.memory.set_disk(!hangs);
        }
    }

    fn take_item(&mut self, item: News) {
        match item {
            News::Found(Kept { id, scope, tokens }) => self.memory.found_kept(id, scope, tokens),
            News::Listed => {}
            News::Off => self.end_disk(),
            News::Read { id, .. } => {
                // Without its state it is computed, and written again.
                if !self.disk.as_ref().is_some_and(|disk| disk.has(id)) {
                    self.memory.forget_kept(id);
                }
            }
            News::Written { id, outcome } => match outcome {
                WriteOutcome::Done { gone } => {
                    gone.into_iter().for_each(|gone| self.memory.forget_kept(gone));
                    self.memory.keeping_done(id);
                }
                WriteOutcome::TooBig => self.memory.keeping_refused(id),
                WriteOutcome::Failed => self.memory.keeping_failed(id),
            },
        }
    }

    /// Whether a kept state is in hand. If it is not, it is being read then, or
    /// cannot be any more.
    pub(super) fn has_read(&mut self, id: KeptId) -> bool {
        let Some(disk) = &mut self.disk else { return false };
        if disk.has(id) {
            return true;
        }
        if let Err(error) = disk.ensure_reading(id) {
            tracing::error!(%error, "conversations are kept on disk no more");
            self.end_disk();
        }
        false
    }

    fn end_disk(&mut self) {
        self.disk = None;
        self.memory.set_disk(false);
    }

    /// Puts the first `len` tokens of a kept state into a slot. It stays on disk.
    pub(super) fn restore_kept(&mut self, slot: u32, id: KeptId, len: u32) -> Result<(), Unusable> {
        let state = self.disk.as_mut().and_then(|disk| disk.take(id));
        let gone = || Unusable { reason: "the kept state is gone".to_owned() };
        let restored = self.backend.restore(slot, &state.ok_or_else(gone)?, len);
        match &restored {
            Ok(()) => self.disk.iter().for_each(|disk| disk.hit()),
            Err(_) => self.memory.forget_kept(id),
        }
        restored
    }

    /// Lets go of a state that was read for a job that has left.
    pub(super) fn end_reads(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.end_round();
        }
    }

    /// Writes states to disk that have no other place any more.
    pub(super) fn keep_displaced(&mut self, displaced: Vec<Displaced>) {
        for Displaced { scope, tokens, state } in displaced {
            if self.disk.is_some() && !self.memory.is_settled(scope, &tokens) {
                self.keep(scope, tokens, state);
            }
        }
    }

    fn keep(&mut self, scope: Scope, tokens: Vec<u32>, state: Arc<Vec<u8>>) {
        let Some(disk) = &mut self.disk else { return };
        let keeping = self.memory.begin_keeping(scope, &tokens);
        let id = keeping.id;
        if !disk.try_write(Write { id, scope, tokens, state, replaces: keeping.replaces }) {
            self.memory.keeping_failed(id);
        }
    }

    /// How long to wait for commands before something is to be done for the
    /// disk; `None` for ever.
    pub(super) fn time_to_keep(&self) -> Option<Duration> {
        let disk = self.disk.as_ref()?;
        if disk.is_busy() {
            return Some(NEWS_POLL);
        }
        self.memory.unsaved()?;
        let now = Instant::now();
        let due = self.idle_since + KEEP_AFTER;
        let due = disk.rests_until().map_or(due, |rested| rested.max(due));
        // Never nothing, so that a command is seen first.
        Some(due.saturating_duration_since(now).max(Duration::from_millis(1)))
    }

    /// Writes one state to disk if nothing has been asked for long enough.
    pub(super) fn keep_one(&mut self) {
        let Some(disk) = &self.disk else { return };
        let is_due = self.idle_since.elapsed() >= KEEP_AFTER;
        if is_due && !disk.is_writing() && disk.rests_until().is_none() {
            self.keep_next();
        }
    }

    /// Writes the next state to disk; whether there was one.
    fn keep_next(&mut self) -> bool {
        match self.memory.unsaved() {
            None => false,
            Some(Unsaved::Slot(slot)) => {
                let contents = self.memory.contents(slot);
                let Some((scope, tokens)) = contents.map(|(s, tokens)| (s, tokens.to_vec())) else {
                    return false;
                };
                match self.backend.save(slot) {
                    Ok(state) => self.keep(scope, tokens, Arc::new(state)),
                    Err(error) => {
                        tracing::warn!(%error, "a conversation could not be saved");
                        self.empty(slot);
                    }
                }
                true
            }
            Some(Unsaved::Stored(id)) => {
                let stored = self.memory.stored_whole(id);
                self.keep_displaced(stored.into_iter().collect());
                true
            }
        }
    }

    /// Writes what is not on disk yet before the engine ends, as long as there is
    /// time, one state after the other.
    pub(super) fn keep_all(&mut self) {
        let Some(until) = self.control.keep_until.get().copied() else { return };
        for slot in 0..self.scheduler.slots() {
            if self.scheduler.job_in(slot).is_some() {
                self.memory.end(slot);
            }
        }
        loop {
            self.take_news();
            let Some(disk) = &self.disk else { return };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!("the time to keep conversations on disk is over");
                return;
            }
            if disk.is_writing() {
                disk.wait(left);
            } else if disk.rests_until().is_some() || !self.keep_next() {
                return;
            }
        }
    }
}
