//! Decides what one engine step computes: one token, or a draft of several,
//! for every running stream, and as much prompt as the budget leaves. Pure
//! bookkeeping in whole tokens: never computes, sends or waits, chooses no
//! slots, and learns the time and the cost of things from its caller.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The budget for prompts may be exceeded by one part in so many.
const SPILL_SHARE: u32 = 4;

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
}

/// What the next step may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Prompt tokens in a step that also carries running streams: what a
    /// stream waits for its next token when somebody else's prompt arrives.
    pub(crate) prompt_tokens_beside_streams: u32,
    /// What one prompt token takes.
    pub(crate) prompt_token_time: Duration,
    pub(crate) now: Instant,
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
    /// One more token of the stream, and as many guessed ones after it.
    Decode { draft: u32 },
}

impl Work {
    /// The tokens it puts into the step.
    pub(crate) fn tokens(self) -> u32 {
        match self {
            Self::Prefill { len, .. } => len,
            Self::Decode { draft } => 1 + draft,
        }
    }

    /// How many of them are guessed.
    pub(crate) fn guesses(self) -> u32 {
        match self {
            Self::Prefill { .. } => 0,
            Self::Decode { draft } => draft,
        }
    }

    /// How many of them, the last ones, say which token comes next.
    pub(crate) fn outputs(self) -> u32 {
        match self {
            Self::Prefill { completes, .. } => u32::from(completes),
            Self::Decode { draft } => 1 + draft,
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

/// Whether the beginning of a prompt is in its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    /// It is still to be found out what need not be computed.
    Awaited,
    /// Computing can go on from there.
    Ready,
}

#[derive(Debug)]
struct Waiting {
    job: JobId,
    deadline: Instant,
    arrived: Instant,
}

#[derive(Debug)]
struct Running {
    job: JobId,
    deadline: Instant,
    arrived: Instant,
    beginning: Beginning,
    prompt_tokens: u32,
    prefilled: u32,
    /// Guessed tokens for the next step.
    draft: u32,
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
    /// Unfinished prompts as (urgency, slot); reused between steps.
    prefilling: Vec<(i128, u32)>,
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

    /// Puts a job at the end of the queue.
    pub(crate) fn add(&mut self, job: JobId, now: Instant, deadline: Instant) {
        self.waiting.push_back(Waiting { job, deadline, arrived: now });
    }

    /// Returns the job that gets the next slot.
    pub(crate) fn next_waiting(&self) -> Option<JobId> {
        self.waiting.front().map(|waiting| waiting.job)
    }

    /// Gives a free slot to the next waiting job. It is computed once its
    /// beginning [is ready](Self::begin).
    pub(crate) fn admit(&mut self, slot: u32) {
        let Some(place @ None) = self.slots.get_mut(slot as usize) else { return };
        let Some(next) = self.waiting.pop_front() else { return };
        self.admissions += 1;
        *place = Some(Running {
            job: next.job,
            deadline: next.deadline,
            arrived: next.arrived,
            beginning: Beginning::Awaited,
            prompt_tokens: 0,
            prefilled: 0,
            draft: 0,
            reader: Reader::Keeps,
            admission: self.admissions,
        });
    }

    /// Returns the slots whose jobs' beginnings are not ready, the oldest job first.
    pub(crate) fn awaiting(&self) -> Vec<u32> {
        let awaited = |running: &Running| running.beginning == Beginning::Awaited;
        let slots = (0..).zip(&self.slots);
        let mut slots: Vec<(u64, u32)> = slots
            .filter_map(|(slot, place)| {
                Some((place.as_ref().filter(|r| awaited(r))?.admission, slot))
            })
            .collect();
        slots.sort_unstable();
        slots.into_iter().map(|(_, slot)| slot).collect()
    }

    /// Lets the job in `slot` be computed: a prompt of `prompt_tokens`, more
    /// than `prefilled`, of which so many are there.
    pub(crate) fn begin(&mut self, slot: u32, prompt_tokens: u32, prefilled: u32) {
        if let Some(running) = self.running_mut(slot) {
            running.beginning = Beginning::Ready;
            running.prompt_tokens = prompt_tokens;
            running.prefilled = prefilled;
        }
    }

    /// Takes the slot from its job and puts the job at the head of the queue.
    pub(crate) fn preempt(&mut self, slot: u32) {
        if let Some(running) = self.slots.get_mut(slot as usize).and_then(Option::take) {
            let Running { job, deadline, arrived, .. } = running;
            self.waiting.push_front(Waiting { job, deadline, arrived });
        }
    }

    /// Moves a job to a slot that is free.
    pub(crate) fn relocate(&mut self, from: u32, to: u32) {
        if !matches!(self.slots.get(to as usize), Some(None)) {
            return;
        }
        let moved = self.slots.get_mut(from as usize).and_then(Option::take);
        if let Some(place) = self.slots.get_mut(to as usize) {
            *place = moved;
        }
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

    /// Says how many guessed tokens the next step tries for the job in `slot`.
    pub(crate) fn set_draft(&mut self, slot: u32, draft: u32) {
        if let Some(running) = self.running_mut(slot) {
            running.draft = draft;
        }
    }

    /// Returns the slot of the stream that would have the next step for
    /// itself, without other streams and without prompts.
    pub(crate) fn lone_stream(&self) -> Option<u32> {
        let mut busy =
            (0..).zip(&self.slots).filter_map(|(slot, place)| Some((slot, place.as_ref()?)));
        let (slot, running) = busy.next()?;
        (busy.next().is_none() && running.decodes()).then_some(slot)
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

    /// Counts the streams that have a next token to come, and the prompts that
    /// are still to be computed.
    pub(crate) fn load(&self) -> (u32, u32) {
        let jobs = self.slots.iter().flatten();
        jobs.fold((0, 0), |(streams, prompts), job| {
            if job.decodes() { (streams + 1, prompts) } else { (streams, prompts + 1) }
        })
    }

    /// Writes the next step into `entries`, in ascending order of slots. The
    /// same step is planned again until [`Self::commit`] says it was done.
    pub(crate) fn plan(&mut self, budget: Budget, entries: &mut Vec<Entry>) {
        entries.clear();
        self.plan_streams(entries);
        self.plan_prompts(budget, entries);
        entries.sort_unstable_by_key(|entry| entry.slot);
    }

    /// Records that a planned step has been computed.
    pub(crate) fn commit(&mut self, entries: &[Entry]) {
        for entry in entries {
            let Some(running) = self.running_mut(entry.slot) else { continue };
            if running.job != entry.job {
                continue;
            }
            match entry.work {
                Work::Prefill { from, len, .. } => running.prefilled = from + len,
                Work::Decode { .. } => running.draft = 0,
            }
        }
    }

    /// Returns the slot of the job that came last: the one that loses least
    /// when somebody has to give way.
    pub(crate) fn youngest(&self) -> Option<u32> {
        let busy = (0..).zip(&self.slots).filter_map(|(slot, place)| Some((slot, place.as_ref()?)));
        let youngest = busy.max_by_key(|(_, running)| running.admission);
        youngest.map(|(slot, _)| slot)
    }

    fn running_mut(&mut self, slot: u32) -> Option<&mut Running> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    fn plan_streams(&self, entries: &mut Vec<Entry>) {
        let jobs = self.slots.iter().flatten().count();
        let jobs = u32::try_from(jobs).unwrap_or(u32::MAX);
        let mut room = self.limits.step_tokens.saturating_sub(jobs);
        for (slot, running) in (0..).zip(&self.slots) {
            let Some(running) = running else { continue };
            if running.decodes() && running.reader == Reader::Keeps {
                let draft = running.draft.min(room);
                room -= draft;
                entries.push(Entry { job: running.job, slot, work: Work::Decode { draft } });
            }
        }
    }

    /// Deals the budget out to one prompt after the other, the most urgent
    /// first: the shorter what is left of it and the longer it has been here.
    /// A prompt waits for shorter ones at most as long as it takes itself. One
    /// that a little more than the budget would complete gets it, rather than
    /// a step of its own for its last tokens.
    fn plan_prompts(&mut self, budget: Budget, entries: &mut Vec<Entry>) {
        let streams: u32 = entries.iter().map(|entry| entry.work.tokens()).sum();
        let limit = self.limits.step_tokens.saturating_sub(streams);
        let mut room = limit;
        if streams > 0 {
            room = room.min(budget.prompt_tokens_beside_streams);
        }
        let mut spill = (limit - room).min(room / SPILL_SHARE);
        self.prefilling.clear();
        for (slot, running) in (0..).zip(&self.slots) {
            let Some(running) = running else { continue };
            if running.beginning == Beginning::Ready && running.prefilled < running.prompt_tokens {
                self.prefilling.push((running.urgency(budget), slot));
            }
        }
        self.prefilling.sort_unstable();
        for (_, slot) in &self.prefilling {
            let Some(Some(running)) = self.slots.get(*slot as usize) else { continue };
            let from = running.prefilled;
            let rest = running.prompt_tokens - from;
            if room == 0 {
                return;
            }
            let len = if rest <= room + spill { rest } else { room };
            spill -= len.saturating_sub(room);
            room = room.saturating_sub(len);
            let work = Work::Prefill { from, len, completes: len == rest };
            entries.push(Entry { job: running.job, slot: *slot, work });
        }
    }
}

impl Running {
    fn decodes(&self) -> bool {
        self.beginning == Beginning::Ready && self.prefilled == self.prompt_tokens
    }

    /// The smaller, the sooner its prompt is computed: the nanoseconds that the
    /// rest takes, less those since it arrived.
    fn urgency(&self, budget: Budget) -> i128 {
        let nanoseconds = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        let rest = i128::from(self.prompt_tokens - self.prefilled);
        let waited = budget.now.saturating_duration_since(self.arrived);
        rest.saturating_mul(nanoseconds(budget.prompt_token_time)) - nanoseconds(waited)
    }
}

#[cfg(test)]
mod tests;
