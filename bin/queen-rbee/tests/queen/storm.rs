//! Thousands of clients that leave at any moment: nothing that was counted for
//! them may stay behind.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use rbee_api::error::ErrorCode;
use rbee_api::worker::WorkerState;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::daemon::eventually;
use crate::fake_hive::{End, Reply};
use crate::pair::{ALIAS, Pair};

const REQUESTS: u64 = 4_000;
/// Far more than the ten that the two workers are given and the queue's bound.
const AT_ONCE: usize = 64;
const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

/// The gauges that a request moves; each is zero where no request is.
fn gauges(text: &str) -> Vec<(&str, f64)> {
    const NAMES: [&str; 3] =
        ["rbee_queen_requests_running", "rbee_queen_queue_waiting", "rbee_queen_queue_bytes"];
    let gauge = |line: &'_ str| NAMES.iter().any(|name| line.starts_with(name));
    let lines = text.lines().filter(|line| gauge(line));
    lines.map(|line| line.rsplit_once(' ').unwrap()).map(|(n, v)| (n, v.parse().unwrap())).collect()
}

#[tokio::test]
async fn counters_return_to_zero_after_a_storm_of_disconnects() {
    let pair = Pair::silent("[queue]\nrequests_max = 32\n").await;
    for id in ["w-1", "w-2"] {
        pair.hive.set_worker(id, WorkerState::Ready);
    }
    let whole = vec![TOKEN.to_owned(), "data: [DONE]\n\n".to_owned()];
    let replies = [
        Reply::Events(whole.clone(), End::Whole),
        Reply::Events(vec![TOKEN.to_owned()], End::Open),
        Reply::Events(Vec::new(), End::Open),
        Reply::Events(vec![TOKEN.to_owned()], End::Broken),
        Reply::Events(Vec::new(), End::Broken),
        Reply::Error(ErrorCode::AllSlotsBusy),
        Reply::Error(ErrorCode::ValidationFailed),
        Reply::NoHead,
    ];
    // Mostly replies that are whole or go on, so that the storm is not one of failures.
    let weights = [12, 6, 2, 1, 1, 1, 1, 1];
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut random = seed;
    let mut draw = |below: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let deck: Vec<usize> =
        (0..replies.len()).flat_map(|kind| std::iter::repeat_n(kind, weights[kind])).collect();
    let script = (0..REQUESTS).map(|_| {
        let drawn = usize::try_from(draw(deck.len() as u64)).unwrap();
        replies[deck[drawn]].clone()
    });
    let script: Vec<Reply> = script.chain([Reply::Events(whole, End::Whole)]).collect();
    pair.hive.script(script);
    pair.report().await;
    pair.online().await;

    let plans: Vec<(u64, u64, bool)> =
        (0..REQUESTS).map(|_| (draw(20), draw(5), draw(2) == 0)).collect();
    let storm = stream::iter(plans).map(|(patience_ms, user, streams)| {
        let body = json!({
            "model": ALIAS, "stream": streams, "user": format!("user-{user}"),
            "messages": [{"role": "user", "content": "hello"}],
        });
        let request = pair.queen.request(Method::POST, "/v1/chat/completions").json(&body);
        async move {
            let read = async { request.send().await?.bytes().await };
            timeout(Duration::from_millis(patience_ms), read).await.is_err()
        }
    });
    let left: Vec<bool> = storm.buffer_unordered(AT_ONCE).collect().await;
    let left = left.into_iter().filter(|left| *left).count();
    assert!(left > 500, "only {left} clients left early");

    let status = eventually("nothing runs and nothing waits", async || {
        let status = pair.queen.get_json("/api/v1/status").await;
        let is_quiet = status["requests_running"] == 0 && status["queues"] == json!([]);
        is_quiet.then_some(status)
    })
    .await;
    for worker in status["workers"].as_array().unwrap() {
        assert_eq!(worker["slots_available"], 4, "{worker}");
    }
    let text = pair.queen.get("/metrics").await.text().await.unwrap();
    let gauges = gauges(&text);
    assert!(gauges.len() >= 3, "{gauges:?}");
    assert!(gauges.iter().all(|(_, value)| *value == 0.0), "{gauges:?}");
    let reply: Value = pair.queen.get_json("/api/v1/workers").await;
    assert_eq!(reply["workers"].as_array().unwrap().len(), 2);
    // And the queue still works.
    pair.hive.script([Reply::Json("{}")]);
    assert_eq!(pair.queen.chat(ALIAS, false).send().await.unwrap().status(), 200);
}
