//! Decides which inputs of which requests one step computes. Requests take
//! turns by single inputs, so that one with thousands does not keep one with a
//! few waiting. Pure bookkeeping: never computes, sends or waits, and learns the
//! time from its caller.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::StepLimits;
use crate::scheduler::JobId;

/// One input's place in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) job: JobId,
    /// Which input of the job.
    pub(super) input: usize,
}

/// A request and how far it is.
#[derive(Debug)]
struct Line {
    job: JobId,
    deadline: Instant,
    /// Tokens of each input.
    lengths: Vec<u32>,
    /// Inputs computed; they are computed in order.
    done: usize,
    /// Inputs computed or in the step being computed.
    planned: usize,
}

/// The requests at work, in the order of their turns, and those that wait.
#[derive(Debug)]
pub(super) struct Turns {
    limits: StepLimits,
    /// Requests that take turns at once.
    slots: u32,
    lines: VecDeque<Line>,
    waiting: VecDeque<Line>,
}

impl Turns {
    pub(super) fn new(slots: u32, limits: StepLimits) -> Self {
        Self { limits, slots, lines: VecDeque::new(), waiting: VecDeque::new() }
    }

    /// Puts a request at the end of the queue, with the tokens of each input.
    pub(super) fn add(&mut self, job: JobId, lengths: Vec<u32>, deadline: Instant) {
        self.waiting.push_back(Line { job, deadline, lengths, done: 0, planned: 0 });
    }

    /// Takes a request out, wherever it is.
    pub(super) fn remove(&mut self, job: JobId) {
        self.lines.retain(|line| line.job != job);
        self.waiting.retain(|line| line.job != job);
    }

    /// Adds the requests whose time is over to `expired`.
    pub(super) fn expired(&self, now: Instant, expired: &mut Vec<JobId>) {
        let all = self.lines.iter().chain(&self.waiting);
        expired.extend(all.filter(|line| line.deadline <= now).map(|line| line.job));
    }

    /// Requests at work.
    pub(super) fn running_len(&self) -> usize {
        self.lines.len()
    }

    /// Gives waiting requests a slot, as long as there are some, and adds them to `admitted`.
    pub(super) fn admit(&mut self, admitted: &mut Vec<JobId>) {
        while self.lines.len() < self.slots as usize {
            let Some(line) = self.waiting.pop_front() else { return };
            admitted.push(line.job);
            self.lines.push_back(line);
        }
    }

    /// Writes the next step into `entries`. Whoever has an input that no longer
    /// fits begins the step after it, so that a long input is never passed over
    /// twice. What was planned and not committed is planned anew.
    pub(super) fn plan(&mut self, entries: &mut Vec<Entry>) {
        entries.clear();
        let mut room = self.limits.tokens;
        let mut later = VecDeque::with_capacity(self.lines.len());
        let mut finished = VecDeque::new();
        for line in &mut self.lines {
            line.planned = line.done;
        }
        while let Some(mut line) = self.lines.pop_front() {
            let Some(length) = line.lengths.get(line.planned).copied() else {
                finished.push_back(line);
                continue;
            };
            let is_full = entries.len() >= self.limits.inputs as usize;
            if is_full || (length > room && !entries.is_empty()) {
                later.push_back(line);
                continue;
            }
            entries.push(Entry { job: line.job, input: line.planned });
            room = room.saturating_sub(length);
            line.planned += 1;
            self.lines.push_back(line);
        }
        later.append(&mut finished);
        self.lines = later;
    }

    /// Records that a planned step has been computed, and returns the requests
    /// that are complete with it.
    pub(super) fn commit(&mut self, complete: &mut Vec<JobId>) {
        for line in &mut self.lines {
            line.done = line.planned;
            if line.done == line.lengths.len() {
                complete.push(line.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: StepLimits = StepLimits { inputs: 4, tokens: 10 };

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn turns(slots: u32, jobs: &[&[u32]]) -> Turns {
        let mut turns = Turns::new(slots, LIMITS);
        for (id, lengths) in (1..).zip(jobs) {
            turns.add(JobId(id), lengths.to_vec(), later());
        }
        turns
    }

    /// Runs steps until nothing is left; each as the (job, input) it holds.
    fn run(turns: &mut Turns) -> Vec<Vec<(u64, usize)>> {
        let mut steps = Vec::new();
        loop {
            let (mut entries, mut complete) = (Vec::new(), Vec::new());
            turns.admit(&mut Vec::new());
            turns.plan(&mut entries);
            if entries.is_empty() {
                return steps;
            }
            turns.commit(&mut complete);
            complete.into_iter().for_each(|job| turns.remove(job));
            steps.push(entries.iter().map(|entry| (entry.job.0, entry.input)).collect());
        }
    }

    #[test]
    fn requests_take_turns_by_single_inputs() {
        let steps = run(&mut turns(8, &[&[2; 6], &[2], &[2; 2]]));
        assert_eq!(
            steps,
            [
                vec![(1, 0), (2, 0), (3, 0), (1, 1)],
                vec![(3, 1), (1, 2), (1, 3), (1, 4)],
                vec![(1, 5)],
            ]
        );
    }

    #[test]
    fn a_long_input_begins_the_next_step_and_may_be_longer_than_one() {
        let steps = run(&mut turns(8, &[&[3; 3], &[9], &[25], &[1]]));
        assert_eq!(
            steps,
            [vec![(1, 0), (4, 0), (1, 1), (1, 2)], vec![(2, 0)], vec![(3, 0)]],
            "the short ones fill the step that the long ones do not fit into"
        );
    }

    #[test]
    fn who_has_no_slot_waits_in_order() {
        let mut turns = turns(1, &[&[1; 2], &[1], &[1]]);
        let mut admitted = Vec::new();
        turns.admit(&mut admitted);
        assert_eq!((admitted, turns.running_len()), (vec![JobId(1)], 1));
        assert_eq!(run(&mut turns), [vec![(1, 0), (1, 1)], vec![(2, 0)], vec![(3, 0)]]);
    }

    #[test]
    fn a_step_that_was_not_computed_is_planned_again() {
        let mut turns = turns(8, &[&[2; 3], &[2; 3]]);
        turns.admit(&mut Vec::new());
        let mut entries = Vec::new();
        turns.plan(&mut entries);
        assert_eq!(entries.len(), 4);
        turns.plan(&mut entries);
        assert_eq!(entries.len(), 4);
        let total: usize = run(&mut turns).iter().map(Vec::len).sum();
        assert_eq!(total, 6, "nothing is lost or computed twice");
    }

    #[test]
    fn the_time_of_waiting_and_running_requests_ends() {
        let mut turns = Turns::new(1, LIMITS);
        let now = Instant::now();
        turns.add(JobId(1), vec![1], now);
        turns.add(JobId(2), vec![1], later());
        turns.add(JobId(3), vec![1], now);
        turns.admit(&mut Vec::new());
        let mut expired = Vec::new();
        turns.expired(now, &mut expired);
        assert_eq!(expired, [JobId(1), JobId(3)]);
    }

    proptest! {
        #[test]
        fn every_input_is_computed_once_in_order_within_the_limits(
            jobs in prop::collection::vec(prop::collection::vec(1_u32..25, 1..12), 1..8),
            slots in 1_u32..6,
        ) {
            let lengths: Vec<&[u32]> = jobs.iter().map(Vec::as_slice).collect();
            let mut seen = vec![0_usize; jobs.len()];
            for step in run(&mut turns(slots, &lengths)) {
                prop_assert!(step.len() <= LIMITS.inputs as usize);
                let mut tokens = 0;
                for (job, input) in &step {
                    let index = usize::try_from(*job - 1).expect("small");
                    prop_assert_eq!(*input, seen[index]);
                    seen[index] += 1;
                    tokens += jobs[index][*input];
                }
                prop_assert!(tokens <= LIMITS.tokens || step.len() == 1, "{} tokens", tokens);
            }
            let all: Vec<usize> = jobs.iter().map(Vec::len).collect();
            prop_assert_eq!(seen, all);
        }

        #[test]
        fn a_request_of_one_input_is_done_after_one_round_of_the_others(
            others in prop::collection::vec(prop::collection::vec(1_u32..=10, 20..40), 1..5),
        ) {
            let mut jobs: Vec<&[u32]> = others.iter().map(Vec::as_slice).collect();
            jobs.push(&[10]);
            let small = jobs.len() as u64;
            let steps = run(&mut turns(8, &jobs));
            let at = steps.iter().position(|step| step.iter().any(|(job, _)| *job == small));
            prop_assert!(at.is_some_and(|at| at <= others.len()), "{:?}", at);
        }
    }
}
