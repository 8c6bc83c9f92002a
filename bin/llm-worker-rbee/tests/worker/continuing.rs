//! A reply goes on after every mark as if nothing had happened: what a client
//! had of it and what comes then are the reply of one undisturbed run.

use rbee_api::error::ErrorBody;
use serde_json::{Value, json};

use crate::marked::{Piece, Told, open, pieces};
use crate::process::{MODEL, Worker};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const SHA: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn body(path: &str, content: &str, more: &Value) -> Value {
    let mut body =
        json!({"model": MODEL, "stream": true, "stream_options": {"include_usage": true}});
    match path {
        CHAT => body["messages"] = json!([{"role": "user", "content": content}]),
        _ => body["prompt"] = json!(content),
    }
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Goes on at `other` after each mark of a reply of `worker`, and returns how many there were.
async fn goes_on_everywhere(worker: &Worker, other: &Worker, path: &str, body: &Value) -> usize {
    tokens_at_marks(worker, other, path, body).await.len()
}

/// As `goes_on_everywhere`; returns how many tokens had been delivered at each mark.
async fn tokens_at_marks(worker: &Worker, other: &Worker, path: &str, body: &Value) -> Vec<usize> {
    let whole = pieces(worker, path, body, None).await;
    let expected = uncached(Told::of(&whole));
    assert_eq!((expected.dones, expected.names.len(), &expected.error), (1, 1, &None), "{body}");
    assert_eq!(expected.usage.len(), 1, "{body}");
    for (at, piece) in (1..).zip(&whole) {
        let Some(delivered) = &piece.delivered else { continue };
        let mut both: Vec<Piece> = whole[..at].to_vec();
        both.extend(pieces(other, path, body, Some(delivered)).await);
        assert_eq!(uncached(Told::of(&both)), expected, "after {at} marks of {body}");
    }
    let delivered = whole.iter().filter_map(|piece| piece.delivered.as_ref());
    delivered.map(|delivered| delivered.choices.iter().map(|c| c.tokens.len()).sum()).collect()
}

/// Where a choice waits for the prompt of another one, the worker that goes on
/// has not computed what the first one had.
fn uncached(mut told: Told) -> Told {
    if told.choices.len() > 1 {
        let details = |usage: &mut Value| usage["prompt_tokens_details"].take();
        told.usage.iter_mut().for_each(|usage| drop(details(usage)));
    }
    told
}

/// A call in the form of models that were trained for none.
fn call(arguments: &str) -> String {
    format!("<tool_call>\n{{\"name\": \"add\", \"arguments\": {arguments}}}\n</tool_call>")
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {
        "a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}},
    }});
    json!([{"type": "function", "function": {"name": "add", "parameters": parameters}}])
}

#[tokio::test]
async fn plain_text_goes_on_after_every_token() {
    let (one, other) = tokio::join!(Worker::start(&[]), Worker::start(&["--slots=2"]));
    for path in [CHAT, COMPLETIONS] {
        for (content, more, marks) in [
            ("[[delay_ms=2]] one two three four five six", json!({}), 5),
            ("[[tokens=40 delay_ms=2]] a b", json!({"max_tokens": 12}), 8),
            // The stop sequence lies over any cut.
            ("[[bytes=1 delay_ms=2 text=so it ENDS here]]", json!({"stop": ["ENDS"]}), 4),
            ("[[bytes=2 delay_ms=2 text=so it ENDS here]]", json!({"stop": ["ENDX", "S h"]}), 4),
            // So do characters.
            (
                "[[bytes=1 delay_ms=2 text=\u{1f41d}\u{6c49}\u{5b57}na\u{ef}ve\u{1f469}]]",
                json!({}),
                4,
            ),
            ("[[bytes=3 delay_ms=2 text=\u{1f41d}\u{1f1e9}\u{1f1ea} \u{6c49}]]", json!({}), 2),
        ] {
            let told = goes_on_everywhere(&one, &other, path, &body(path, content, &more)).await;
            assert!(told >= marks, "{content}: only {told} marks");
        }
    }
}

#[tokio::test]
async fn what_is_drawn_goes_on_with_the_same_numbers() {
    let (one, other) = tokio::join!(Worker::start(&[]), Worker::start(&[]));
    let content = "[[draw=1 tokens=30 delay_ms=2]] a b c d e f g h i j";
    let xtc = json!({"xtc_probability": 0.5, "xtc_threshold": 0.01, "min_p": 0.0});
    for more in [json!({}), json!({"seed": 7}), json!({"seed": 7, "n": 3}), xtc] {
        let body = body(CHAT, content, &more);
        assert!(goes_on_everywhere(&one, &other, CHAT, &body).await >= 10, "{more}");
    }
}

#[tokio::test]
async fn thoughts_and_calls_go_on_where_they_were() {
    let (one, other) = tokio::join!(Worker::start(&[]), Worker::start(&[]));
    let both = format!("{}\n{}", call("{\"a\": 1, \"b\": [2]}"), call("{\"a\": 3}"));
    let broken = "<tool_call>\n{\"name\": \"subtract\"}\n</tool_call> and more";
    for bytes in [1, 3, 7] {
        for text in [
            format!("<think>\nHm \u{1f41d}, well.\n</think>\n\nSo:\n{both}"),
            "No call < at <tool all.".to_owned(),
            broken.to_owned(),
        ] {
            let content = format!("[[bytes={bytes} delay_ms=1 text={text}]]");
            for n in [1, 2] {
                let more = json!({"tools": tools(), "n": n});
                goes_on_everywhere(&one, &other, CHAT, &body(CHAT, &content, &more)).await;
            }
        }
    }
}

#[tokio::test]
async fn arguments_that_are_told_while_they_are_written_go_on() {
    let (one, other) = tokio::join!(Worker::start(&[]), Worker::start(&[]));
    let long = "word ".repeat(30);
    let text = call(&format!("{{\"a\": 1, \"c\": \"{long}\"}}"));
    let content = format!("[[delay_ms=4 bytes=4 text={text}]]");
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "c": {"type": "string"}}}}}]);
    let body = body(CHAT, &content, &json!({"tools": tools}));
    let marks = goes_on_everywhere(&one, &other, CHAT, &body).await;
    assert!(marks >= 4, "the call was told with {marks} marks only");
}

#[tokio::test]
async fn choices_that_have_ended_are_not_made_again() {
    let (one, other) = tokio::join!(Worker::start(&["--slots=1"]), Worker::start(&[]));
    // One slot: the choices come one after the other.
    let mut left = 0;
    for path in [CHAT, COMPLETIONS] {
        let body = body(path, "[[delay_ms=2]] one two three four", &json!({"n": 3}));
        let delivered = tokens_at_marks(&one, &other, path, &body).await;
        assert!(delivered.len() >= 8, "{delivered:?}");
        left += delivered.iter().map(|tokens| 3 * 4 - tokens).sum::<usize>();
    }
    let made = other.metric("rbee_worker_generated_tokens_total").await;
    assert_eq!(made as usize, left, "only what was not delivered is generated");
}

#[tokio::test]
async fn only_a_stream_that_is_asked_for_with_marks_has_them() {
    let worker = Worker::start(&[]).await;
    let asked = body(CHAT, "one two", &json!({}));
    let plain = worker.client.request(reqwest::Method::POST, CHAT).json(&asked);
    let text = plain.send().await.unwrap().text().await.unwrap();
    assert!(!text.contains(": rbee"), "{text}");
    let mut whole = asked.clone();
    whole["stream"] = json!(false);
    whole.as_object_mut().unwrap().remove("stream_options");
    let reply = open(&worker, CHAT, &whole, None).await.text().await.unwrap();
    assert!(reply.starts_with('{') && !reply.contains(": rbee"), "{reply}");
}

#[tokio::test]
async fn what_cannot_go_on_is_refused_with_its_reason() {
    let another = SHA.replace('a', "b");
    let (ours, theirs) =
        (["--model-sha256", SHA], ["--model-sha256", another.as_str(), "--context=10"]);
    let (one, other) = tokio::join!(Worker::start(&ours), Worker::start(&theirs));
    let asked = body(CHAT, "[[tokens=12 delay_ms=2]] one two", &json!({}));
    let whole = pieces(&one, CHAT, &asked, None).await;
    let last = whole.iter().rev().find_map(|piece| piece.delivered.clone()).unwrap();
    assert_eq!(last.head.model_sha256.as_ref().unwrap().to_string(), SHA);
    let refused = async |delivered, message: &str| {
        let response = open(&other, CHAT, &asked, Some(&delivered)).await;
        let status = response.status().as_u16();
        let body: ErrorBody = response.json().await.unwrap();
        assert!(body.error.message.contains(message), "{status} {body:?}");
        body.error.code.to_string()
    };
    assert_eq!(refused(last.clone(), "another model file").await, "worker_failed");
    let mut nameless = last.clone();
    nameless.head.model_sha256 = None;
    assert_eq!(refused(nameless.clone(), "context has room").await, "worker_failed");
    let mut impossible = nameless.clone();
    impossible.choices[0].draws = u64::MAX;
    assert_eq!(refused(impossible, "no reply to it").await, "validation_failed");
    let mut ended = nameless.clone();
    ended.choices[0].has_ended = true;
    assert_eq!(refused(ended, "no reply to it").await, "validation_failed");
    let mut stranger = nameless;
    stranger.choices[0].index = 1;
    assert_eq!(refused(stranger, "no reply to it").await, "validation_failed");
}
