//! Requests on their way to a worker and replies on their way back.

use std::time::Duration;

use rbee_api::error::ErrorCode;
use rbee_api::worker::WorkerState;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::daemon::{PATIENCE, error_of, eventually};
use crate::fake_hive::{End, Reply};
use crate::pair::{ALIAS, Pair, REFERENCE};

const DONE: &str = "data: [DONE]\n\n";

fn token(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// Splits a stream into its events and checks that each is whole.
async fn events(reply: Response) -> Vec<String> {
    assert_eq!(reply.status(), 200);
    assert_eq!(reply.headers()["content-type"], "text/event-stream");
    let text = reply.text().await.unwrap();
    assert!(text.ends_with("\n\n"), "{text:?}");
    text.split_inclusive("\n\n").map(str::to_owned).collect()
}

fn error_event(event: &str) -> Value {
    let json = event.strip_prefix("data: ").unwrap();
    serde_json::from_str::<Value>(json).unwrap()["error"].clone()
}

#[tokio::test]
async fn a_reply_and_a_body_pass_as_they_are() {
    let pair = Pair::ready(&["w-1"]).await;
    let reply = r#"{ "id":"chatcmpl-1",  "choices":[] }"#;
    pair.hive.script([Reply::Json(reply)]);
    let body = format!(
        "{{ \"messages\":[{{\"content\":\"h\\u00e9\",\"role\":\"user\"}}],\n\"model\":\"{REFERENCE}\" }}"
    );
    let got = pair
        .queen
        .request(Method::POST, "/v1/chat/completions")
        .header("content-type", "application/json; charset=utf-8")
        .header("x-request-id", "my-id-1")
        .body(body.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(got.headers()["content-type"], "application/json");
    assert_eq!(got.headers()["x-request-id"], "my-id-1");
    assert_eq!(got.text().await.unwrap(), reply);
    let prompt = json!({"model": ALIAS, "prompt": [1, 2, 3]});
    pair.queen.request(Method::POST, "/v1/completions").json(&prompt).send().await.unwrap();
    let sent = pair.hive.forwarded.lock().unwrap().clone();
    assert_eq!((sent[0].worker.as_str(), sent[0].path.as_str()), ("w-1", "chat/completions"));
    assert_eq!(sent[0].body, body);
    assert_eq!(sent[0].request_id, "my-id-1");
    assert_eq!(sent[1].path, "completions");
}

#[tokio::test]
async fn a_stream_passes_event_by_event_to_its_end() {
    let pair = Pair::ready(&["w-1"]).await;
    let whole: Vec<String> =
        (0..50).map(|n| token(&format!("{n} héllo 🐝"))).chain([DONE.to_owned()]).collect();
    // Cut anywhere, also within an event; the client still gets whole events.
    let text = whole.concat();
    let cut: Vec<String> =
        text.chars().collect::<Vec<_>>().chunks(33).map(|c| c.iter().collect()).collect();
    for pieces in [whole.clone(), cut] {
        pair.hive.script([Reply::Events(pieces, End::Whole)]);
        assert_eq!(events(pair.queen.chat(ALIAS, true).send().await.unwrap()).await, whole);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_one_error_event() {
    let pair = Pair::ready(&["w-1"]).await;
    let half = "data: {\"choices\":[{\"del".to_owned();
    for (pieces, end) in [
        (vec![token("a"), half.clone()], End::Broken),
        (vec![token("a"), half], End::Whole),
        (vec![token("a")], End::Broken),
        (vec![token("a")], End::Whole),
    ] {
        pair.hive.script([Reply::Events(pieces, end)]);
        let got = events(pair.queen.chat(ALIAS, true).send().await.unwrap()).await;
        assert_eq!(got.len(), 2, "{got:?}");
        assert_eq!(got[0], token("a"));
        let error = error_event(&got[1]);
        assert_eq!(error["code"], "hive_unreachable");
        assert_eq!(error["message"], "the machine broke off before the reply was complete");
        assert!(error["request_id"].is_string());
    }
    assert_eq!(pair.hive.forwarded_count(), 4, "nothing is tried again after the first byte");
}

#[tokio::test]
async fn an_error_event_of_the_worker_stays_the_only_one() {
    let pair = Pair::ready(&["w-1"]).await;
    let error = "data: {\"error\":{\"message\":\"m\",\"code\":\"internal_error\"}}\n\n".to_owned();
    let pieces = vec![token("a"), error.clone()];
    pair.hive.script([Reply::Events(pieces.clone(), End::Whole)]);
    assert_eq!(events(pair.queen.chat(ALIAS, true).send().await.unwrap()).await, pieces);
}

#[tokio::test]
async fn a_stream_that_outlasts_its_deadline_ends_with_an_error_event() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::Events(vec![token("a")], End::Open)]);
    let request = pair.queen.chat(ALIAS, true).header("x-request-timeout-ms", "300");
    let got = events(request.send().await.unwrap()).await;
    assert_eq!(got[0], token("a"));
    assert_eq!(error_event(&got[1])["code"], "deadline_exceeded");
    timeout(PATIENCE, pair.hive.let_go.notified()).await.expect("the worker is let go");
}

#[tokio::test]
async fn before_the_first_byte_another_worker_is_tried() {
    for (first, stream) in [
        (Reply::Error(ErrorCode::WorkerFailed), false),
        (Reply::Error(ErrorCode::WorkerNotFound), true),
        (Reply::Error(ErrorCode::Draining), true),
        (Reply::Events(Vec::new(), End::Broken), true),
        (Reply::Events(Vec::new(), End::Whole), true),
        (Reply::Events(vec!["{\"id\":".to_owned()], End::Broken), false),
    ] {
        let pair = Pair::ready(&["w-1", "w-2"]).await;
        let second = if stream {
            Reply::Events(vec![token("a"), DONE.to_owned()], End::Whole)
        } else {
            Reply::Json("{}")
        };
        pair.hive.script([first.clone(), second]);
        let reply = pair.queen.chat(ALIAS, stream).send().await.unwrap();
        assert_eq!(reply.status(), 200, "{first:?}");
        let workers: Vec<_> =
            pair.hive.forwarded.lock().unwrap().iter().map(|sent| sent.worker.clone()).collect();
        assert_eq!(workers, ["w-1", "w-2"], "{first:?}");
    }
}

#[tokio::test]
async fn a_machine_that_drops_a_call_is_checked_and_used_again() {
    let pair = Pair::ready(&["w-1"]).await;
    pair.hive.script([Reply::NoHead, Reply::Json("{}")]);
    assert_eq!(pair.queen.chat(ALIAS, false).send().await.unwrap().status(), 200);
    let workers: Vec<_> =
        pair.hive.forwarded.lock().unwrap().iter().map(|sent| sent.worker.clone()).collect();
    assert_eq!(workers, ["w-1", "w-1"], "the worker is not to blame");
    pair.hive.script([Reply::NoHead]);
    let (status, error) = error_of(pair.queen.chat(ALIAS, false).send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (502, &json!("hive_unreachable")));
    assert_eq!(pair.hive.forwarded_count(), 5, "three attempts are enough");
}

#[tokio::test]
async fn three_failures_are_enough() {
    let pair = Pair::ready(&["w-1", "w-2", "w-3", "w-4"]).await;
    pair.hive.script([Reply::Error(ErrorCode::WorkerNotFound)]);
    let (status, error) = error_of(pair.queen.chat(ALIAS, true).send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (502, &json!("worker_failed")));
    assert_eq!(pair.hive.forwarded_count(), 3);
}

#[tokio::test]
async fn a_request_that_two_workers_ended_of_is_not_tried_at_a_third() {
    for stream in [false, true] {
        let pair = Pair::ready(&["w-1", "w-2", "w-3", "w-4"]).await;
        pair.hive.script([Reply::Error(ErrorCode::WorkerFailed)]);
        let reply = pair.queen.chat(ALIAS, stream).send().await.unwrap();
        assert_eq!(reply.headers()["x-should-retry"], "false", "nor by the client");
        let (status, error) = error_of(reply).await;
        assert_eq!((status, &error["code"]), (502, &json!("worker_failed")));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("one after the other"), "{message}");
        assert_eq!(pair.hive.forwarded_count(), 2);
    }
}

#[tokio::test]
async fn a_request_that_never_came_to_its_workers_has_no_part_in_their_end() {
    let pair = Pair::ready(&["w-1", "w-2", "w-3", "w-4"]).await;
    let lost = Reply::NotTaken;
    pair.hive.script([lost.clone(), lost.clone(), lost, Reply::Json("{}")]);
    assert_eq!(pair.queen.chat(ALIAS, false).send().await.unwrap().status(), 200);
    assert_eq!(pair.hive.forwarded_count(), 4);
}

#[tokio::test]
async fn what_another_worker_would_not_do_better_is_passed_on() {
    let pair = Pair::ready(&["w-1", "w-2"]).await;
    for (index, code) in [
        ErrorCode::InsufficientMemory,
        ErrorCode::ContextLengthExceeded,
        ErrorCode::ValidationFailed,
        ErrorCode::InternalError,
        ErrorCode::DeadlineExceeded,
    ]
    .into_iter()
    .enumerate()
    {
        pair.hive.script([Reply::Error(code)]);
        let reply = pair.queen.chat(ALIAS, true).send().await.unwrap();
        let retry_after =
            reply.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        let (status, error) = error_of(reply).await;
        assert_eq!((status, &error["code"]), (code.status(), &json!(code)));
        assert_eq!(retry_after.is_some(), status == 503, "{code}");
        assert_eq!(pair.hive.forwarded_count(), index + 1, "{code}");
    }
}

#[tokio::test]
async fn a_dead_worker_is_replaced_once_its_end_is_reported() {
    let pair = Pair::ready(&["w-9"]).await;
    pair.hive.script([Reply::Error(ErrorCode::WorkerFailed), Reply::Json("{}")]);
    let request = pair.queen.chat(ALIAS, false).send();
    let recovery = async {
        eventually("the first attempt", async || (pair.hive.forwarded_count() == 1).then_some(()))
            .await;
        pair.hive.set_worker("w-9", WorkerState::Failed);
        pair.report().await;
        eventually("the new worker", async || (pair.starts() == 1).then_some(())).await;
        pair.hive.set_worker("w-1", WorkerState::Ready);
        pair.report().await;
    };
    let (reply, ()) = tokio::join!(request, recovery);
    assert_eq!(reply.unwrap().status(), 200);
    assert_eq!(pair.hive.forwarded.lock().unwrap()[1].worker, "w-1");
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_by_the_worker() {
    let pair = Pair::ready(&["w-1"]).await;
    for stream in [true, false] {
        // Without streaming, the reply is still being collected.
        pair.hive.script([Reply::Events(vec![token("a")], End::Open)]);
        let count = pair.hive.forwarded_count();
        let request = tokio::spawn(pair.queen.chat(ALIAS, stream).send());
        eventually("the request arrives", async || {
            (pair.hive.forwarded_count() > count).then_some(())
        })
        .await;
        if stream {
            let mut reply = request.await.unwrap().unwrap();
            assert_eq!(reply.chunk().await.unwrap().unwrap(), token("a"));
            drop(reply);
        } else {
            request.abort();
            assert!(request.await.is_err());
        }
        let noticed = timeout(Duration::from_secs(2), pair.hive.let_go.notified()).await;
        assert!(noticed.is_ok(), "stream = {stream}");
    }
    eventually("nothing runs", async || {
        (pair.queen.get_json("/api/v1/status").await["requests_running"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_are_spread_over_the_workers() {
    let pair = Pair::ready(&["w-1", "w-2"]).await;
    pair.hive.script([Reply::Events(vec![token("a")], End::Open)]);
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(pair.queen.chat(ALIAS, true).send().await.unwrap());
    }
    let mut workers: Vec<_> =
        pair.hive.forwarded.lock().unwrap().iter().map(|sent| sent.worker.clone()).collect();
    workers.sort();
    assert_eq!(workers, ["w-1", "w-1", "w-2", "w-2"]);
    let free = async || {
        let list = pair.queen.get_json("/api/v1/workers").await;
        let list = list["workers"].as_array().unwrap();
        list.iter().map(|worker| worker["slots_available"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(free().await, [2, 2]);
    drop(open);
    eventually("the slots are free without a report", async || {
        (free().await == [4, 4]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_takes_a_slot_for_each_of_its_choices() {
    let pair = Pair::ready(&["w-1", "w-2"]).await;
    pair.hive.script([Reply::Events(vec![token("a")], End::Open)]);
    let body = |choices: u32| {
        json!({"model": ALIAS, "n": choices, "stream": true,
            "messages": [{"role": "user", "content": "hello"}]})
    };
    let mut open = Vec::new();
    for choices in [3, 1, 1, 1] {
        let request = pair.queen.request(Method::POST, "/v1/chat/completions");
        open.push(request.json(&body(choices)).send().await.unwrap());
    }
    let workers: Vec<_> =
        pair.hive.forwarded.lock().unwrap().iter().map(|sent| sent.worker.clone()).collect();
    // Three to the other one before it has as much to do.
    assert_eq!(workers, ["w-1", "w-2", "w-2", "w-2"]);
    let list = pair.queen.get_json("/api/v1/workers").await;
    let free: Vec<_> = list["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| worker["slots_available"].as_u64().unwrap())
        .collect();
    assert_eq!(free, [1, 1]);
}
