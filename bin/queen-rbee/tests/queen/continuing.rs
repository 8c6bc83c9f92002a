//! Streams whose worker ends before they do: gone on with elsewhere, or ended
//! with an error event; and the budget of what is tried again before that.

use std::time::Duration;

use rbee_api::error::{ErrorCode, LIVES};
use rbee_api::headers::CLIENT_BYTES;
use rbee_api::worker::WorkerState;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::daemon::{PATIENCE, error_of, eventually};
use crate::fake_hive::{End, Forwarded, Reply};
use crate::pair::{ALIAS, Pair};

pub(crate) const DONE: &str = "data: [DONE]\n\n";
/// The digest that every model of the fake has.
pub(crate) const SHA: &str = "0707070707070707070707070707070707070707070707070707070707070707";

pub(crate) fn head(sha256: &str) -> String {
    let head =
        json!({"head": {"id": "chatcmpl-1", "created": 5, "seed": 9, "model_sha256": sha256}});
    format!(": rbee {head}\n\n")
}

pub(crate) fn token(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

pub(crate) fn told(tokens: &[u32]) -> String {
    format!(": rbee {}\n\n", json!({"told": [{"index": 0, "tokens": tokens}]}))
}

fn failed(code: ErrorCode) -> String {
    let error = json!({"error": {"message": "scripted", "type": "server_error", "code": code,
        "retryable": code.retryable()}});
    format!("data: {error}\n\n")
}

fn whole(pieces: &[String]) -> Reply {
    Reply::Events(pieces.to_vec(), End::Whole)
}

fn broken(pieces: &[String]) -> Reply {
    Reply::Events(pieces.to_vec(), End::Broken)
}

/// Asks for a stream and returns all of it as it came.
async fn stream(pair: &Pair) -> String {
    let reply = pair.queen.chat(ALIAS, true).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    timeout(PATIENCE, reply.text()).await.expect("the stream ends").unwrap()
}

fn sent(pair: &Pair) -> Vec<Forwarded> {
    pair.hive.forwarded.lock().unwrap().clone()
}

fn workers(pair: &Pair) -> Vec<String> {
    sent(pair).into_iter().map(|sent| sent.worker).collect()
}

pub(crate) fn error_code(text: &str) -> Value {
    let last = text.strip_suffix("\n\n").unwrap().rsplit("\n\n").next().unwrap();
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(text.matches("\"error\"").count(), 1, "{text}");
    error["error"]["code"].clone()
}

async fn outcomes(pair: &Pair, name: &str) -> Vec<String> {
    let metrics = pair.queen.get("/metrics").await.text().await.unwrap();
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned);
    lines.collect()
}

#[tokio::test]
async fn another_worker_goes_on_after_what_the_client_has() {
    for (case, end) in [
        ("the worker dies", whole(&[failed(ErrorCode::WorkerFailed)])),
        ("the worker stops", whole(&[failed(ErrorCode::Draining)])),
        ("the stream ends in the middle", whole(&[])),
        ("nonsense comes", whole(&[": rbee nonsense\n\n".to_owned()])),
    ] {
        let Reply::Events(last, _) = end else { unreachable!() };
        let pair = Pair::ready(&["w-1", "w-2"]).await;
        let begun = [head(SHA), token("a"), told(&[1, 2]), token("b"), told(&[3]), token("lost")];
        let rest = [head(SHA), token("c"), told(&[4]), token("d"), DONE.to_owned()];
        pair.hive.script([whole(&[begun.as_slice(), &last].concat()), whole(&rest)]);
        let expected = [token("a"), token("b"), token("c"), token("d"), DONE.to_owned()].concat();
        assert_eq!(stream(&pair).await, expected, "{case}");
        assert_eq!(workers(&pair), ["w-1", "w-2"], "{case}");
        let [first, second] = sent(&pair).try_into().unwrap();
        assert_eq!((first.delivered(), first.client_bytes), (None, Some(first.body.len())));
        assert_eq!(second.body[..second.client_bytes.unwrap()], first.body, "the same request");
        let delivered = second.delivered().unwrap();
        assert_eq!(delivered.choices[0].tokens, [1, 2, 3], "{case}");
        assert_eq!((delivered.head.id.as_str(), delivered.head.seed), ("chatcmpl-1", 9));
        assert_eq!(second.request_id, first.request_id);
        let continued = outcomes(&pair, "rbee_queen_continuations_total").await;
        assert_eq!(continued, ["{outcome=\"continued\"} 1"]);
    }
}

#[tokio::test]
async fn a_worker_goes_on_itself_when_only_the_way_to_it_broke() {
    let pair = Pair::ready(&["w-1"]).await;
    let begun = [head(SHA), token("a"), told(&[1])];
    let rest = [head(SHA), token("b"), told(&[2]), DONE.to_owned()];
    pair.hive.script([broken(&begun), whole(&rest)]);
    let request = stream(&pair);
    let (text, ()) = tokio::join!(request, async {
        eventually("the queen looks whether the machine is there", async || {
            pair.report().await;
            (pair.hive.forwarded_count() == 2).then_some(())
        })
        .await;
    });
    assert_eq!(text, [token("a"), token("b"), DONE.to_owned()].concat());
    assert_eq!(workers(&pair), ["w-1", "w-1"]);
}

#[tokio::test]
async fn a_worker_goes_on_itself_when_its_machine_says_that_it_lives() {
    let pair = Pair::ready(&["w-1"]).await;
    let error = json!({"error": {"message": "scripted", "type": "server_error", "code":
        ErrorCode::WorkerFailed, "retryable": true, "details": {LIVES: true}}});
    // A third time, nothing new would have come of two of them.
    let rest = [head(SHA), token("b"), told(&[2])];
    let breaks = format!("data: {error}\n\n");
    pair.hive.script([
        whole(&[head(SHA), token("a"), told(&[1]), breaks.clone()]),
        whole(&[head(SHA), breaks.clone()]),
        whole(&[rest.as_slice(), &[DONE.to_owned()]].concat()),
    ]);
    assert_eq!(stream(&pair).await, [token("a"), token("b"), DONE.to_owned()].concat());
    assert_eq!(workers(&pair), ["w-1", "w-1", "w-1"]);
}

#[tokio::test]
async fn a_stream_of_which_nothing_came_is_asked_for_again() {
    let pair = Pair::ready(&["w-1", "w-2"]).await;
    let begun = [head(SHA), token("lost"), failed(ErrorCode::WorkerFailed)];
    let again = [head(SHA), token("a"), told(&[1]), DONE.to_owned()];
    pair.hive.script([whole(&begun), whole(&again)]);
    assert_eq!(stream(&pair).await, [token("a"), DONE.to_owned()].concat());
    assert!(sent(&pair).iter().all(|sent| sent.delivered().is_none()));
    assert!(outcomes(&pair, "rbee_queen_continuations_total").await.is_empty());
    assert_eq!(outcomes(&pair, "rbee_queen_retries_total").await, ["{outcome=\"tried\"} 1"]);
}

#[tokio::test]
async fn a_failure_of_the_request_is_passed_on_with_what_came_before_it() {
    for code in [ErrorCode::ValidationFailed, ErrorCode::DeadlineExceeded, ErrorCode::InternalError]
    {
        let pair = Pair::ready(&["w-1", "w-2"]).await;
        let begun = [head(SHA), token("a"), told(&[1]), token("b"), failed(code)];
        pair.hive.script([whole(&begun)]);
        assert_eq!(stream(&pair).await, [token("a"), token("b"), failed(code)].concat());
        assert_eq!(pair.hive.forwarded_count(), 1, "{code}");
    }
}

#[tokio::test]
async fn no_other_file_goes_on_and_the_client_is_told_at_once() {
    let pair = Pair::ready(&["w-1", "w-2"]).await;
    let other = SHA.replace('7', "8");
    pair.hive.script([Reply::Events(
        vec![head(&other), token("a"), told(&[1]), failed(ErrorCode::WorkerFailed)],
        End::Open,
    )]);
    let started = Instant::now();
    let text = stream(&pair).await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!((text.starts_with(&token("a")), error_code(&text)), (true, json!("worker_failed")));
    assert_eq!((pair.hive.forwarded_count(), pair.starts()), (1, 0));
    let outcomes = outcomes(&pair, "rbee_queen_continuations_total").await;
    assert_eq!(outcomes, ["{outcome=\"refused\"} 1"]);
}

#[tokio::test]
async fn a_request_that_kills_each_worker_at_one_token_kills_two() {
    let pair = Pair::ready(&["w-1", "w-2", "w-3", "w-4"]).await;
    let begun = [head(SHA), token("a"), told(&[1]), failed(ErrorCode::WorkerFailed)];
    let dies = whole(&[head(SHA), failed(ErrorCode::WorkerFailed)]);
    pair.hive.script([whole(&begun), dies.clone(), dies]);
    let text = stream(&pair).await;
    assert_eq!((text.starts_with(&token("a")), error_code(&text)), (true, json!("worker_failed")));
    assert!(text.contains("\"retryable\":false"), "{text}");
    assert_eq!(workers(&pair), ["w-1", "w-2"]);
}

#[tokio::test]
async fn a_reply_that_gets_on_goes_on_as_often_as_it_must() {
    let pair = Pair::ready(&["w-1", "w-2", "w-3", "w-4", "w-5"]).await;
    let part = |n: u32| {
        let text = token(&n.to_string());
        whole(&[head(SHA), text, told(&[n]), failed(ErrorCode::WorkerFailed)])
    };
    let last = whole(&[head(SHA), token("5"), DONE.to_owned()]);
    pair.hive.script((1..5).map(part).chain([last]));
    let expected: String = (1..=5).map(|n| token(&n.to_string())).collect();
    assert_eq!(stream(&pair).await, expected + DONE);
    assert_eq!(sent(&pair)[4].delivered().unwrap().choices[0].tokens, [1, 2, 3, 4]);
}

/// A worker whose stream breaks after one token, another one beside it, and a
/// queen that waits so many seconds for somebody to go on.
async fn with_a_stream_that_breaks(wait_seconds: u32, other: WorkerState) -> Pair {
    let pair = Pair::silent(&format!("continuation_wait_seconds = {wait_seconds}")).await;
    pair.hive.set_worker("w-1", WorkerState::Ready);
    pair.hive.set_worker("w-2", other);
    pair.report().await;
    pair.online().await;
    let begun = [head(SHA), token("a"), told(&[1]), failed(ErrorCode::WorkerFailed)];
    pair.hive.script([whole(&begun)]);
    pair
}

#[tokio::test]
async fn who_waits_too_long_for_another_worker_is_told() {
    let pair = with_a_stream_that_breaks(1, WorkerState::Starting).await;
    let started = Instant::now();
    let text = stream(&pair).await;
    assert_eq!(error_code(&text), "worker_failed");
    assert!(text.contains("in time"), "{text}");
    assert!(started.elapsed() >= Duration::from_secs(1));
    let outcomes = outcomes(&pair, "rbee_queen_continuations_total").await;
    assert_eq!(outcomes, ["{outcome=\"timed_out\"} 1"]);
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let pair = with_a_stream_that_breaks(0, WorkerState::Ready).await;
    let text = stream(&pair).await;
    assert_eq!(text, [token("a"), failed(ErrorCode::WorkerFailed)].concat());
    assert_eq!(pair.hive.forwarded_count(), 1);
}

#[tokio::test]
async fn a_worker_that_comes_up_in_the_meantime_goes_on() {
    let pair = Pair::ready(&["w-9"]).await;
    let begun = [head(SHA), token("a"), told(&[1]), failed(ErrorCode::WorkerFailed)];
    let busy = Reply::Error(ErrorCode::AllSlotsBusy);
    pair.hive.script([whole(&begun), busy, whole(&[head(SHA), token("b"), DONE.to_owned()])]);
    let request = stream(&pair);
    let recovery = async {
        eventually("the first part", async || (pair.hive.forwarded_count() == 1).then_some(()))
            .await;
        pair.hive.set_worker("w-9", WorkerState::Failed);
        pair.report().await;
        eventually("another one is started", async || (pair.starts() == 1).then_some(())).await;
        pair.hive.set_worker("w-1", WorkerState::Ready);
        pair.report().await;
    };
    let (text, ()) = tokio::join!(request, recovery);
    assert_eq!(text, [token("a"), token("b"), DONE.to_owned()].concat());
    assert_eq!(workers(&pair), ["w-9", "w-1", "w-1"], "a full queue is waited out");
}

#[tokio::test]
async fn for_a_worker_that_was_told_to_stop_none_is_started() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([whole(&[head(SHA), token("a"), told(&[1]), failed(ErrorCode::Draining)])]);
    let request = stream(&pair);
    let stopping = async {
        eventually("the first part", async || (pair.hive.forwarded_count() == 1).then_some(()))
            .await;
        pair.hive.set_worker("w-1", WorkerState::Stopping);
        pair.report().await;
    };
    let (text, ()) = tokio::join!(request, stopping);
    assert_eq!((error_code(&text), pair.starts()), (json!("draining"), 0));
}

#[tokio::test]
async fn a_client_neither_asks_for_marks_nor_gets_them() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([whole(&[head(SHA), token("a"), told(&[1]), DONE.to_owned()])]);
    let request = pair.queen.chat(ALIAS, true).header(CLIENT_BYTES, "7");
    let text = request.send().await.unwrap().text().await.unwrap();
    assert_eq!(text, [token("a"), DONE.to_owned()].concat());
    let first = sent(&pair).remove(0);
    assert_eq!(first.client_bytes, Some(first.body.len()));
    pair.hive.script([Reply::Json("{}")]);
    let request = pair.queen.chat(ALIAS, false).header(CLIENT_BYTES, "7");
    assert_eq!(request.send().await.unwrap().status(), 200);
    assert_eq!(sent(&pair)[1].client_bytes, None);
}

#[tokio::test]
async fn retries_add_a_fifth_to_the_load_at_most() {
    // So many that one is left while those that failed get nothing for a moment.
    let workers: Vec<String> = (0..60).map(|number| format!("w-{number}")).collect();
    let pair = Pair::ready(&workers.iter().map(String::as_str).collect::<Vec<_>>()).await;
    pair.hive.script([Reply::Error(ErrorCode::WorkerFailed)]);
    for _ in 0..200 {
        let (status, error) = error_of(pair.queen.chat(ALIAS, false).send().await.unwrap()).await;
        assert_eq!((status, &error["code"]), (502, &json!("worker_failed")));
    }
    let sent = pair.hive.forwarded_count();
    assert!((210..=240).contains(&sent), "200 requests were sent {sent} times");
    // What is the client's own fault is never tried again.
    pair.hive.script([Reply::Error(ErrorCode::ValidationFailed)]);
    let (status, _) = error_of(pair.queen.chat(ALIAS, false).send().await.unwrap()).await;
    assert_eq!((status, pair.hive.forwarded_count()), (400, sent + 1));
    let outcomes = outcomes(&pair, "rbee_queen_retries_total").await;
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
}

#[tokio::test]
async fn a_machine_that_takes_requests_and_drops_them_gets_a_fifth_more_at_most() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::NoHead]);
    for _ in 0..60 {
        let (status, error) = error_of(pair.queen.chat(ALIAS, false).send().await.unwrap()).await;
        assert_eq!((status, &error["code"]), (502, &json!("hive_unreachable")));
    }
    let sent = pair.hive.forwarded_count();
    assert!((61..=80).contains(&sent), "60 requests were sent {sent} times");
}
