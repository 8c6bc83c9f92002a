//! Plays the scheduler against a model of what every job is owed, step by
//! step, on random traffic.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { slots: 3, step_tokens: 16 };
/// Prompt tokens beside streams.
const BESIDE: u32 = 5;
/// What may come on top to complete a prompt.
const SPILL: u32 = 1;

fn later(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn budget(now: Instant) -> Budget {
    let prompt_token_time = Duration::from_millis(10);
    Budget { prompt_tokens_beside_streams: BESIDE, prompt_token_time, now }
}

fn plan_at(scheduler: &mut Scheduler, now: Instant) -> Vec<Entry> {
    let mut entries = Vec::new();
    scheduler.plan(budget(now), &mut entries);
    entries
}

/// Plans one step, carries it out and returns it.
fn step_at(scheduler: &mut Scheduler, now: Instant) -> Vec<Entry> {
    let entries = plan_at(scheduler, now);
    scheduler.commit(&entries);
    entries
}

fn step(scheduler: &mut Scheduler) -> Vec<Entry> {
    step_at(scheduler, Instant::now())
}

/// Adds a job and gives it a slot at once.
fn start(scheduler: &mut Scheduler, job: u64, slot: u32, prompt_tokens: u32) {
    start_at(scheduler, job, slot, prompt_tokens, Instant::now());
}

fn start_at(scheduler: &mut Scheduler, job: u64, slot: u32, prompt_tokens: u32, now: Instant) {
    scheduler.add(JobId(job), now, later(60));
    scheduler.admit(slot);
    scheduler.begin(slot, prompt_tokens, 0);
}

fn prefill(job: u64, slot: u32, from: u32, len: u32, completes: bool) -> Entry {
    Entry { job: JobId(job), slot, work: Work::Prefill { from, len, completes } }
}

fn decode(job: u64, slot: u32) -> Entry {
    Entry { job: JobId(job), slot, work: Work::Decode { draft: 0 } }
}

#[test]
fn a_prompt_is_cut_to_the_budget_and_then_decoded_token_by_token() {
    let mut scheduler = Scheduler::new(LIMITS);
    start(&mut scheduler, 1, 0, 20);
    assert_eq!(step(&mut scheduler), [prefill(1, 0, 0, 16, false)]);
    assert_eq!(step(&mut scheduler), [prefill(1, 0, 16, 4, true)]);
    assert_eq!(step(&mut scheduler), [decode(1, 0)]);
    assert_eq!(step(&mut scheduler), [decode(1, 0)]);
}

#[test]
fn a_long_prompt_never_takes_a_step_from_a_running_stream() {
    let mut scheduler = Scheduler::new(LIMITS);
    start(&mut scheduler, 1, 0, 1);
    step(&mut scheduler);
    start(&mut scheduler, 2, 1, 12);
    for (from, len, completes) in [(0, 5, false), (5, 5, false), (10, 2, true)] {
        let expected = [decode(1, 0), prefill(2, 1, from, len, completes)];
        assert_eq!(step(&mut scheduler), expected);
    }
    assert_eq!(step(&mut scheduler), [decode(1, 0), decode(2, 1)]);
}

#[test]
fn a_little_more_than_the_budget_completes_a_prompt() {
    let mut scheduler = Scheduler::new(LIMITS);
    start(&mut scheduler, 1, 0, 1);
    step(&mut scheduler);
    start(&mut scheduler, 2, 1, BESIDE + BESIDE + SPILL);
    let first = [decode(1, 0), prefill(2, 1, 0, BESIDE, false)];
    assert_eq!(step(&mut scheduler), first);
    let second = [decode(1, 0), prefill(2, 1, BESIDE, BESIDE + SPILL, true)];
    assert_eq!(step(&mut scheduler), second);
    // Once in a step, and never beyond what a step may hold.
    let mut scheduler = Scheduler::new(Limits { slots: 3, step_tokens: BESIDE + 1 });
    start(&mut scheduler, 1, 0, 1);
    step(&mut scheduler);
    start(&mut scheduler, 2, 1, BESIDE + SPILL);
    assert_eq!(step(&mut scheduler), [decode(1, 0), prefill(2, 1, 0, BESIDE, false)]);
}

#[test]
fn a_job_is_computed_from_where_its_prompt_is_ready_and_not_before() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(JobId(1), Instant::now(), later(60));
    assert_eq!(scheduler.next_waiting(), Some(JobId(1)));
    scheduler.admit(2);
    assert_eq!((scheduler.next_waiting(), scheduler.awaiting()), (None, vec![2]));
    assert_eq!(step(&mut scheduler), []);
    scheduler.begin(2, 10, 7);
    assert!(scheduler.awaiting().is_empty());
    assert_eq!(step(&mut scheduler), [prefill(1, 2, 7, 3, true)]);
}

#[test]
fn a_short_prompt_overtakes_a_long_one_that_has_not_waited_long() {
    let mut scheduler = Scheduler::new(LIMITS);
    let now = Instant::now();
    // At 10 ms a token: 1 s of work, and 100 ms.
    start_at(&mut scheduler, 1, 0, 100, now);
    start_at(&mut scheduler, 2, 1, 10, now);
    let first = plan_at(&mut scheduler, now);
    assert_eq!(first, [prefill(1, 0, 0, 6, false), prefill(2, 1, 0, 10, true)]);
    // One that has waited longer than the work it has more goes first.
    let mut scheduler = Scheduler::new(LIMITS);
    start_at(&mut scheduler, 1, 0, 100, now);
    let much_later = now + Duration::from_secs(2);
    start_at(&mut scheduler, 2, 1, 10, much_later);
    assert_eq!(plan_at(&mut scheduler, much_later), [prefill(1, 0, 0, 16, false)]);
}

#[test]
fn slots_go_to_the_job_that_waits_longest() {
    let mut scheduler = Scheduler::new(LIMITS);
    (1..=5).for_each(|job| scheduler.add(JobId(job), Instant::now(), later(60)));
    [1, 0, 2].into_iter().for_each(|slot| scheduler.admit(slot));
    assert_eq!(scheduler.awaiting(), [1, 0, 2], "the oldest begins first");
    let jobs = [0, 1, 2].map(|slot| scheduler.job_in(slot));
    assert_eq!(jobs, [Some(JobId(2)), Some(JobId(1)), Some(JobId(3))]);
    scheduler.admit(1);
    assert_eq!(scheduler.job_in(1), Some(JobId(1)), "a slot was taken from its job");
    assert_eq!(scheduler.remove(JobId(2)), Some(Place::Slot(0)));
    scheduler.admit(0);
    assert_eq!(scheduler.job_in(0), Some(JobId(4)));
    assert_eq!(scheduler.remove(JobId(5)), Some(Place::Waiting));
    assert_eq!(scheduler.remove(JobId(5)), None);
    assert_eq!((scheduler.running_len(), scheduler.waiting_len()), (3, 0));
}

#[test]
fn a_job_whose_reader_lags_keeps_its_slot_and_gets_no_step() {
    let mut scheduler = Scheduler::new(LIMITS);
    start(&mut scheduler, 1, 0, 1);
    start(&mut scheduler, 2, 1, 1);
    step(&mut scheduler);
    scheduler.set_reader(0, Reader::Lags);
    assert_eq!(step(&mut scheduler), [decode(2, 1)]);
    scheduler.set_reader(0, Reader::Keeps);
    assert_eq!(step(&mut scheduler), [decode(1, 0), decode(2, 1)]);
}

#[test]
fn a_step_that_was_not_carried_out_is_planned_again() {
    let mut scheduler = Scheduler::new(LIMITS);
    start(&mut scheduler, 1, 0, 20);
    let now = Instant::now();
    let first = plan_at(&mut scheduler, now);
    assert_eq!((first.len(), plan_at(&mut scheduler, now)), (1, first));
}

#[test]
fn a_guess_is_tried_once_and_only_by_a_stream_that_is_alone() {
    let mut scheduler = Scheduler::new(LIMITS);
    start(&mut scheduler, 1, 1, 1);
    assert_eq!(scheduler.lone_stream(), None, "its prompt is not computed");
    step(&mut scheduler);
    assert_eq!(scheduler.lone_stream(), Some(1));
    scheduler.set_draft(1, 40);
    let work = Work::Decode { draft: 15 };
    let expected = [Entry { job: JobId(1), slot: 1, work }];
    assert_eq!((work.tokens(), work.outputs()), (16, 16), "cut to what a step holds");
    assert_eq!(plan_at(&mut scheduler, Instant::now()), expected);
    assert_eq!(step(&mut scheduler), expected);
    assert_eq!(step(&mut scheduler), [decode(1, 1)]);
    scheduler.add(JobId(2), Instant::now(), later(60));
    assert_eq!(scheduler.lone_stream(), Some(1));
    scheduler.admit(0);
    assert_eq!(scheduler.lone_stream(), None);
    scheduler.begin(0, 1, 0);
    step(&mut scheduler);
    assert_eq!(scheduler.load(), (2, 0));
    assert_eq!(scheduler.lone_stream(), None, "two streams");
}

#[test]
fn a_job_that_gives_way_is_the_next_to_get_a_slot() {
    let mut scheduler = Scheduler::new(LIMITS);
    assert_eq!(scheduler.youngest(), None);
    start(&mut scheduler, 1, 2, 1);
    start(&mut scheduler, 2, 0, 1);
    scheduler.add(JobId(3), Instant::now(), later(60));
    assert_eq!(scheduler.youngest(), Some(0));
    scheduler.preempt(0);
    assert_eq!((scheduler.next_waiting(), scheduler.waiting_len()), (Some(JobId(2)), 2));
    scheduler.admit(1);
    assert_eq!((scheduler.job_in(1), scheduler.awaiting()), (Some(JobId(2)), vec![1]));
}

#[test]
fn a_job_that_moves_goes_on_where_it_was() {
    let mut scheduler = Scheduler::new(LIMITS);
    start(&mut scheduler, 1, 0, 20);
    start(&mut scheduler, 2, 2, 1);
    step(&mut scheduler);
    scheduler.relocate(2, 0);
    assert_eq!(scheduler.job_in(0), Some(JobId(1)), "a slot was taken from its job");
    scheduler.remove(JobId(1));
    scheduler.relocate(2, 0);
    assert_eq!((scheduler.job_in(0), scheduler.job_in(2)), (Some(JobId(2)), None));
    assert_eq!(step(&mut scheduler), [decode(2, 0)]);
}

#[test]
fn jobs_expire_wherever_they_are() {
    let mut scheduler = Scheduler::new(LIMITS);
    let now = Instant::now();
    for (job, seconds) in [(1, 1), (2, 3), (3, 2)] {
        scheduler.add(JobId(job), now, now + Duration::from_secs(seconds));
    }
    scheduler.admit(0);
    for (seconds, jobs) in [(0, vec![]), (1, vec![1]), (2, vec![1, 3]), (3, vec![1, 2, 3])] {
        let mut expired = Vec::new();
        scheduler.expired(now + Duration::from_secs(seconds), &mut expired);
        assert_eq!(expired, jobs.into_iter().map(JobId).collect::<Vec<_>>(), "{seconds} s");
    }
}

/// What one random event does to the scheduler.
#[derive(Debug, Clone)]
enum Action {
    Add {
        prompt_tokens: u32,
        output_tokens: u32,
    },
    /// Gives a slot to a job; computing starts after so many of its tokens.
    Admit(u32, u32),
    Preempt(u32),
    Relocate(u32, u32),
    Draft(u32, u32),
    /// Picks one of the live jobs by its position.
    Cancel(usize),
    Lag(u32),
    CatchUp(u32),
    Step,
    /// A step that fails and so is not committed.
    LostStep,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (1..40_u32, 1..10_u32).prop_map(|(prompt_tokens, output_tokens)| Action::Add {
            prompt_tokens,
            output_tokens
        }),
        3 => (0..4_u32, 0..5_u32).prop_map(|(slot, shared)| Action::Admit(slot, shared)),
        1 => (0..4_u32).prop_map(Action::Preempt),
        1 => (0..4_u32, 0..4_u32).prop_map(|(from, to)| Action::Relocate(from, to)),
        1 => (0..4_u32, 0..4_u32).prop_map(|(slot, draft)| Action::Draft(slot, draft)),
        1 => (0..8_usize).prop_map(Action::Cancel),
        1 => (0..4_u32).prop_map(Action::Lag),
        1 => (0..4_u32).prop_map(Action::CatchUp),
        6 => Just(Action::Step),
        1 => Just(Action::LostStep),
    ]
}

/// What a job is still owed.
#[derive(Debug)]
struct Owed {
    prompt: u32,
    prefilled: u32,
    output: u32,
    slot: Option<u32>,
    reader: Reader,
}

/// The truth that the scheduler is held to.
#[derive(Debug, Default)]
struct Model {
    jobs: BTreeMap<u64, Owed>,
    /// Jobs without a slot, the next one first.
    queue: VecDeque<u64>,
    ended: BTreeSet<u64>,
    next: u64,
}

impl Model {
    fn job_in(&mut self, slot: u32) -> Option<&mut Owed> {
        self.jobs.values_mut().find(|owed| owed.slot == Some(slot))
    }

    fn end(&mut self, scheduler: &mut Scheduler, job: u64) {
        let owed = self.jobs.remove(&job).unwrap();
        self.queue.retain(|waiting| *waiting != job);
        let place = owed.slot.map_or(Place::Waiting, Place::Slot);
        assert_eq!(scheduler.remove(JobId(job)), Some(place));
        assert_eq!(scheduler.remove(JobId(job)), None, "a job ended twice");
        assert!(self.ended.insert(job));
    }

    fn admit(&mut self, scheduler: &mut Scheduler, limits: Limits, slot: u32, shared: u32) {
        scheduler.admit(slot);
        if slot >= limits.slots || self.job_in(slot).is_some() {
            return;
        }
        let Some(job) = self.queue.pop_front() else { return };
        assert_eq!(scheduler.job_in(slot), Some(JobId(job)), "somebody overtook the oldest job");
        let owed = self.jobs.get_mut(&job).unwrap();
        owed.slot = Some(slot);
        owed.reader = Reader::Keeps;
        owed.prefilled = shared.min(owed.prompt - 1);
        scheduler.begin(slot, owed.prompt, owed.prefilled);
    }

    fn preempt(&mut self, scheduler: &mut Scheduler, slot: u32) {
        scheduler.preempt(slot);
        let Some((job, owed)) = self.jobs.iter_mut().find(|(_, owed)| owed.slot == Some(slot))
        else {
            return;
        };
        owed.slot = None;
        owed.prefilled = 0;
        self.queue.push_front(*job);
    }

    fn relocate(&mut self, scheduler: &mut Scheduler, limits: Limits, from: u32, to: u32) {
        scheduler.relocate(from, to);
        if to < limits.slots
            && self.job_in(to).is_none()
            && let Some(owed) = self.job_in(from)
        {
            owed.slot = Some(to);
        }
    }

    fn check_entries(&self, limits: Limits, entries: &[Entry]) {
        let tokens: u32 = entries.iter().map(|entry| entry.work.tokens()).sum();
        assert!(tokens <= limits.step_tokens);
        assert!(entries.is_sorted_by(|a, b| a.slot < b.slot), "a slot has two entries");
        let mut streams = 0;
        let mut prompt_tokens = 0;
        for entry in entries {
            let owed = &self.jobs[&entry.job.0];
            assert_eq!(owed.slot, Some(entry.slot));
            match entry.work {
                Work::Decode { .. } => {
                    assert_eq!((owed.prefilled, owed.reader), (owed.prompt, Reader::Keeps));
                    streams += 1;
                }
                Work::Prefill { from, len, completes } => {
                    assert_eq!(from, owed.prefilled);
                    assert!(len > 0 && from + len <= owed.prompt);
                    assert_eq!(completes, from + len == owed.prompt);
                    prompt_tokens += len;
                }
            }
        }
        let decodable = self.jobs.values().filter(|owed| {
            owed.slot.is_some() && owed.prefilled == owed.prompt && owed.reader == Reader::Keeps
        });
        assert_eq!(streams, decodable.count(), "a running stream was left out");
        let completes = |entry: &Entry| matches!(entry.work, Work::Prefill { completes: true, .. });
        let allowed = if entries.iter().any(completes) { BESIDE + SPILL } else { BESIDE };
        assert!(streams == 0 || prompt_tokens <= allowed);
        let prompt_left = self.jobs.values().any(|o| o.slot.is_some() && o.prefilled < o.prompt);
        let full = tokens == limits.step_tokens;
        assert!(full || prompt_left == (prompt_tokens > 0), "no prompt makes progress");
    }

    fn carry_out(&mut self, scheduler: &mut Scheduler, entries: &[Entry]) {
        scheduler.commit(entries);
        for entry in entries {
            let owed = self.jobs.get_mut(&entry.job.0).unwrap();
            if let Work::Prefill { len, .. } = entry.work {
                owed.prefilled += len;
            }
            if entry.work.outputs() > 0 {
                owed.output -= 1;
                if owed.output == 0 {
                    self.end(scheduler, entry.job.0);
                }
            }
        }
    }

    fn act(&mut self, scheduler: &mut Scheduler, limits: Limits, action: &Action) {
        match action {
            Action::Add { prompt_tokens, output_tokens } => {
                self.next += 1;
                scheduler.add(JobId(self.next), Instant::now(), later(60));
                self.queue.push_back(self.next);
                let owed = Owed {
                    prompt: *prompt_tokens,
                    prefilled: 0,
                    output: *output_tokens,
                    slot: None,
                    reader: Reader::Keeps,
                };
                self.jobs.insert(self.next, owed);
            }
            Action::Cancel(index) => {
                if let Some(job) = self.jobs.keys().nth(*index).copied() {
                    self.end(scheduler, job);
                }
            }
            Action::Admit(slot, shared) => self.admit(scheduler, limits, *slot, *shared),
            Action::Preempt(slot) => self.preempt(scheduler, *slot),
            Action::Relocate(from, to) => self.relocate(scheduler, limits, *from, *to),
            Action::Draft(slot, draft) => scheduler.set_draft(*slot, *draft),
            Action::Lag(slot) => self.set_reader(scheduler, *slot, Reader::Lags),
            Action::CatchUp(slot) => self.set_reader(scheduler, *slot, Reader::Keeps),
            Action::Step | Action::LostStep => {
                let entries = plan_at(scheduler, Instant::now());
                self.check_entries(limits, &entries);
                if matches!(action, Action::Step) {
                    self.carry_out(scheduler, &entries);
                }
            }
        }
        let running = self.jobs.values().filter(|owed| owed.slot.is_some()).count();
        assert_eq!(scheduler.running_len(), running);
        assert_eq!(scheduler.waiting_len(), self.jobs.len() - running);
    }

    fn set_reader(&mut self, scheduler: &mut Scheduler, slot: u32, reader: Reader) {
        scheduler.set_reader(slot, reader);
        if let Some(owed) = self.job_in(slot) {
            owed.reader = reader;
        }
    }
}

proptest! {
    #[test]
    fn every_job_gets_what_it_is_owed_and_ends_once(
        slots in 1..5_u32,
        room in 1..20_u32,
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let limits = Limits { slots, step_tokens: slots + room };
        let mut scheduler = Scheduler::new(limits);
        let mut model = Model::default();
        for action in &actions {
            model.act(&mut scheduler, limits, action);
        }
        (0..slots).for_each(|slot| model.set_reader(&mut scheduler, slot, Reader::Keeps));
        let steps_max = model.jobs.values().map(|owed| owed.prompt + owed.output).sum::<u32>();
        for _ in 0..=steps_max {
            (0..slots).for_each(|slot| model.act(&mut scheduler, limits, &Action::Admit(slot, 0)));
            model.act(&mut scheduler, limits, &Action::Step);
        }
        prop_assert!(model.jobs.is_empty(), "jobs never end: {:?}", model.jobs);
        prop_assert_eq!(model.ended.len() as u64, model.next);
    }
}
