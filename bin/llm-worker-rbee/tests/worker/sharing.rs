//! Prompts that begin alike, seen from outside: what a reply says was cached,
//! who shares with whom, and that a storm of them leaves nothing behind. The
//! echo engine ends itself when a slot does not hold exactly the tokens that
//! belong there, so every reply here also proves the bookkeeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rbee_api::openai::{ChatCompletion, Usage};
use serde_json::{Value, json};

use crate::client::Client;
use crate::process::Worker;

/// Requests of the storm.
const STORM_REQUESTS: u32 = 10_000;
/// Requests of the storm that are under way at once.
const STORM_AT_ONCE: u32 = 24;

fn words(name: &str, count: u32) -> String {
    (0..count).map(|word| format!(" {name}{word}")).collect()
}

async fn usage(client: &Client, content: &str, more: Value) -> Usage {
    client.chat(content, more).await.json::<ChatCompletion>().usage
}

#[tokio::test]
async fn a_reply_says_how_much_of_its_prompt_was_cached() {
    let worker = Worker::start(&["--slots=2"]).await;
    let ask = |last: &str| format!("[[tokens=2]]{} {last}", words("shared", 50));
    let first = usage(&worker.client, &ask("first"), json!({})).await;
    assert_eq!((first.prompt_tokens, first.prompt_tokens_details.cached_tokens), (52, 0));
    let second = usage(&worker.client, &ask("second"), json!({})).await;
    assert_eq!((second.prompt_tokens, second.prompt_tokens_details.cached_tokens), (52, 51));
    let metrics = worker.client.get("/metrics").await.body;
    assert!(metrics.contains("rbee_worker_cached_prompt_tokens_total 51"), "{metrics}");
}

#[tokio::test]
async fn users_share_nothing_unless_the_worker_is_told_so() {
    for (flag, cached) in [("--slots=4", 0), ("--cache-shared", 51)] {
        let worker = Worker::start(&[flag]).await;
        let content = format!("[[tokens=2]]{} end", words("private", 50));
        usage(&worker.client, &content, json!({"user": "alice"})).await;
        let other = usage(&worker.client, &content, json!({"user": "bob"})).await;
        assert_eq!(other.prompt_tokens_details.cached_tokens, cached, "{flag}");
        let nobody = usage(&worker.client, &content, json!({})).await;
        assert_eq!(nobody.prompt_tokens_details.cached_tokens, cached, "{flag}");
        let same = usage(&worker.client, &content, json!({"user": "alice"})).await;
        assert_eq!(same.prompt_tokens_details.cached_tokens, 51, "{flag}");
    }
}

#[tokio::test]
async fn a_conversation_that_lost_its_slot_is_restored_as_long_as_there_is_room_for_it() {
    for (cache_ram, cached) in [("--cache-ram=1", 51), ("--cache-ram=0", 0)] {
        let worker = Worker::start(&["--slots=1", cache_ram]).await;
        let content = format!("[[tokens=2]]{} end", words("mine", 50));
        usage(&worker.client, &content, json!({})).await;
        usage(&worker.client, &words("other", 60), json!({})).await;
        let again = usage(&worker.client, &content, json!({})).await;
        assert_eq!(again.prompt_tokens_details.cached_tokens, cached, "{cache_ram}");
    }
}

/// One of the storm's requests: some go on to the end, some leave at once,
/// some leave after their first token; a quarter wants two to four choices.
async fn one_of_the_storm(client: Client, number: u32) {
    let choices = if number % 4 == 3 { 2 + number % 3 } else { 1 };
    let shared = words(&format!("topic{}-", number % 7), 20 + number % 90);
    let content = format!("[[tokens={}]]{shared} question {number}", 1 + number % 9);
    let more = json!({"user": format!("user{}", number % 3), "n": choices});
    match number % 5 {
        0 => drop(
            tokio::time::timeout(
                std::time::Duration::from_micros(u64::from(number % 900)),
                client.chat(&content, more),
            )
            .await
            .ok(),
        ),
        1 => drop(client.open_chat(&content, more).await.chunk().await),
        _ => {
            let usage = usage(&client, &content, more).await;
            assert_eq!(usage.completion_tokens, choices * (1 + number % 9));
        }
    }
}

#[tokio::test]
async fn ten_thousand_requests_that_share_and_leave_leave_nothing_behind() {
    let worker = Worker::start(&["--slots=6", "--queue=64", "--cache-ram=1"]).await;
    let next = Arc::new(AtomicU32::new(0));
    let mut clients = tokio::task::JoinSet::new();
    let mut resident = Vec::new();
    for share in 1..=4 {
        for _ in 0..STORM_AT_ONCE {
            let (client, next) = (worker.client.clone(), Arc::clone(&next));
            clients.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= STORM_REQUESTS * share / 4 {
                        return;
                    }
                    one_of_the_storm(client.clone(), number).await;
                }
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
        resident.push(worker.resident_kib());
    }
    worker.until("all have left", |status| status.requests_running == 0).await;
    let status = worker.status().await;
    assert_eq!((status.slots_available, status.requests_waiting), (6, 0));
    let metrics = worker.client.get("/metrics").await.body;
    for counter in ["failed", "length"] {
        let line = format!("rbee_worker_requests_total{{outcome=\"{counter}\"}} 0");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    // The first quarter fills buffers and the store; after it nothing may grow.
    let (early, late) = (resident[1], resident[3]);
    assert!(late < early + early / 10, "memory grows: {resident:?} KiB");
}
