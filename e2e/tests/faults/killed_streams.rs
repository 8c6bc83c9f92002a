//! Streams whose worker is killed at a random token while another one is warm: each ends
//! whole and after a short pause, and a plain one says what it says undisturbed.

use std::time::{Duration, SystemTime};

use e2e::{
    Http, Pair, Process, asks, echoed_call, numbers_tool, tags_format, told, wait_for, wait_until,
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::figures::Spread;
use crate::requests::{CHAT, CONTINUED, metric};
use crate::site::LIMIT;
use crate::volume;

/// Crashes without end, started anew soon.
const HIVE: &str = "idle_stop_seconds = 0\n\
                    [restart]\ndelay_ms = 50\ndelay_max_ms = 50\nfailures_max = 1000\n";
const KILLED: &str = "rbee_hive_worker_exits_total{cause=\"killed\"}";
/// The pause that 95 of 100 streams are to stay below. In the short form the longest of a
/// few has to, on a machine that does something else too.
const PAUSE_P95_MAX: Duration = Duration::from_secs(2);
const PAUSE_MAX_SHORT: Duration = Duration::from_secs(6);

/// How a stream is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Every word as undisturbed.
    Same,
    /// A list of tags as the schema has it.
    Schema,
    /// A call with its numbers.
    Call,
}

/// One request and what it says undisturbed.
struct Case {
    kind: Kind,
    body: Value,
    alone: Value,
    events: usize,
}

/// What has been seen of killed streams.
#[derive(Default)]
struct Seen {
    streams: usize,
    plain: usize,
    identical: usize,
    went_on: f64,
    pauses: Vec<Duration>,
    wrong: Vec<String>,
}

fn echo_bodies() -> Vec<(Kind, Value)> {
    let words: Vec<String> = (0..30).map(|word| format!("w{word}")).collect();
    let long = words.join(" ");
    let (call, tools) = echoed_call(1, &long);
    let plain = |tokens: u32| format!("[[tokens={tokens} delay_ms=12]] {long}");
    vec![
        (Kind::Same, asks("tiny", &plain(50), &json!({}))),
        (Kind::Same, asks("tiny", &call, &tools)),
        (Kind::Same, asks("tiny", &plain(80), &json!({"n": 2, "stop": ["w29 "]}))),
    ]
}

fn llama_bodies(model: &str) -> Vec<(Kind, Value)> {
    let (format, tools, plain) = (tags_format(), numbers_tool(), json!({"max_tokens": 80}));
    vec![
        (Kind::Same, asks(model, "Count from 1 to 40, with a comma after each number.", &plain)),
        (Kind::Schema, asks(model, "Give me tags, as JSON.", &format)),
        (Kind::Call, asks(model, "Add the numbers 1, 2, 3, 4, 5, 6, 7, 8, 9.", &tools)),
        (Kind::Same, asks(model, "Tell me a story about a bee and its hive.", &plain)),
        (Kind::Schema, asks(model, "Which colours has a rainbow?", &format)),
        (Kind::Call, asks(model, "What is 3 + 4 + 5?", &tools)),
    ]
}

/// Has every request answered once undisturbed.
fn undisturbed(queen: &Http, bodies: Vec<(Kind, Value)>) -> Vec<Case> {
    let alone = |(kind, body): (Kind, Value)| {
        let events: Vec<String> = queen.stream(CHAT, &body).collect();
        let alone = told(&events).expect("a whole stream");
        Case { kind, body, alone, events: events.len() }
    };
    bodies.into_iter().map(alone).collect()
}

/// Reads a stream whose worker is killed after `at` events. Returns all events and the
/// longest pause between two of them from then on.
fn disturbed(pair: &Pair, queen: &Http, body: &Value, at: usize) -> (Vec<String>, Duration) {
    let (mut events, mut pause) = (Vec::new(), Duration::ZERO);
    let (mut victim, mut last) = (None, None::<SystemTime>);
    for event in queen.stream(CHAT, body) {
        if let Some(last) = &mut last {
            pause = pause.max(last.elapsed().expect("a clock"));
            *last = SystemTime::now();
        }
        events.push(event);
        if victim.is_none() {
            victim = Some(wait_for("a busy worker", LIMIT, || pair.busy_worker()));
        }
        if let Some(victim) = &victim
            && events.len() == at
        {
            victim.signal(Signal::KILL);
            last = Some(SystemTime::now());
        }
    }
    (events, pause)
}

/// Says what is wrong with a stream that was disturbed.
fn wrong(case: &Case, seen: Result<Value, String>) -> Option<String> {
    let seen = match seen {
        Ok(seen) => seen,
        Err(wrong) => return Some(wrong),
    };
    let list = match case.kind {
        Kind::Same => {
            let is_same = seen == case.alone;
            return (!is_same).then(|| format!("{seen} is not {}", case.alone));
        }
        Kind::Schema => list_in(seen["texts"][0].as_str(), "tags"),
        Kind::Call => {
            list_in(seen["calls"].as_str().and_then(|c| c.strip_prefix("add")), "numbers")
        }
    };
    let is_item = |item: &Value| match case.kind {
        Kind::Schema => ["red", "green", "blue"].iter().any(|tag| item == tag),
        Kind::Same | Kind::Call => item.as_u64().is_some_and(|number| number <= 9),
    };
    let is_whole = list.is_some_and(|list| list.len() >= 12 && list.iter().all(is_item))
        && [&seen["ends"], &seen["roles"]] == [&case.alone["ends"], &case.alone["roles"]]
        && seen["usage"].as_array().is_some_and(|usage| usage.len() == 1);
    (!is_whole).then(|| format!("{seen}; undisturbed: {}", case.alone))
}

fn list_in(text: Option<&str>, name: &str) -> Option<Vec<Value>> {
    let value: Value = serde_json::from_str(text?).ok()?;
    Some(value[name].as_array()?.clone())
}

/// Kills the worker of each of so many streams.
fn kill(pair: &Pair, cases: &[Case], streams: usize, dice: &mut fastrand::Rng, seen: &mut Seen) {
    let queen = pair.cluster.queen();
    for case in cases.iter().cycle().take(streams) {
        pair.wait_until_warm();
        // At one of its tokens: before the end, the usage and the last event.
        let at = dice.usize(1..case.events.saturating_sub(4).max(2));
        let (events, pause) = disturbed(pair, &queen, &case.body, at);
        let is_plain = case.kind == Kind::Same;
        let wrong = wrong(case, told(&events));
        seen.streams += 1;
        seen.plain += usize::from(is_plain);
        seen.identical += usize::from(is_plain && wrong.is_none());
        seen.pauses.push(pause);
        seen.wrong.extend(wrong.map(|wrong| format!("{:?} at {at}: {wrong}", case.kind)));
    }
    seen.went_on += metric(&queen.get("/metrics").body, CONTINUED);
}

#[test]
fn a_stream_whose_worker_is_killed_at_any_token_ends_whole_at_the_other_one() {
    let seed = fastrand::u64(..);
    volume::figure("killed streams, seed", seed);
    let (mut dice, mut seen) = (fastrand::Rng::with_seed(seed), Seen::default());
    {
        let pair = Pair::echo(HIVE);
        let cases = undisturbed(&pair.cluster.queen(), echo_bodies());
        kill(&pair, &cases, volume::of(6, 52), &mut dice, &mut seen);
    }
    {
        let pair = Pair::llama(HIVE);
        let cases = undisturbed(&pair.cluster.queen(), llama_bodies(pair.model()));
        kill(&pair, &cases, volume::of(3, 48), &mut dice, &mut seen);
    }
    let Seen { streams, plain, identical, went_on, pauses, wrong } = seen;
    let whole = streams - wrong.len();
    let figures = format!(
        "{whole} of {streams} right, {identical} of {plain} plain ones identical, {went_on} went on"
    );
    volume::figure("killed streams", figures);
    let spread = Spread::of(&pauses, 95);
    volume::figure("killed streams, pause p50 / p95 / max", spread.in_ms());
    assert!(wrong.is_empty(), "{wrong:#?}");
    // A worker may have been done before the kill reached it.
    assert!(went_on * 2.0 > streams as f64, "{went_on} of {streams} were struck");
    assert!(spread.high <= volume::of(PAUSE_MAX_SHORT, PAUSE_P95_MAX), "{spread:?}");
}

#[test]
fn a_stream_whose_workers_are_killed_twice_with_nothing_new_between_goes_on_at_a_third() {
    let pair = Pair::echo(HIVE);
    let queen = pair.cluster.queen();
    // It goes on a token a step: whoever gets it has nothing new to say for most of a second.
    let script = "[[tokens=90 delay_ms=10]] one two three";
    let cases = undisturbed(&queen, vec![(Kind::Same, asks("tiny", script, &json!({})))]);
    let rounds = volume::of(2, 20);
    for case in cases.iter().cycle().take(rounds) {
        pair.wait_until_warm();
        let mut events = Vec::new();
        for event in queen.stream(CHAT, &case.body) {
            events.push(event);
            if events.len() == 80 {
                let first = wait_for("a busy worker", LIMIT, || pair.busy_worker());
                first.signal(Signal::KILL);
                let is_other = |worker: &Process| worker.pid != first.pid;
                let second = || pair.busy_worker().filter(is_other);
                wait_for("another one has it", LIMIT, second).signal(Signal::KILL);
            }
        }
        assert_eq!(told(&events).as_ref(), Ok(&case.alone));
    }
    let killed = || -> f64 {
        pair.hives().iter().map(|hive| metric(&hive.get("/metrics").body, KILLED)).sum()
    };
    wait_until("all ends are counted", LIMIT, || killed() >= 2.0 * rounds as f64);
}
