//! Plays random traffic against a context that really holds tokens, and checks
//! that everything the memory says of it is true.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn scope(number: u8) -> Scope {
    Scope([number; 32])
}

fn limits(layout: Layout, store_bytes_max: u64) -> MemoryLimits {
    let tile_tokens = if layout == Layout::Split { 64 } else { 1 };
    MemoryLimits { slots: 4, layout, can_cut: true, store_bytes_max, tile_tokens }
}

/// Tokens from `from`, `len` of them.
fn tokens(from: u32, len: u32) -> Arc<[u32]> {
    (from..from + len).collect()
}

/// Computes a whole prompt in the slot that the memory chooses.
fn run(memory: &mut Memory, scope: Scope, prompt: &Arc<[u32]>) -> u32 {
    let slot = memory.occupy(scope, prompt).unwrap();
    memory.begin(slot, scope, prompt, 0);
    memory.prefilled(slot, prompt);
    slot
}

#[test]
fn a_conversation_goes_on_in_its_slot_and_a_new_one_in_an_empty_one() {
    let mut memory = Memory::new(limits(Layout::Split, 0));
    let first = run(&mut memory, scope(0), &tokens(0, 50));
    memory.extend(first, &[900, 901]);
    memory.end(first);
    let second = run(&mut memory, scope(0), &tokens(500, 50));
    memory.end(second);
    assert_ne!(first, second);
    let turn: Vec<u32> = (0..50).chain([900, 901, 902]).collect();
    assert_eq!(memory.occupy(scope(0), &turn), Some(first));
    assert_eq!(memory.source(first, scope(0), &turn), Source::Here { len: 52 });
    assert_eq!(memory.source(second, scope(0), &turn), Source::Slot { from: first, len: 52 });
    assert_eq!(memory.source(first, scope(1), &turn), Source::Nothing);
}

#[test]
fn whoever_comes_while_a_prompt_is_computed_waits_for_what_they_share() {
    let mut memory = Memory::new(limits(Layout::Split, 0));
    let prompt = tokens(0, 100);
    let leader = memory.occupy(scope(0), &prompt).unwrap();
    assert_eq!(memory.source(leader, scope(0), &prompt), Source::Nothing);
    memory.begin(leader, scope(0), &prompt, 0);
    let other: Vec<u32> = (0..60).chain(200..260).collect();
    let follower = memory.occupy(scope(0), &other).unwrap();
    let source = |memory: &Memory| memory.source(follower, scope(0), &other);
    assert_eq!(source(&memory), Source::Later);
    memory.prefilled(leader, &prompt[..30]);
    assert_eq!(source(&memory), Source::Later);
    memory.prefilled(leader, &prompt[30..70]);
    assert_eq!(source(&memory), Source::Slot { from: leader, len: 60 });
    // A leader that ends on the way leaves what it has.
    let mut memory = Memory::new(limits(Layout::Split, 0));
    let leader = memory.occupy(scope(0), &prompt).unwrap();
    memory.begin(leader, scope(0), &prompt, 0);
    memory.prefilled(leader, &prompt[..30]);
    memory.end(leader);
    assert_eq!(memory.source(follower, scope(0), &other), Source::Slot { from: leader, len: 30 });
}

#[test]
fn busy_slots_are_neighbours_where_gaps_cost_time() {
    let mut memory = Memory::new(limits(Layout::Split, 0));
    let slots: Vec<u32> =
        (0..4).map(|job| run(&mut memory, scope(0), &tokens(job * 100, 20))).collect();
    assert_eq!(slots, [0, 1, 2, 3]);
    assert_eq!(memory.occupy(scope(0), &[1]), None);
    [0, 1, 3].into_iter().for_each(|slot| memory.end(slot));
    // Slot 0 holds the beginning of this one, but lies apart from slot 2.
    let turn: Vec<u32> = (0..25).collect();
    assert_eq!(memory.occupy(scope(0), &turn), Some(1));
    memory.end(2);
    memory.begin(1, scope(0), &tokens(0, 25), 0);
    run(&mut memory, scope(0), &tokens(700, 20));
    let busy = |memory: &Memory| -> Vec<u32> {
        (0..4).filter(|slot| memory.held(*slot).unwrap().busy).collect()
    };
    assert_eq!(busy(&memory), [0, 1]);
    run(&mut memory, scope(0), &tokens(800, 20));
    memory.end(1);
    assert_eq!((busy(&memory), memory.gap()), (vec![0, 2], Some((2, 1))));
    memory.relocate(2, 1);
    assert_eq!((busy(&memory), memory.gap()), (vec![0, 1], None));
    assert_eq!(memory.len(1), 20);
}

#[test]
fn a_state_that_cannot_be_cut_is_used_whole_or_not_at_all() {
    let mut memory = Memory::new(MemoryLimits { can_cut: false, ..limits(Layout::Split, 0) });
    let slot = run(&mut memory, scope(0), &tokens(0, 50));
    memory.end(slot);
    let longer: Vec<u32> = (0..60).collect();
    assert_eq!(memory.source(slot, scope(0), &longer), Source::Here { len: 50 });
    let other: Vec<u32> = (0..40).chain(70..90).collect();
    assert_eq!(memory.source(slot, scope(0), &other), Source::Nothing);
    assert_eq!(memory.source(3, scope(0), &other), Source::Nothing);
    let leader = memory.occupy(scope(0), &other).unwrap();
    memory.begin(leader, scope(0), &tokens(300, 90), 0);
    let follower = tokens(300, 80);
    assert_eq!(memory.source(3, scope(0), &follower), Source::Nothing, "it waits for a cut");
}

#[test]
fn what_is_held_elsewhere_is_not_stored() {
    let mut memory = Memory::new(limits(Layout::Unified, 1 << 20));
    let slot = run(&mut memory, scope(0), &tokens(0, 50));
    memory.end(slot);
    assert!(memory.is_worth_storing(slot, 0));
    assert!(!memory.is_worth_storing(slot, 30), "most of it stays");
    memory.store(slot, vec![7; 100]);
    assert!(!memory.is_worth_storing(slot, 0), "it is stored already");
    memory.forget(slot);
    let turn: Vec<u32> = (0..60).collect();
    let Source::Stored { id, len: 50 } = memory.source(slot, scope(0), &turn) else {
        panic!("what was stored is not found");
    };
    assert_eq!(memory.stored(id), Some(&[7; 100][..]));
    memory.discard(id);
    assert_eq!(memory.source(slot, scope(0), &turn), Source::Nothing);
    assert_eq!(memory.stored_bytes(), 0);
}

#[test]
fn a_state_on_disk_is_read_where_memory_holds_much_less() {
    let mut memory = Memory::new(limits(Layout::Unified, 0));
    let prompt = tokens(0, 100);
    let keeping = memory.begin_keeping(scope(0), &prompt[..90]);
    let source = |memory: &Memory| memory.source(0, scope(0), &prompt);
    memory.set_disk(true);
    assert_eq!(source(&memory), Source::Nothing, "it is not written yet");
    memory.keeping_done(keeping.id);
    assert_eq!(source(&memory), Source::Kept { id: keeping.id, len: 90 });
    assert_eq!(memory.source(0, scope(1), &prompt), Source::Nothing);
    memory.set_disk(false);
    assert_eq!(source(&memory), Source::Nothing, "the disk hangs");
    memory.set_disk(true);
    let slot = run(&mut memory, scope(0), &tokens(0, 59));
    memory.end(slot);
    assert_eq!(memory.source(3, scope(0), &prompt), Source::Slot { from: slot, len: 59 });
    memory.forget(slot);
    run(&mut memory, scope(0), &tokens(0, 58));
    assert_eq!(memory.source(3, scope(0), &prompt), Source::Kept { id: keeping.id, len: 90 });
}

#[test]
fn what_should_be_written_is_what_was_used_last_and_is_not_there() {
    let mut memory = Memory::new(limits(Layout::Unified, 1 << 20));
    memory.set_disk(true);
    let first = run(&mut memory, scope(0), &tokens(0, 50));
    let second = run(&mut memory, scope(0), &tokens(100, 50));
    let short = run(&mut memory, scope(0), &tokens(200, 20));
    assert_eq!(memory.unsaved(), None, "they are busy");
    [second, short, first].into_iter().for_each(|slot| memory.end(slot));
    assert_eq!(memory.unsaved(), Some(Unsaved::Slot(first)));
    memory.begin_keeping(scope(0), &tokens(0, 50));
    assert_eq!(memory.unsaved(), Some(Unsaved::Slot(second)));
    assert!(memory.store(second, vec![7; 100]).is_empty());
    memory.forget(second);
    assert!(matches!(memory.unsaved(), Some(Unsaved::Stored(_))));
    memory.begin_keeping(scope(0), &tokens(100, 50));
    assert_eq!(memory.unsaved(), None);
}

#[test]
fn scopes_neither_wait_for_each_other_nor_push_each_other_out() {
    let mut memory = Memory::new(limits(Layout::Unified, 0));
    let prompt = tokens(0, 100);
    let leader = memory.occupy(scope(0), &prompt).unwrap();
    memory.begin(leader, scope(0), &prompt, 0);
    let other = memory.occupy(scope(1), &prompt).unwrap();
    assert_eq!(memory.source(other, scope(1), &prompt), Source::Nothing, "it waits");
    memory.end(other);
    memory.prefilled(leader, &prompt);
    memory.end(leader);
    let theirs: Vec<u32> = (0..120).collect();
    assert_ne!(memory.occupy(scope(1), &theirs), Some(leader), "an empty one was free");
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let mut memory = Memory::new(limits(Layout::Unified, 0));
    (0..4).for_each(|job| assert_eq!(run(&mut memory, scope(0), &tokens(job * 100, 50)), job));
    [2, 0, 3, 1].into_iter().for_each(|slot| memory.end(slot));
    assert_eq!(memory.idle_slots(), [2, 0, 3, 1]);
    let again: Vec<u32> = (200..260).collect();
    assert_eq!(memory.occupy(scope(0), &again), Some(2));
    memory.end(2);
    assert_eq!(memory.idle_slots(), [0, 3, 1, 2]);
    assert_eq!(memory.occupy(scope(0), &[7]), Some(0));
}

#[test]
fn so_much_is_copied_that_it_pays() {
    for (shared, source) in [(16, Source::Slot { from: 0, len: 16 }), (15, Source::Nothing)] {
        let mut memory = Memory::new(limits(Layout::Unified, 0));
        assert_eq!(run(&mut memory, scope(0), &tokens(0, 50)), 0);
        let prompt: Vec<u32> = (0..shared).chain(500..600).collect();
        assert_eq!(memory.source(1, scope(0), &prompt), source, "{shared}");
    }
    // Where there are tiles, so much is left to compute as fills one.
    for (tile_tokens, len) in [(1, 3000), (64, 2966)] {
        let mut memory = Memory::new(MemoryLimits { tile_tokens, ..limits(Layout::Split, 0) });
        run(&mut memory, scope(0), &tokens(0, 3000));
        let prompt: Vec<u32> = (0..3000).chain(5000..5030).collect();
        let source = memory.source(1, scope(0), &prompt);
        assert_eq!(source, Source::Slot { from: 0, len });
    }
}

#[test]
fn a_job_that_moves_takes_what_it_promised_and_holds_along() {
    let mut memory = Memory::new(limits(Layout::Split, 0));
    let prompt = tokens(0, 200);
    let from = memory.occupy(scope(0), &prompt).unwrap();
    memory.begin(from, scope(0), &prompt, 0);
    memory.prefilled(from, &prompt[..50]);
    memory.relocate(from, 3);
    assert_eq!(memory.source(1, scope(0), &prompt), Source::Later);
    memory.end(3);
    memory.begin(3, scope(0), &prompt, 0);
    memory.prefilled(3, &prompt);
    memory.relocate(3, 2);
    let other: Vec<u32> = (0..100).chain(500..600).collect();
    assert_eq!(memory.source(1, scope(0), &other), Source::Slot { from: 2, len: 100 });
}

#[test]
fn gaps_count_and_are_filled_where_memories_are_split_and_can_be_cut() {
    let cut = limits(Layout::Split, 0);
    let stiff = MemoryLimits { can_cut: false, ..cut };
    for (limits, gap) in [(cut, true), (stiff, false), (limits(Layout::Unified, 0), false)] {
        let mut memory = Memory::new(MemoryLimits { slots: 5, ..limits });
        (0..3).for_each(|job| assert_eq!(run(&mut memory, scope(0), &tokens(job * 100, 9)), job));
        memory.end(1);
        assert_eq!(memory.gap().is_some(), gap, "{limits:?}");
        if gap {
            // The empty slots beside the busy ones would make the gap last.
            assert_eq!(memory.occupy(scope(0), &[7]), Some(1));
        }
    }
}

#[test]
fn a_slot_is_nearer_than_a_stored_state() {
    let mut memory = Memory::new(limits(Layout::Unified, 1 << 20));
    let slot = run(&mut memory, scope(0), &tokens(0, 50));
    memory.end(slot);
    memory.store(slot, vec![7; 100]);
    let prompt: Vec<u32> = (0..60).collect();
    assert_eq!(memory.source(3, scope(0), &prompt), Source::Slot { from: slot, len: 50 });
    let mut memory = Memory::new(limits(Layout::Unified, 0));
    let slot = run(&mut memory, scope(0), &tokens(0, 50));
    memory.end(slot);
    assert!(!memory.is_worth_storing(slot, 0), "there is no room for any");
}

/// A random event; slots and jobs are picked by number.
#[derive(Debug, Clone)]
enum Action {
    Start {
        in_scope: u8,
        prompt: Vec<u32>,
    },
    Begin(u32),
    Compute(u32, usize),
    Reply(u32, u32),
    End(u32),
    CloseGap,
    MakeRoom,
    /// What comes of the write.
    Keep(Outcome),
    /// Somebody else removes one of the states on disk.
    Lose(usize),
}

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Done,
    Failed,
    TooBig,
}

fn action() -> impl Strategy<Value = Action> {
    // Prompts that share long beginnings: stretches of 20 tokens.
    let stretches = proptest::collection::vec(0..3_u32, 1..4);
    let prompt = (stretches, 1..5_u32).prop_map(|(stretches, rest)| {
        let tokens = stretches.iter().flat_map(|s| (s * 100)..(s * 100 + 20));
        tokens.chain(1000..1000 + rest).collect()
    });
    prop_oneof![
        4 => (0..2_u8, prompt).prop_map(|(in_scope, prompt)| Action::Start { in_scope, prompt }),
        6 => (0..4_u32).prop_map(Action::Begin),
        6 => (0..4_u32, 1..40_usize).prop_map(|(slot, len)| Action::Compute(slot, len)),
        3 => (0..4_u32, 2000..2010_u32).prop_map(|(slot, token)| Action::Reply(slot, token)),
        3 => (0..4_u32).prop_map(Action::End),
        1 => Just(Action::CloseGap),
        1 => Just(Action::MakeRoom),
        3 => prop::sample::select(vec![Outcome::Done, Outcome::Done, Outcome::Failed, Outcome::TooBig])
            .prop_map(Action::Keep),
        1 => (0..4_usize).prop_map(Action::Lose),
    ]
}

/// A job in a slot.
#[derive(Debug, Clone)]
struct Job {
    in_scope: u8,
    prompt: Arc<[u32]>,
    begun: bool,
}

/// What the slots really hold, and the states that were saved.
#[derive(Debug, Default)]
struct Context {
    slots: BTreeMap<u32, (u8, Vec<u32>)>,
    jobs: BTreeMap<u32, Job>,
    /// What lies on disk.
    disk: BTreeMap<[u8; 32], (u8, Vec<u32>)>,
}

/// The scope and the tokens of a state that was saved.
fn read_state(state: &[u8]) -> (u8, Vec<u32>) {
    let (in_scope, bytes) = state.split_first().unwrap();
    let (chunks, _) = bytes.as_chunks::<4>();
    (*in_scope, chunks.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

impl Context {
    fn held(&self, slot: u32) -> &[u32] {
        self.slots.get(&slot).map_or(&[], |(_, tokens)| tokens)
    }

    fn act(&mut self, memory: &mut Memory, action: Action) {
        match action {
            Action::Start { in_scope, prompt } => {
                let free = self.jobs.len() < 4;
                let slot = memory.occupy(scope(in_scope), &prompt);
                assert_eq!(slot.is_some(), free);
                if let Some(slot) = slot {
                    let job = Job { in_scope, prompt: prompt.into(), begun: false };
                    assert!(self.jobs.insert(slot, job).is_none(), "a busy slot was given away");
                }
            }
            Action::Begin(slot) => self.begin(memory, slot),
            Action::Compute(slot, len) => self.compute(memory, slot, len),
            Action::Reply(slot, token) => {
                let held = self.held(slot).len();
                if self.jobs.get(&slot).is_some_and(|job| job.begun && held >= job.prompt.len()) {
                    self.slots.get_mut(&slot).unwrap().1.push(token);
                    memory.extend(slot, &[token]);
                }
            }
            Action::End(slot) => {
                if self.jobs.remove(&slot).is_some() {
                    memory.end(slot);
                }
            }
            Action::CloseGap => {
                if let Some((from, to)) = memory.gap()
                    && self.jobs.get(&from).is_some_and(|job| job.begun)
                {
                    let moved = self.slots.remove(&from).unwrap();
                    self.slots.insert(to, moved);
                    let job = self.jobs.remove(&from).unwrap();
                    assert!(self.jobs.insert(to, job).is_none(), "moved into a busy slot");
                    memory.relocate(from, to);
                }
            }
            Action::Keep(outcome) => self.keep(memory, outcome),
            Action::Lose(index) => {
                if let Some(id) = self.disk.keys().nth(index).copied() {
                    self.disk.remove(&id);
                    memory.forget_kept(KeptId(id));
                }
            }
            Action::MakeRoom => {
                if let Some(slot) = memory.idle_slots().first().copied() {
                    assert!(!self.jobs.contains_key(&slot));
                    self.store(memory, slot, 0);
                    memory.forget(slot);
                    self.slots.remove(&slot);
                }
            }
        }
        assert_eq!(memory.kept_len(), self.disk.len());
        for slot in 0..4 {
            assert_eq!(memory.held(slot).unwrap().tokens, self.held(slot), "slot {slot}");
        }
    }

    fn store(&self, memory: &mut Memory, slot: u32, kept: usize) {
        if memory.is_worth_storing(slot, kept) {
            // The state is the scope and the tokens themselves, to be checked later.
            let (in_scope, tokens) = &self.slots[&slot];
            let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
            let displaced = memory.store(slot, std::iter::once(*in_scope).chain(bytes).collect());
            for gone in displaced {
                let held = read_state(&gone.state);
                assert_eq!((scope(held.0), &held.1), (gone.scope, &gone.tokens));
            }
        }
    }

    /// Writes what should be written next.
    fn keep(&mut self, memory: &mut Memory, outcome: Outcome) {
        let held = match memory.unsaved() {
            None => return,
            Some(Unsaved::Slot(slot)) => self.slots[&slot].clone(),
            Some(Unsaved::Stored(id)) => read_state(&memory.stored_whole(id).unwrap().state),
        };
        let before = memory.unsaved();
        let keeping = memory.begin_keeping(scope(held.0), &held.1);
        assert_ne!(memory.unsaved(), before, "it is written twice");
        match outcome {
            Outcome::Failed => memory.keeping_failed(keeping.id),
            Outcome::TooBig => memory.keeping_refused(keeping.id),
            Outcome::Done => {
                for replaced in keeping.replaces {
                    let (in_scope, tokens) = self.disk.remove(&replaced.0).unwrap();
                    assert!(in_scope == held.0 && held.1.starts_with(&tokens), "not replaced");
                    memory.forget_kept(replaced);
                }
                memory.keeping_done(keeping.id);
                self.disk.insert(keeping.id.0, held);
            }
        }
    }

    fn begin(&mut self, memory: &mut Memory, slot: u32) {
        let Some(job) = self.jobs.get(&slot).filter(|job| !job.begun).cloned() else { return };
        let source = memory.source(slot, scope(job.in_scope), &job.prompt);
        let (kept, taken, len) = match source {
            Source::Later => {
                let leads = |(other, job_there): (&u32, &Job)| {
                    job_there.begun && self.held(*other).len() < job_there.prompt.len()
                };
                assert!(self.jobs.iter().any(leads), "nobody computes what is waited for");
                return;
            }
            Source::Nothing => (0, (job.in_scope, Vec::new()), 0),
            Source::Here { len } => (len, self.slots[&slot].clone(), len),
            Source::Slot { from, len } => (0, self.slots[&from].clone(), len),
            Source::Stored { id, len } => (0, read_state(memory.stored(id).unwrap()), len),
            Source::Kept { id, len } => (0, self.disk[&id.0].clone(), len),
        };
        assert!(len < job.prompt.len(), "no token is left to compute");
        assert_eq!(taken.0, job.in_scope, "tokens crossed scopes");
        assert_eq!(taken.1.get(..len), job.prompt.get(..len), "{source:?} holds something else");
        self.store(memory, slot, kept);
        memory.begin(slot, scope(job.in_scope), &job.prompt, len);
        self.slots.insert(slot, (job.in_scope, job.prompt[..len].to_vec()));
        self.jobs.get_mut(&slot).unwrap().begun = true;
    }

    fn compute(&mut self, memory: &mut Memory, slot: u32, len: usize) {
        let Some(job) = self.jobs.get(&slot).filter(|job| job.begun) else { return };
        let held = self.slots.get_mut(&slot).unwrap();
        let end = (held.1.len() + len).min(job.prompt.len());
        if let Some(part) = job.prompt.get(held.1.len()..end) {
            memory.prefilled(slot, part);
            held.1.extend_from_slice(part);
        }
    }
}

proptest! {
    #[test]
    fn everything_the_memory_says_is_true_and_nobody_waits_for_ever(
        unified in prop::bool::ANY,
        has_disk in prop::bool::ANY,
        store_bytes_max in prop::sample::select(vec![0_u64, 600, 1 << 20]),
        actions in proptest::collection::vec(action(), 1..150),
    ) {
        let layout = if unified { Layout::Unified } else { Layout::Split };
        let mut memory = Memory::new(limits(layout, store_bytes_max));
        memory.set_disk(has_disk);
        let mut context = Context::default();
        for action in actions {
            context.act(&mut memory, action);
            prop_assert!(memory.stored_bytes() <= store_bytes_max);
        }
        // As the engine does: whoever can begin begins, and what has begun is computed.
        for _ in 0..5 {
            for slot in 0..4 {
                context.act(&mut memory, Action::Begin(slot));
                context.act(&mut memory, Action::Compute(slot, 1000));
            }
        }
        prop_assert!(context.jobs.values().all(|job| job.begun), "a job waits for ever");
        let slots: Vec<u32> = context.jobs.keys().copied().collect();
        slots.into_iter().for_each(|slot| context.act(&mut memory, Action::End(slot)));
        prop_assert_eq!(memory.gap(), None);
    }
}
