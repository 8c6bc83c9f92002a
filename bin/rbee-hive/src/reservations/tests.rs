//! Promises kept on a machine that is made up, and that changes while it is looked at.

use std::collections::HashMap;
use std::sync::Mutex as StateMutex;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use model_catalog::Model;
use rbee_http::HopClient;

use super::*;
use crate::admission::CacheRules;
use crate::registry::tests::{client, failure, id, model, new_registry, wanted};

const MIB: u64 = 1 << 20;
/// Memory of the machines in these tests.
const TOTAL: u64 = 1000 * MIB;

/// How often a look at the memory lets other threads go ahead.
const YIELDS: u32 = 20;

/// A machine of which everything can be said, and which changes as its workers do.
#[derive(Debug, Default)]
struct FakeMachine(StateMutex<State>);

#[derive(Debug, Default)]
struct State {
    taken: HashMap<u32, u64>,
    /// What somebody else holds.
    foreign_bytes: u64,
    /// What the next worker takes while it is being looked at.
    next_take_bytes: u64,
    disk: Option<Disk>,
    gpus: Vec<Gpu>,
    unanswered: Unanswered,
}

impl FakeMachine {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap());
    }
}

impl Machine for Arc<FakeMachine> {
    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(ready(()))
    }

    fn unanswered(&self) -> Unanswered {
        self.0.lock().unwrap().unanswered
    }

    fn memory(&self) -> Option<Memory> {
        let state = self.0.lock().unwrap();
        let used = state.taken.values().sum::<u64>() + state.foreign_bytes;
        drop(state);
        // Others get their turn between what is seen here and what is made of it.
        (0..YIELDS).for_each(|_| thread::yield_now());
        Some(Memory { total_bytes: TOTAL, available_bytes: TOTAL - used })
    }

    fn taken_bytes(&self, pid: u32) -> Option<u64> {
        let mut state = self.0.lock().unwrap();
        let more = std::mem::take(&mut state.next_take_bytes);
        let taken = state.taken.get_mut(&pid)?;
        *taken += more;
        Some(*taken)
    }

    fn disk(&self) -> Option<Disk> {
        self.0.lock().unwrap().disk
    }

    fn gpus(&self) -> Vec<Gpu> {
        self.0.lock().unwrap().gpus.clone()
    }
}

const KEPT: KeptFree =
    KeptFree { memory_bytes: 100 * MIB, vram_bytes: 0, disk_bytes: 50, inodes: 5 };

fn reservations(gpus_used: Option<usize>) -> (Arc<FakeMachine>, Arc<Registry>, Reservations) {
    let (machine, registry) = (Arc::new(FakeMachine::default()), Arc::new(new_registry()));
    let boxed = Box::new(Arc::clone(&machine));
    let reservations = Reservations::new(Arc::clone(&registry), boxed, KEPT, gpus_used);
    (machine, registry, reservations)
}

/// Reservations of a machine that has room for everything.
pub(crate) fn reservations_of(registry: &Arc<Registry>) -> Reservations {
    let machine = Box::new(Arc::new(FakeMachine::default()));
    Reservations::new(Arc::clone(registry), machine, KEPT, None)
}

/// A model whose worker needs somewhat more than its weights, and can do with one slot.
fn model_of(name: &str, weights_bytes: u64) -> Model {
    let mut model = model(name);
    model.header.weights_bytes = weights_bytes;
    model
}

fn try_start(reservations: &Reservations, name: &str, model: &Model) -> Result<Admitted, ApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let turn = reservations.turn().await;
        reservations.admit(&turn, Wanted { workers_max: 1000, ..wanted(name, model) })
    })
}

type Seen = Result<(), (ErrorCode, Option<serde_json::Value>)>;

fn look_again(reservations: &Reservations, name: &str) -> Seen {
    let id = id(name);
    let seen = reservations.look_again(&id).now_or_never().expect("this machine answers at once");
    seen.map_err(|detail| (detail.code, detail.details))
}

fn for_workers(reservations: &Reservations) -> Option<u64> {
    let figures = reservations.figures().now_or_never().expect("this machine answers at once");
    figures.memory_for_workers_bytes
}

fn granted(registry: &Registry) -> u64 {
    registry.grants().iter().map(|grant| grant.granted.memory_bytes).sum()
}

#[test]
fn a_thousand_starts_at_once_are_never_promised_more_than_there_is() {
    let (machine, registry, reservations) = reservations(None);
    let (threads, each) = (8, 125);
    let admitted = StateMutex::new(0);
    let start = |thread: u32, number: u32, client: &HopClient| {
        let name = format!("{thread}-{number}");
        // Sizes of no common measure, so that what is left is never the same.
        let size = (1 + u64::from(thread * 31 + number * 7) % 60) * MIB;
        let Ok(Admitted::New(..)) = try_start(&reservations, &name, &model_of(&name, size)) else {
            return;
        };
        *admitted.lock().unwrap() += 1;
        assert!(granted(&registry) <= TOTAL - KEPT.memory_bytes, "over-committed");
        let (pid, id) = (thread * 1000 + number + 1, id(&name));
        registry.spawned(&id, Some(pid), client.clone());
        machine.change(|state| {
            state.taken.insert(pid, size / 2);
        });
        machine.change(|state| {
            state.taken.insert(pid, size);
        });
        if !number.is_multiple_of(3) {
            machine.change(|state| {
                state.taken.remove(&pid);
            });
            registry.ended(&id, None);
        }
    };
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let client = client();
                (0..each).for_each(|number| start(thread, number, &client));
            });
        }
    });
    let admitted = *admitted.lock().unwrap();
    assert!((10..threads * each).contains(&admitted), "{admitted}: the memory was never short");
    assert!(granted(&registry) <= TOTAL - KEPT.memory_bytes);
}

#[test]
fn ten_starts_at_once_with_room_for_two_make_two_and_a_place_that_is_free_again_is_used() {
    let (_, registry, reservations) = reservations(None);
    let reservations = &reservations;
    let start = |name: &str| {
        let model = model_of(name, 300 * MIB);
        try_start(reservations, name, &model).map(drop).map_err(|error| error.code())
    };
    let outcomes: Vec<_> = thread::scope(|scope| {
        let starts: Vec<_> =
            (0..10).map(|number| scope.spawn(move || start(&number.to_string()))).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    let refused =
        |outcome: &&Result<(), ErrorCode>| **outcome == Err(ErrorCode::InsufficientMemory);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 2, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(refused).count(), 8, "{outcomes:?}");
    assert_eq!(start("late"), Err(ErrorCode::InsufficientMemory));
    let crashed = registry.grants()[0].id.clone();
    registry.ended(&crashed, Some(failure()));
    assert_eq!(start("next"), Ok(()));
    assert_eq!(start("surplus"), Err(ErrorCode::InsufficientMemory));
}

#[test]
fn memory_that_changes_hands_while_it_is_counted_is_not_counted_twice() {
    let (machine, registry, reservations) = reservations(None);
    try_start(&reservations, "a", &model_of("a", 300 * MIB)).unwrap();
    registry.spawned(&id("a"), Some(1), client());
    machine.change(|state| {
        state.taken.insert(1, 0);
    });
    let before = for_workers(&reservations);
    machine.change(|state| state.next_take_bytes = 200 * MIB);
    let meanwhile = for_workers(&reservations);
    assert_eq!((before, before), (meanwhile, for_workers(&reservations)));
}

#[test]
fn what_was_promised_and_is_gone_since_stops_the_start() {
    let (machine, registry, reservations) = reservations(None);
    machine.change(|state| {
        let inodes = Some(10);
        state.disk = Some(Disk {
            total_bytes: 100,
            used_bytes: 0,
            available_bytes: 100,
            inodes_available: inodes,
            inodes_total: inodes,
        });
    });
    try_start(&reservations, "a", &model_of("a", 300 * MIB)).unwrap();
    let own = granted(&registry);
    let look = || look_again(&reservations, "a");
    assert_eq!(look(), Ok(()));
    let left = TOTAL - KEPT.memory_bytes - own;
    machine.change(|state| state.foreign_bytes = left);
    assert_eq!(look(), Ok(()), "all of it is there, to the byte");
    machine.change(|state| state.foreign_bytes = left + 1);
    let figures = json!({"required_bytes": own, "available_bytes": own - 1});
    assert_eq!(look(), Err((ErrorCode::InsufficientMemory, Some(figures))));
    machine.change(|state| {
        state.foreign_bytes = 0;
        state.disk.as_mut().unwrap().available_bytes = 49;
    });
    assert_eq!(look().unwrap_err().0, ErrorCode::InsufficientDisk);
}

fn gpu(available_bytes: u64) -> Gpu {
    Gpu { name: "0".to_owned(), total_bytes: TOTAL, available_bytes }
}

#[test]
fn a_worker_that_may_use_one_gpu_is_not_promised_what_is_free_on_two() {
    for (used, fits) in [(1, false), (2, true), (usize::MAX, true)] {
        let (machine, _, reservations) = reservations(Some(used));
        machine.change(|state| state.gpus = vec![gpu(100 * MIB), gpu(200 * MIB)]);
        let started = try_start(&reservations, "a", &model_of("a", 240 * MIB));
        assert_eq!(started.map(drop).map_err(|error| error.code()).is_ok(), fits, "{used}");
    }
    let (machine, _, reservations) = reservations(Some(1));
    machine.change(|state| state.gpus = vec![gpu(100 * MIB), gpu(300 * MIB)]);
    try_start(&reservations, "a", &model_of("a", 240 * MIB)).expect("the larger one has room");
}

#[test]
fn what_was_promised_of_a_gpu_and_is_gone_since_stops_the_start() {
    let (machine, registry, reservations) = reservations(Some(usize::MAX));
    machine.change(|state| state.gpus = vec![gpu(300 * MIB)]);
    let model = model_of("a", 200 * MIB);
    let cache = CacheRules { store_mib: 300, ..wanted("a", &model).cache };
    let room = Room { vram_bytes: Some(300 * MIB), ..Room::default() };
    registry.admit(Wanted { cache, ..wanted("a", &model) }, room).unwrap();
    let own = registry.grants()[0].granted;
    assert_eq!(own.memory_bytes - own.vram_bytes, 300 * MIB, "conversations are in main memory");
    let look = || look_again(&reservations, "a");
    assert_eq!(look(), Ok(()));
    machine.change(|state| state.gpus = vec![gpu(own.vram_bytes)]);
    assert_eq!(look(), Ok(()), "all of it is there, to the byte");
    machine.change(|state| state.gpus = vec![gpu(own.vram_bytes - 1)]);
    let figures = json!({
        "required_bytes": own.vram_bytes, "available_bytes": own.vram_bytes - 1, "memory": "vram",
    });
    assert_eq!(look(), Err((ErrorCode::InsufficientMemory, Some(figures))));
}

#[test]
fn while_a_disk_or_a_driver_does_not_answer_nothing_is_started_that_hangs_on_it() {
    let silent = Some(Duration::from_secs(3));
    let disk = Unanswered { disk: silent, gpus: None };
    let gpus = Unanswered { disk: None, gpus: silent };
    for (unanswered, gpus_used, refused) in [
        (disk, None, Some(ErrorCode::InsufficientDisk)),
        (gpus, Some(1), Some(ErrorCode::InsufficientMemory)),
        (gpus, None, None),
    ] {
        let (machine, _, reservations) = reservations(gpus_used);
        machine.change(|state| state.unanswered = unanswered);
        let started = try_start(&reservations, "a", &model_of("a", MIB));
        assert_eq!(started.map(drop).err().map(|error| error.code()), refused, "{unanswered:?}");
        machine.change(|state| state.unanswered = Unanswered::default());
        try_start(&reservations, "a", &model_of("a", MIB)).unwrap();
        assert_eq!(look_again(&reservations, "a"), Ok(()));
        machine.change(|state| state.unanswered = unanswered);
        let again = try_start(&reservations, "b", &model_of("a", MIB));
        assert!(matches!(again, Ok(Admitted::Existing(_))), "the worker that is there goes on");
        assert_eq!(look_again(&reservations, "a").err().map(|(code, _)| code), refused);
    }
}

#[test]
fn workers_that_have_to_fit_into_gpus_share_what_is_free_there() {
    let (machine, registry, reservations) = reservations(Some(usize::MAX));
    let code = |outcome: Result<Admitted, ApiError>| outcome.map(drop).map_err(|e| e.code());
    let start = |name: &str| code(try_start(&reservations, name, &model_of(name, 200 * MIB)));
    machine.change(|state| state.gpus = vec![gpu(200 * MIB), gpu(100 * MIB)]);
    assert_eq!(start("a"), Ok(()));
    assert_eq!(start("b"), Err(ErrorCode::InsufficientMemory), "it is promised to one that loads");
    registry.spawned(&id("a"), Some(1), client());
    let report = rbee_api::worker::WorkerReady {
        slots_total: 1,
        context_tokens: 512,
        device: "gpu".to_owned(),
        load_ms: 0,
    };
    registry.ready(&id("a"), &report).unwrap();
    assert_eq!(start("b"), Ok(()), "one that is ready has taken what it takes");
    machine.change(|state| state.gpus.clear());
    assert_eq!(start("c"), Ok(()), "nothing is known of GPUs");
}
