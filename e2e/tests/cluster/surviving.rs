//! Streams whose workers are killed: every one ends whole, and says what it
//! would have said.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2e::{
    Cluster, Http, Pair, STARTER_MODEL, asks, echoed_call, numbers_tool, tags_format, wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const LIMIT: Duration = Duration::from_secs(60);

/// Workers are killed more often here than a breaker has patience for.
const PATIENT: &str = "[restart]\nfailures_max = 1000\ndelay_ms = 10\n";

/// As `e2e::told`, of a stream that has to be whole.
fn told(events: &[String]) -> Value {
    e2e::told(events).expect("a whole stream")
}

/// Numbers that are told, so that a run can be repeated.
struct Dice(u64);

impl Dice {
    #[expect(clippy::print_stdout, reason = "a run that failed can be repeated from its seed")]
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch");
        let seed = u64::from(since.subsec_nanos());
        println!("seed {seed}");
        Self(seed)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }
}

/// How far each of some streams is.
struct Progress(Vec<(AtomicUsize, AtomicBool)>);

impl Progress {
    fn of(bodies: &[Value]) -> Self {
        Self(bodies.iter().map(|_| (AtomicUsize::new(0), AtomicBool::new(false))).collect())
    }

    /// Events of each stream.
    fn events(&self) -> Vec<usize> {
        self.0.iter().map(|(events, _)| events.load(Ordering::Relaxed)).collect()
    }

    fn total(&self) -> usize {
        self.events().iter().sum()
    }

    /// Whether every stream that had begun at `then` has got something since, or its end.
    fn all_went_on(&self, then: &[usize]) -> bool {
        self.0.iter().zip(then).all(|((events, has_ended), then)| {
            *then == 0
                || events.load(Ordering::Relaxed) > *then
                || has_ended.load(Ordering::Relaxed)
        })
    }
}

/// Reads all streams, counting every event.
fn read_all(queen: &Http, bodies: &[Value], progress: &Progress) -> Vec<Vec<String>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = bodies
            .iter()
            .zip(&progress.0)
            .map(|(body, (events, has_ended))| {
                scope.spawn(move || {
                    let stream = queen.stream(CHAT, body);
                    let counted = stream.inspect(|_| _ = events.fetch_add(1, Ordering::Relaxed));
                    let whole = counted.collect();
                    has_ended.store(true, Ordering::Relaxed);
                    whole
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a stream")).collect()
    })
}

#[test]
fn streams_of_workers_that_are_killed_at_random_tokens_end_whole_and_the_same() {
    let pair = Pair::echo(PATIENT);
    let queen = pair.cluster.queen();
    let said = |n: usize| {
        let mut words = format!("[[tokens={} delay_ms=12]]", 150 + n);
        (0..40).for_each(|word| write!(words, " n{n}w{word}").expect("a string"));
        words
    };
    let call = |n: usize| {
        let (said, tools) = echoed_call(n, &"word ".repeat(60));
        asks("tiny", &said, &tools)
    };
    let bodies: Vec<Value> = (0..24)
        .map(|n| match n % 4 {
            0 => call(n),
            1 => asks("tiny", &said(n), &json!({"n": 2, "stop": ["w39 "]})),
            _ => asks("tiny", &said(n), &json!({})),
        })
        .collect();
    let progress = Progress::of(&bodies);
    let undisturbed: Vec<Value> =
        read_all(&queen, &bodies, &progress).iter().map(|events| told(events)).collect();
    let all = progress.total();
    let progress = Progress::of(&bodies);
    let mut killed_at = vec![0; bodies.len()];
    let mut dice = Dice::new();
    let disturbed = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&queen, &bodies, &progress));
        for kill in 1..=3 {
            // Somewhere in each quarter of all tokens, with another worker warm. A stream that two
            // workers end of with nothing in between is rightly given up, so none is hit twice in a row.
            let at = all * kill / 4 + dice.below(all / 8);
            wait_until("so many events came and two workers are ready", LIMIT, || {
                let come = progress.total() >= at && progress.all_went_on(&killed_at);
                reader.is_finished() || (come && pair.ready() == 2)
            });
            let workers = pair.worker_processes();
            if let Some(victim) = workers.get(dice.below(workers.len().max(1))) {
                victim.signal(Signal::KILL);
                killed_at = progress.events();
                wait_until("the killed worker is gone", LIMIT, || {
                    pair.worker_processes().iter().all(|worker| worker.pid != victim.pid)
                });
            }
            pair.ask_for_workers();
        }
        reader.join().expect("the streams")
    });
    for (n, (events, expected)) in disturbed.iter().zip(&undisturbed).enumerate() {
        assert_eq!(told(events), *expected, "stream {n}");
    }
    let metrics = queen.get("/metrics").body;
    let continued = metric(&metrics, "rbee_queen_continuations_total{outcome=\"continued\"}");
    assert!(continued >= 3, "{continued} streams went on elsewhere");
}

fn metric(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[test]
fn streams_of_a_real_model_go_on_at_the_other_worker() {
    let pair = Pair::llama(PATIENT);
    let queen = pair.cluster.queen();
    let counting = json!({"max_tokens": 100});
    let bodies = [
        asks(STARTER_MODEL, "Count from 1 to 40, with a comma after each number.", &counting),
        asks(STARTER_MODEL, "Give me tags, as JSON.", &tags_format()),
        asks(STARTER_MODEL, "Add the numbers 1, 2, 3, 4, 5, 6, 7, 8, 9.", &numbers_tool()),
    ];
    let alone: Vec<Value> = bodies
        .iter()
        .map(std::slice::from_ref)
        .map(|body| told(&read_all(&queen, body, &Progress::of(body))[0]))
        .collect();
    let mut dice = Dice::new();
    for (body, expected) in bodies.iter().zip(&alone) {
        wait_until("two workers are ready", LIMIT, || pair.ready() == 2);
        let progress = Progress::of(std::slice::from_ref(body));
        let at = 5 + dice.below(20);
        let events_seen = std::thread::scope(|scope| {
            let body = std::slice::from_ref(body);
            let reader = scope.spawn(|| read_all(&queen, body, &progress).remove(0));
            wait_until("so many events came", LIMIT, || {
                progress.total() >= at || reader.is_finished()
            });
            pair.busy_worker().into_iter().for_each(|worker| worker.signal(Signal::KILL));
            reader.join().expect("a stream")
        });
        let seen = told(&events_seen);
        assert_eq!((&seen["ends"], &seen["roles"]), (&expected["ends"], &expected["roles"]));
        if body == &bodies[0] {
            assert_eq!(&seen, expected);
        } else {
            let whole = if body == &bodies[1] { &seen["texts"][0] } else { &seen["calls"] };
            let json = whole.as_str().expect("a text").trim_start_matches("add");
            let value: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{e}: {seen}"));
            let list = if body == &bodies[1] { &value["tags"] } else { &value["numbers"] };
            assert!(list.as_array().is_some_and(|list| list.len() >= 12), "{seen}");
        }
        pair.ask_for_workers();
    }
    let metrics = queen.get("/metrics").body;
    assert!(metric(&metrics, "rbee_queen_continuations_total{outcome=\"continued\"}") > 0);
}

#[test]
fn streams_outlive_their_hive() {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    let queen = cluster.queen();
    let body =
        |n: usize| asks("tiny", &format!("[[tokens=120 delay_ms=20]] n{n} m{n}"), &json!({}));
    let bodies: Vec<Value> = (0..16).map(body).collect();
    let progress = Progress::of(&bodies);
    let hive = cluster.process("rbee-hive");
    let disturbed = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_all(&queen, &bodies, &progress));
        wait_until("all streams run", LIMIT, || progress.total() > 16 * 10);
        hive.signal(Signal::KILL);
        reader.join().expect("the streams")
    });
    for (n, events) in disturbed.iter().enumerate() {
        let told = told(events);
        let words: Vec<&str> =
            told["texts"][0].as_str().expect("a text").split_whitespace().collect();
        let expected: Vec<String> =
            (0..120).map(|word| format!("{}{n}", if word % 2 == 0 { 'n' } else { 'm' })).collect();
        assert_eq!(words, expected, "stream {n}");
        assert_eq!(told["usage"], json!([120]));
    }
    assert_ne!(cluster.process("rbee-hive").pid, hive.pid, "another hive runs");
}
