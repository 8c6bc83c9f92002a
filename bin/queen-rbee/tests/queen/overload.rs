//! More requests than the workers can take: who waits, who is next, who is
//! told to come back.

use std::time::Duration;

use futures_util::future::join_all;
use rbee_api::error::ErrorCode;
use rbee_api::worker::WorkerState;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::daemon::{error_of, eventually};
use crate::fake_hive::{End, Reply};
use crate::pair::{ALIAS, Pair};

/// Requests that a worker of the fake is given: its four slots and one ahead.
const PLACES: usize = 5;

fn open_stream() -> Reply {
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    Reply::Events(vec![token.to_owned()], End::Open)
}

async fn ready(settings: &str) -> Pair {
    let pair = Pair::silent(settings).await;
    pair.hive.set_worker("w-1", WorkerState::Ready);
    pair.hive.script([open_stream()]);
    pair.report().await;
    pair.online().await;
    pair
}

fn chat_of(pair: &Pair, user: &str) -> RequestBuilder {
    pair.queen.request(Method::POST, "/v1/chat/completions").json(&json!({
        "model": ALIAS, "user": user, "stream": true,
        "messages": [{"role": "user", "content": "hello"}],
    }))
}

/// Requests that go on in the background until they are answered or aborted.
type Sent = tokio::task::JoinHandle<reqwest::Result<Response>>;

fn send(pair: &Pair, user: &str) -> Sent {
    tokio::spawn(chat_of(pair, user).send())
}

/// The figures of the only queue; null where there is none.
async fn queue(pair: &Pair) -> Value {
    pair.queen.get_json("/api/v1/status").await["queues"][0].clone()
}

async fn waiting(pair: &Pair, count: u64) {
    eventually(&format!("{count} requests wait"), async || {
        let queue = queue(pair).await;
        (queue["requests_waiting"].as_u64().unwrap_or(0) == count).then_some(())
    })
    .await;
}

async fn forwarded(pair: &Pair, count: usize) {
    eventually(&format!("{count} requests are forwarded"), async || {
        (pair.hive.forwarded_count() == count).then_some(())
    })
    .await;
}

/// Fills the worker and returns its streams, which have lasted for a while: of
/// replies that end at once, a worker is given more ahead.
async fn fill(pair: &Pair, user: &str) -> Vec<Response> {
    let streams = join_all((0..PLACES).map(|_| chat_of(pair, user).send())).await;
    let streams = streams.into_iter().map(Result::unwrap).collect();
    time_passes(Duration::from_millis(200)).await;
    streams
}

async fn time_passes(time: Duration) {
    let until = Instant::now() + time;
    eventually("time goes by", async || (Instant::now() >= until).then_some(())).await;
}

/// The users of the requests that were forwarded, in order.
fn users(pair: &Pair) -> Vec<String> {
    let forwarded = pair.hive.forwarded.lock().unwrap().clone();
    let user = |body: &[u8]| -> Value { serde_json::from_slice(body).unwrap() };
    forwarded.iter().map(|sent| user(&sent.body)["user"].as_str().unwrap().to_owned()).collect()
}

async fn metric(pair: &Pair, name: &str) -> Option<f64> {
    let text = pair.queen.get("/metrics").await.text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with(name))?.to_owned();
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn a_worker_gets_what_it_can_take_and_the_rest_waits_its_turn() {
    let pair = ready("").await;
    let mut streams = fill(&pair, "a").await;
    let rest: Vec<Sent> = (0..3).map(|_| send(&pair, "a")).collect();
    waiting(&pair, 3).await;
    let queue = queue(&pair).await;
    assert_eq!(queue["model"], ALIAS);
    assert_eq!((&queue["clients_waiting"], &queue["slots_wanted"]), (&json!(1), &json!(3)));
    assert_eq!(queue["slots_taken"], PLACES);
    assert!(queue["oldest_wait_ms"].is_u64() && queue["service_ms"].is_null());
    assert_eq!(metric(&pair, "rbee_queen_queue_waiting{").await, Some(3.0));
    assert!(metric(&pair, "rbee_queen_queue_bytes ").await.unwrap() > 0.0);
    assert_eq!(pair.hive.forwarded_count(), PLACES);
    for next in 1..=3 {
        drop(streams.pop());
        forwarded(&pair, PLACES + next).await;
    }
    for sent in rest {
        assert_eq!(sent.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(metric(&pair, "rbee_queen_queue_waiting{").await, Some(0.0));
}

#[tokio::test]
async fn clients_take_turns_however_many_requests_one_of_them_sends() {
    let pair = ready("").await;
    let mut streams = fill(&pair, "flood").await;
    let flood: Vec<Sent> = (0..10).map(|_| send(&pair, "flood")).collect();
    waiting(&pair, 10).await;
    let quiet: Vec<Sent> = (0..2).map(|_| send(&pair, "quiet")).collect();
    waiting(&pair, 12).await;
    for turn in 1..=3 {
        drop(streams.pop());
        forwarded(&pair, PLACES + turn).await;
    }
    assert_eq!(users(&pair)[PLACES..], ["quiet", "quiet", "flood"]);
    drop((flood, quiet));
}

#[tokio::test]
async fn those_who_waited_for_a_load_do_not_overrun_the_worker() {
    let pair = Pair::cold("").await;
    pair.hive.script([open_stream()]);
    let sent: Vec<Sent> = (0..12).map(|_| send(&pair, "a")).collect();
    waiting(&pair, 12).await;
    eventually("one worker is started", async || (pair.starts() == 1).then_some(())).await;
    pair.hive.set_worker("w-1", WorkerState::Ready);
    pair.report().await;
    forwarded(&pair, PLACES).await;
    waiting(&pair, 7).await;
    assert_eq!((pair.hive.forwarded_count(), pair.starts()), (PLACES, 1));
    drop(sent);
}

#[tokio::test]
async fn a_request_that_finds_its_worker_full_waits_for_another_turn() {
    let pair = ready("").await;
    pair.hive.script([Reply::Error(ErrorCode::AllSlotsBusy), Reply::Json("{}")]);
    let reply = pair.queen.chat(ALIAS, false).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    assert_eq!(pair.hive.forwarded_count(), 2);
    // A second worker is not waited for.
    pair.hive.set_worker("w-2", WorkerState::Ready);
    pair.report().await;
    pair.hive.script([Reply::Error(ErrorCode::AllSlotsBusy), Reply::Json("{}")]);
    assert_eq!(pair.queen.chat(ALIAS, false).send().await.unwrap().status(), 200);
    let workers: Vec<_> =
        pair.hive.forwarded.lock().unwrap().iter().map(|sent| sent.worker.clone()).collect();
    assert_eq!(workers[2..], ["w-1", "w-2"]);
}

#[tokio::test]
async fn a_request_whose_time_ends_in_the_queue_is_told_when_to_come_back() {
    let pair = ready("").await;
    pair.hive.script([Reply::Error(ErrorCode::AllSlotsBusy)]);
    let request = pair.queen.chat(ALIAS, true).header("x-request-timeout-ms", "600");
    let reply = request.send().await.unwrap();
    let retry_after_ms = reply.headers()["retry-after-ms"].to_str().unwrap().parse().unwrap();
    assert!((1000..=1250).contains(&retry_after_ms), "{retry_after_ms}");
    let (status, error) = error_of(reply).await;
    assert_eq!((status, &error["code"]), (503, &json!("all_slots_busy")));
    assert!(error["message"].as_str().unwrap().contains("X-Request-Timeout-Ms"), "{error}");
    let tries = pair.hive.forwarded_count();
    assert!((1..=3).contains(&tries), "a worker that is full is left alone: {tries}");
    waiting(&pair, 0).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_served_in_its_time_is_refused_at_once() {
    let pair = ready("").await;
    // Replies that take a second or so, as far as the queen can see.
    let streams = fill(&pair, "a").await;
    time_passes(Duration::from_secs(1)).await;
    drop(streams);
    eventually("the pace is known", async || {
        let status = pair.queen.get_json("/api/v1/status").await;
        (status["requests_running"] == 0).then_some(())
    })
    .await;
    let streams = fill(&pair, "a").await;
    let rest: Vec<Sent> = (0..10).map(|_| send(&pair, "a")).collect();
    waiting(&pair, 10).await;
    let before = queue(&pair).await;
    assert!(before["service_ms"].as_u64().unwrap() >= 900, "{before}");
    assert!(before["drain_ms"].as_u64().unwrap() >= 1800, "{before}");
    let request = chat_of(&pair, "a").header("x-request-timeout-ms", "2500");
    let reply = request.send().await.unwrap();
    let header = |name: &str| reply.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
    let (seconds, ms) = (header("retry-after"), header("retry-after-ms"));
    assert!((1800..=120_000).contains(&ms) && seconds == ms.div_ceil(1000), "{seconds} {ms}");
    let (status, error) = error_of(reply).await;
    assert_eq!((status, &error["code"]), (503, &json!("all_slots_busy")));
    assert!(error["details"]["expected_wait_ms"].as_u64().unwrap() >= 1800, "{error}");
    assert_eq!(error["details"]["requests_waiting"], 10);
    // One of a client that has nothing is served before those ten, and so has time enough.
    let quiet = tokio::spawn(chat_of(&pair, "b").header("x-request-timeout-ms", "2500").send());
    waiting(&pair, 11).await;
    drop(streams);
    assert_eq!(quiet.await.unwrap().unwrap().status(), 200);
    drop(rest);
}

#[tokio::test]
async fn in_a_full_queue_the_client_with_the_most_gives_way() {
    let pair = ready("[queue]\nrequests_max = 2\n").await;
    let _streams = fill(&pair, "flood").await;
    let older = send(&pair, "flood");
    waiting(&pair, 1).await;
    let newer = send(&pair, "flood");
    waiting(&pair, 2).await;
    let refused = chat_of(&pair, "flood").send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after-ms"));
    assert!(!refused.headers().contains_key("x-should-retry"));
    let (status, error) = error_of(refused).await;
    assert_eq!((status, &error["code"]), (429, &json!("queue_full")));
    assert_eq!(error["type"], "rate_limit_error");
    let quiet = send(&pair, "quiet");
    let (status, error) = error_of(newer.await.unwrap().unwrap()).await;
    assert_eq!((status, &error["code"]), (429, &json!("queue_full")));
    waiting(&pair, 2).await;
    assert!(!older.is_finished() && !quiet.is_finished());
    for (reason, count) in [("requests", 1.0), ("gave_way", 1.0)] {
        let name = format!("rbee_queen_queue_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(metric(&pair, &name).await, Some(count), "{reason}");
    }
    older.abort();
    quiet.abort();
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_up_at_once() {
    let pair = ready("").await;
    let _streams = fill(&pair, "a").await;
    let rest: Vec<Sent> = (0..4).map(|_| send(&pair, "a")).collect();
    waiting(&pair, 4).await;
    rest.iter().take(3).for_each(Sent::abort);
    waiting(&pair, 1).await;
    assert_eq!(pair.hive.forwarded_count(), PLACES, "those who left are not forwarded");
    rest.iter().for_each(Sent::abort);
}

#[tokio::test]
async fn requests_that_are_wrong_never_count_against_a_worker() {
    let pair = ready("").await;
    pair.hive.set_worker("w-2", WorkerState::Ready);
    pair.report().await;
    for code in [
        ErrorCode::ContextLengthExceeded,
        ErrorCode::ValidationFailed,
        ErrorCode::UnsupportedParameter,
        ErrorCode::PayloadTooLarge,
    ] {
        pair.hive.script([Reply::Error(code)]);
        for _ in 0..25 {
            let reply = pair.queen.chat(ALIAS, true).send().await.unwrap();
            assert_eq!(reply.status(), code.status());
        }
    }
    assert_eq!(pair.hive.forwarded_count(), 100, "none of them is tried twice");
    assert_eq!(metric(&pair, "rbee_queen_failed_attempts_total").await, None);
    assert_eq!(pair.starts(), 0);
    let workers = pair.queen.get_json("/api/v1/workers").await;
    for worker in workers["workers"].as_array().unwrap() {
        assert_eq!((&worker["state"], &worker["slots_available"]), (&json!("ready"), &json!(4)));
    }
    pair.hive.script([Reply::Json("{}")]);
    assert_eq!(pair.queen.chat(ALIAS, false).send().await.unwrap().status(), 200);
    assert_eq!(pair.hive.forwarded.lock().unwrap().last().unwrap().worker, "w-1");
}
