//! Decides what one engine step computes: which waiting jobs get which slots,
//! one token for every running stream, and as much prompt as the budget
//! leaves. Pure bookkeeping in whole tokens: never computes, sends or waits,
//! and learns the time from its caller.

use std::collections::VecDeque;

use tokio::time::Instant;

/// Names one job for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct JobId(pub(crate) u64);

/// What one step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Jobs that are computed at once; each has a slot.
    pub(crate) slots: u32,
    /// Tokens in one step, of all jobs together; more than `slots`.
    pub(crate) step_tokens: u32,
    /// Prompt tokens in a step that also carries running streams: what a
    /// stream waits for its next token when somebody else's prompt arrives.
    pub(crate) prompt_tokens_beside_streams: u32,
}

/// What a step computes for one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// A part of the prompt.
    Prefill {
        /// The first token, counted from the beginning of the prompt.
        from: u32,
        /// How many.
        len: u32,
        /// Whether the prompt is complete after it, so that a token comes out.
        completes: bool,
    },
    /// One more token of the stream.
    Decode,
}

impl Work {
    /// The tokens it puts into the step.
    pub(crate) fn tokens(self) -> u32 {
        match self {
            Self::Prefill { len, .. } => len,
            Self::Decode => 1,
        }
    }

    /// Whether a new token comes out of it.
    pub(crate) fn yields_token(self) -> bool {
        match self {
            Self::Prefill { completes, .. } => completes,
            Self::Decode => true,
        }
    }
}

/// One job's part of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) job: JobId,
    pub(crate) slot: u32,
    pub(crate) work: Work,
}

/// One step: the jobs that have just got a slot, and everybody's work in
/// ascending order of slots.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) admitted: Vec<(JobId, u32)>,
    pub(crate) entries: Vec<Entry>,
}

/// Whether a job's reader takes what is produced for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Keeps,
    Lags,
}

/// Where a job was when it was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Waiting,
    Slot(u32),
}

#[derive(Debug)]
struct Waiting {
    job: JobId,
    prompt_tokens: u32,
    deadline: Instant,
}

#[derive(Debug)]
struct Running {
    job: JobId,
    deadline: Instant,
    prompt_tokens: u32,
    prefilled: u32,
    reader: Reader,
    /// Grows with each admission: the smaller, the older.
    admission: u64,
}

/// The jobs that wait and those that have a slot.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Waiting>,
    slots: Vec<Option<Running>>,
    admissions: u64,
    /// Unfinished prompts as (admission, slot); reused between steps.
    prefilling: Vec<(u64, u32)>,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            slots: (0..limits.slots).map(|_| None).collect(),
            admissions: 0,
            prefilling: Vec::new(),
        }
    }

    /// Puts a job at the end of the queue. Its prompt has at least one token.
    pub(crate) fn add(&mut self, job: JobId, prompt_tokens: u32, deadline: Instant) {
        self.waiting.push_back(Waiting { job, prompt_tokens, deadline });
    }

    /// Takes a job out, wherever it is; `None` for one that is not here.
    pub(crate) fn remove(&mut self, job: JobId) -> Option<Place> {
        if let Some(index) = self.waiting.iter().position(|waiting| waiting.job == job) {
            self.waiting.remove(index);
            return Some(Place::Waiting);
        }
        let (slot, place) = (0_u32..)
            .zip(self.slots.iter_mut())
            .find(|(_, place)| place.as_ref().is_some_and(|running| running.job == job))?;
        *place = None;
        Some(Place::Slot(slot))
    }

    /// Says whether the reader of the job in `slot` keeps up. A job whose
    /// reader lags is left out of the steps until that changes.
    pub(crate) fn set_reader(&mut self, slot: u32, reader: Reader) {
        if let Some(running) = self.running_mut(slot) {
            running.reader = reader;
        }
    }

    /// Adds the jobs whose time is over to `expired`, oldest first within each kind.
    pub(crate) fn expired(&self, now: Instant, expired: &mut Vec<JobId>) {
        let running = self.slots.iter().flatten().map(|running| (running.job, running.deadline));
        let waiting = self.waiting.iter().map(|waiting| (waiting.job, waiting.deadline));
        expired.extend(
            running.chain(waiting).filter(|(_, deadline)| *deadline <= now).map(|(job, _)| job),
        );
    }

    pub(crate) fn slots(&self) -> u32 {
        self.limits.slots
    }

    /// Returns the job that has a slot.
    pub(crate) fn job_in(&self, slot: u32) -> Option<JobId> {
        self.slots.get(slot as usize)?.as_ref().map(|running| running.job)
    }

    #[cfg(test)]
    pub(crate) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn running_len(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Gives free slots to waiting jobs and writes the next step into `plan`.
    /// The same step is planned again until [`Self::commit`] says it was done.
    pub(crate) fn plan(&mut self, plan: &mut Plan) {
        plan.admitted.clear();
        plan.entries.clear();
        self.admit(&mut plan.admitted);
        self.plan_streams(&mut plan.entries);
        self.plan_prompts(&mut plan.entries);
        plan.entries.sort_unstable_by_key(|entry| entry.slot);
    }

    /// Records that a planned step has been computed.
    pub(crate) fn commit(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Some(running) = self.running_mut(entry.slot) else { continue };
            match entry.work {
                Work::Prefill { from, len, .. } if running.job == entry.job => {
                    running.prefilled = from + len;
                }
                Work::Prefill { .. } | Work::Decode => {}
            }
        }
    }

    /// Returns the job that got its slot last: the one that loses least when
    /// somebody has to give way.
    pub(crate) fn youngest(&self) -> Option<JobId> {
        let youngest = self.slots.iter().flatten().max_by_key(|running| running.admission);
        youngest.map(|running| running.job)
    }

    fn running_mut(&mut self, slot: u32) -> Option<&mut Running> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// First come, first served; the lowest slot first, because sequences with
    /// neighbouring ids are computed together and a gap splits the batch.
    fn admit(&mut self, admitted: &mut Vec<(JobId, u32)>) {
        for (slot, place) in (0..).zip(self.slots.iter_mut()) {
            if place.is_some() {
                continue;
            }
            let Some(next) = self.waiting.pop_front() else { return };
            admitted.push((next.job, slot));
            self.admissions += 1;
            *place = Some(Running {
                job: next.job,
                deadline: next.deadline,
                prompt_tokens: next.prompt_tokens,
                prefilled: 0,
                reader: Reader::Keeps,
                admission: self.admissions,
            });
        }
    }

    fn plan_streams(&self, entries: &mut Vec<Entry>) {
        for (slot, running) in (0..).zip(&self.slots) {
            let Some(running) = running else { continue };
            if running.prefilled == running.prompt_tokens && running.reader == Reader::Keeps {
                entries.push(Entry { job: running.job, slot, work: Work::Decode });
            }
        }
    }

    /// Deals the budget out to the oldest prompts first, so that one is
    /// finished before the next is begun.
    fn plan_prompts(&mut self, entries: &mut Vec<Entry>) {
        let streams = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        let mut budget = self.limits.step_tokens.saturating_sub(streams);
        if streams > 0 {
            budget = budget.min(self.limits.prompt_tokens_beside_streams);
        }
        self.prefilling.clear();
        for (slot, running) in (0..).zip(&self.slots) {
            let Some(running) = running else { continue };
            if running.prefilled < running.prompt_tokens {
                self.prefilling.push((running.admission, slot));
            }
        }
        self.prefilling.sort_unstable();
        for (_, slot) in &self.prefilling {
            let Some(Some(running)) = self.slots.get(*slot as usize) else { continue };
            let from = running.prefilled;
            let rest = running.prompt_tokens - from;
            let len = rest.min(budget);
            if len == 0 {
                return;
            }
            budget -= len;
            let work = Work::Prefill { from, len, completes: len == rest };
            entries.push(Entry { job: running.job, slot: *slot, work });
        }
    }
}

#[cfg(test)]
mod tests;
