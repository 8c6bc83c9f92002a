//! Plays the scheduler against a model of what every job is owed, step by
//! step, on random traffic.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { slots: 3, step_tokens: 16, prompt_tokens_beside_streams: 5 };

fn later(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn plan(scheduler: &mut Scheduler) -> Plan {
    let mut plan = Plan::default();
    scheduler.plan(&mut plan);
    plan
}

/// Plans one step, carries it out and returns it.
fn step(scheduler: &mut Scheduler) -> Plan {
    let plan = plan(scheduler);
    scheduler.commit(&plan.entries);
    plan
}

fn prefill(job: u64, slot: u32, from: u32, len: u32, completes: bool) -> Entry {
    Entry { job: JobId(job), slot, work: Work::Prefill { from, len, completes } }
}

fn decode(job: u64, slot: u32) -> Entry {
    Entry { job: JobId(job), slot, work: Work::Decode }
}

#[test]
fn a_prompt_is_cut_to_the_budget_and_then_decoded_token_by_token() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(JobId(1), 20, later(60));
    assert_eq!(step(&mut scheduler).entries, [prefill(1, 0, 0, 16, false)]);
    assert_eq!(step(&mut scheduler).entries, [prefill(1, 0, 16, 4, true)]);
    assert_eq!(step(&mut scheduler).entries, [decode(1, 0)]);
    assert_eq!(step(&mut scheduler).entries, [decode(1, 0)]);
}

#[test]
fn a_long_prompt_never_takes_a_step_from_a_running_stream() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(JobId(1), 1, later(60));
    step(&mut scheduler);
    scheduler.add(JobId(2), 12, later(60));
    for (from, len, completes) in [(0, 5, false), (5, 5, false), (10, 2, true)] {
        let expected = [decode(1, 0), prefill(2, 1, from, len, completes)];
        assert_eq!(step(&mut scheduler).entries, expected);
    }
    assert_eq!(step(&mut scheduler).entries, [decode(1, 0), decode(2, 1)]);
}

#[test]
fn a_freed_slot_goes_to_the_job_that_waits_longest() {
    let mut scheduler = Scheduler::new(LIMITS);
    (1..=5).for_each(|job| scheduler.add(JobId(job), 1, later(60)));
    let slots = [(JobId(1), 0), (JobId(2), 1), (JobId(3), 2)];
    assert_eq!(step(&mut scheduler).admitted, slots);
    assert_eq!(scheduler.remove(JobId(2)), Some(Place::Slot(1)));
    assert_eq!(step(&mut scheduler).admitted, [(JobId(4), 1)]);
    assert_eq!(scheduler.remove(JobId(5)), Some(Place::Waiting));
    assert_eq!(scheduler.remove(JobId(5)), None);
    assert_eq!((scheduler.running_len(), scheduler.waiting_len()), (3, 0));
}

#[test]
fn a_job_whose_reader_lags_keeps_its_slot_and_gets_no_step() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(JobId(1), 1, later(60));
    scheduler.add(JobId(2), 1, later(60));
    step(&mut scheduler);
    scheduler.set_reader(0, Reader::Lags);
    assert_eq!(step(&mut scheduler).entries, [decode(2, 1)]);
    scheduler.set_reader(0, Reader::Keeps);
    assert_eq!(step(&mut scheduler).entries, [decode(1, 0), decode(2, 1)]);
}

#[test]
fn a_step_that_was_not_carried_out_is_planned_again() {
    let mut scheduler = Scheduler::new(LIMITS);
    scheduler.add(JobId(1), 20, later(60));
    let first = plan(&mut scheduler);
    assert_eq!(first.admitted, [(JobId(1), 0)]);
    let second = plan(&mut scheduler);
    assert_eq!((second.admitted, second.entries), (vec![], first.entries));
}

#[test]
fn jobs_expire_wherever_they_are() {
    let mut scheduler = Scheduler::new(Limits { slots: 1, ..LIMITS });
    let now = Instant::now();
    scheduler.add(JobId(1), 1, now + Duration::from_secs(1));
    scheduler.add(JobId(2), 1, now + Duration::from_secs(3));
    scheduler.add(JobId(3), 1, now + Duration::from_secs(2));
    step(&mut scheduler);
    for (seconds, jobs) in [(0, vec![]), (1, vec![1]), (2, vec![1, 3]), (3, vec![1, 2, 3])] {
        let mut expired = Vec::new();
        scheduler.expired(now + Duration::from_secs(seconds), &mut expired);
        assert_eq!(expired, jobs.into_iter().map(JobId).collect::<Vec<_>>(), "{seconds} s");
    }
}

#[test]
fn the_job_that_came_last_is_the_one_to_give_way() {
    let mut scheduler = Scheduler::new(LIMITS);
    assert_eq!(scheduler.youngest(), None);
    (1..=3).for_each(|job| scheduler.add(JobId(job), 1, later(60)));
    step(&mut scheduler);
    scheduler.remove(JobId(1));
    scheduler.add(JobId(4), 1, later(60));
    step(&mut scheduler);
    assert_eq!(scheduler.youngest(), Some(JobId(4)));
}

/// What one random event does to the scheduler.
#[derive(Debug, Clone)]
enum Action {
    Add {
        prompt_tokens: u32,
        output_tokens: u32,
    },
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
    ended: BTreeSet<u64>,
    next: u64,
    last_admitted: u64,
}

impl Model {
    fn job_in(&mut self, slot: u32) -> Option<&mut Owed> {
        self.jobs.values_mut().find(|owed| owed.slot == Some(slot))
    }

    fn end(&mut self, scheduler: &mut Scheduler, job: u64) {
        let owed = self.jobs.remove(&job).unwrap();
        let place = owed.slot.map_or(Place::Waiting, Place::Slot);
        assert_eq!(scheduler.remove(JobId(job)), Some(place));
        assert_eq!(scheduler.remove(JobId(job)), None, "a job ended twice");
        assert!(self.ended.insert(job));
    }

    fn check_admissions(&mut self, limits: Limits, plan: &Plan) {
        for (job, slot) in &plan.admitted {
            assert!(*slot < limits.slots);
            assert!(self.job_in(*slot).is_none(), "slot {slot} was given twice");
            assert!(job.0 > self.last_admitted, "job {job:?} overtook an older one");
            self.last_admitted = job.0;
            let owed = self.jobs.get_mut(&job.0).unwrap();
            assert_eq!(owed.slot.replace(*slot), None);
        }
        let free = limits.slots as usize - self.jobs.values().filter(|o| o.slot.is_some()).count();
        let waits = self.jobs.values().any(|owed| owed.slot.is_none());
        assert!(free == 0 || !waits, "a slot stayed free while a job waited");
    }

    fn check_entries(&self, limits: Limits, plan: &Plan) {
        let tokens: u32 = plan.entries.iter().map(|entry| entry.work.tokens()).sum();
        assert!(tokens <= limits.step_tokens);
        assert!(plan.entries.is_sorted_by(|a, b| a.slot < b.slot), "a slot has two entries");
        let mut streams = 0;
        let mut prompt_tokens = 0;
        for entry in &plan.entries {
            let owed = &self.jobs[&entry.job.0];
            assert_eq!(owed.slot, Some(entry.slot));
            match entry.work {
                Work::Decode => {
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
        let beside = limits.prompt_tokens_beside_streams;
        assert!(streams == 0 || prompt_tokens <= beside);
        let prompt_left = self.jobs.values().any(|o| o.slot.is_some() && o.prefilled < o.prompt);
        assert_eq!(prompt_left, prompt_tokens > 0, "no prompt makes progress");
    }

    fn carry_out(&mut self, scheduler: &mut Scheduler, plan: &Plan) {
        scheduler.commit(&plan.entries);
        for entry in &plan.entries {
            let owed = self.jobs.get_mut(&entry.job.0).unwrap();
            if let Work::Prefill { len, .. } = entry.work {
                owed.prefilled += len;
            }
            if entry.work.yields_token() {
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
                scheduler.add(JobId(self.next), *prompt_tokens, later(60));
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
            Action::Lag(slot) => self.set_reader(scheduler, *slot, Reader::Lags),
            Action::CatchUp(slot) => self.set_reader(scheduler, *slot, Reader::Keeps),
            Action::Step | Action::LostStep => {
                let plan = plan(scheduler);
                self.check_admissions(limits, &plan);
                self.check_entries(limits, &plan);
                if matches!(action, Action::Step) {
                    self.carry_out(scheduler, &plan);
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
        beside in 1..8_u32,
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let limits = Limits {
            slots,
            step_tokens: slots + room,
            prompt_tokens_beside_streams: beside,
        };
        let mut scheduler = Scheduler::new(limits);
        let mut model = Model::default();
        for action in &actions {
            model.act(&mut scheduler, limits, action);
        }
        (0..slots).for_each(|slot| model.set_reader(&mut scheduler, slot, Reader::Keeps));
        let steps_max = model.jobs.values().map(|owed| owed.prompt + owed.output).sum::<u32>();
        for _ in 0..=steps_max {
            model.act(&mut scheduler, limits, &Action::Step);
        }
        prop_assert!(model.jobs.is_empty(), "jobs never end: {:?}", model.jobs);
        prop_assert_eq!(model.ended.len() as u64, model.next);
    }
}
