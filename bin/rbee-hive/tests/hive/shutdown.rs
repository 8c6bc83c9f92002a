//! A hive that is told to end, with workers that obey and workers that do not: how long it takes, what it counts, and
//! what is left.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fake_worker;
use crate::processes::{eventually, signal, working_in};
use crate::program::{Hive, LIMIT, Place, code, refused, soon, value, worker_program};
use crate::stream::Chat;

/// Waits that no test reaches unless something is broken.
const CONFIG: &str = "stop_grace_seconds = 1\nshutdown_timeout_seconds = 30\n";

/// Starts a hive with ready workers for the models `o1`, `o2`… and workers that obey nothing for `h1`, `h2`…
async fn hive_with(obedient: usize, hung: usize, config: &str) -> Hive {
    let place = Place::new();
    let hangs = "read secrets; trap '' TERM INT HUP; while :; do sleep 1000; done";
    let script = format!(
        "case \"$*\" in *'--model-name h'*) {hangs};; *) exec {} \"$@\";; esac",
        worker_program().display()
    );
    let flags = fake_worker::flags(&place, &script);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let hive = place.start_with(config, &flags).await;
    for number in 1..=obedient {
        hive.ready_worker(&format!("{number}o")).await;
    }
    for number in 1..=hung {
        // The name of the file is what tells one model from another, its first letter what is in it.
        let alias = format!("h{number}");
        hive.import_as(&alias, b'a' + u8::try_from(number).unwrap()).await;
        hive.start_worker(&alias).await.unwrap();
    }
    eventually("all processes run", LIMIT, async || {
        // A worker that hangs is a shell and what it waits for.
        (working_in(&hive.home()).len() == obedient + 2 * hung).then_some(())
    })
    .await;
    hive
}

/// Ends a hive by signal, and checks what it and the next hive on its home say of that.
async fn ends(mut hive: Hive, graceful: u32, forced: u32, within: Duration) {
    let begun = Instant::now();
    signal(hive.pid(), Signal::TERM);
    assert_eq!(hive.ended(LIMIT).await.code(), Some(0));
    let took = begun.elapsed();
    assert!(took < within, "{took:?}\n{}", hive.log());
    assert_eq!(working_in(&hive.home()), [0; 0]);
    let figures = format!("graceful={graceful} forced={forced}");
    assert!(hive.log().contains(&figures), "no {figures} in {}", hive.log());
    let next = hive.into_place().start().await;
    assert_eq!(next.workers().await.len(), 0);
    let shown = next.metrics().await;
    let total = |name: &str| value(&shown, &format!("rbee_hive_workers_{name}_total"));
    assert_eq!(total("graceful_shutdown"), f64::from(graceful), "{shown}");
    assert_eq!(total("force_killed"), f64::from(forced), "{shown}");
    let shown_seconds = value(&shown, "rbee_hive_shutdown_duration_seconds");
    assert!(shown_seconds <= took.as_secs_f64(), "{shown_seconds} {took:?}");
}

#[tokio::test]
async fn three_workers_that_obey_end_by_themselves_and_nobody_waits_for_the_limit() {
    ends(hive_with(3, 0, CONFIG).await, 3, 0, Duration::from_secs(3)).await;
}

#[tokio::test]
async fn one_worker_that_hangs_is_killed_and_the_others_end_by_themselves() {
    ends(hive_with(2, 1, CONFIG).await, 2, 1, Duration::from_secs(8)).await;
}

#[tokio::test]
async fn three_workers_that_hang_are_killed_within_one_limit_and_not_three() {
    // Left to its grace each would be waited for longer than the hive has.
    let config = "stop_grace_seconds = 13\nshutdown_timeout_seconds = 4\n";
    ends(hive_with(0, 3, config).await, 0, 3, Duration::from_secs(8)).await;
}

#[tokio::test]
async fn a_hive_without_workers_ends_at_once() {
    ends(hive_with(0, 0, CONFIG).await, 0, 0, Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_second_signal_spares_the_wait_for_workers_that_hang() {
    let mut hive = hive_with(1, 2, "stop_grace_seconds = 13\n").await;
    signal(hive.pid(), Signal::TERM);
    eventually("one is gone and two are waited for", LIMIT, async || {
        hive.log().contains("ended=1 of=3").then_some(())
    })
    .await;
    let begun = Instant::now();
    signal(hive.pid(), Signal::INT);
    assert_eq!(hive.ended(LIMIT).await.code(), Some(0));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}\n{}", hive.log());
    assert_eq!(working_in(&hive.home()), [0; 0]);
    assert!(hive.log().contains("graceful=1 forced=2"), "{}", hive.log());
}

#[tokio::test]
async fn an_answer_that_the_time_is_too_short_for_ends_with_an_error_and_new_work_is_refused() {
    let mut hive = Place::new().start_with("shutdown_timeout_seconds = 4\n", &[]).await;
    let id = hive.ready_worker("tiny").await.id.to_string();
    let mut chat = Chat::begin(&hive.client, &id, "[[tokens=99999 delay_ms=25]] x").await.unwrap();
    chat.more().await;
    signal(hive.pid(), Signal::TERM);
    eventually("the hive drains", LIMIT, || async { hive.start_worker("tiny").await.err() }).await;
    assert_eq!(code(hive.start_worker("tiny").await), ErrorCode::Draining);
    assert_eq!(code(hive.chat(&id, "hello").await), ErrorCode::Draining);
    let events = chat.rest().await;
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "worker_failed", "{last}");
    assert_eq!(hive.ended(LIMIT).await.code(), Some(0));
    assert!(hive.log().contains("graceful=0 forced=1"), "{}", hive.log());
}

#[tokio::test]
async fn whoever_asks_for_the_end_can_shorten_it() {
    for (query, graceful, forced) in [("?timeout_ms=600000", 1, 0), ("?timeout_ms=0", 0, 1)] {
        let mut hive = hive_with(1, 0, CONFIG).await;
        let path = format!("/api/v1/shutdown{query}");
        refused(hive.client.post::<_, Value>(&path, &json!({}), soon()).await).unwrap();
        assert_eq!(hive.ended(Duration::from_secs(5)).await.code(), Some(0));
        let figures = format!("graceful={graceful} forced={forced}");
        assert!(hive.log().contains(&figures), "{query}: {}", hive.log());
        assert_eq!(working_in(&hive.home()), [0; 0]);
    }
}

#[tokio::test]
async fn workers_stopped_one_by_one_are_counted_too() {
    let hive = hive_with(1, 1, CONFIG).await;
    for worker in hive.workers().await {
        hive.stop_worker(worker.id.as_str()).await.unwrap();
    }
    let shown = hive.metrics().await;
    assert_eq!(value(&shown, "rbee_hive_workers_graceful_shutdown_total"), 1.0);
    assert_eq!(value(&shown, "rbee_hive_workers_force_killed_total"), 1.0);
}
