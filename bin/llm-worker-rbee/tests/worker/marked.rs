//! Asks for marked streams as the queen does, and reads them as she does: events
//! apart from marks, and what a client makes of the events.

use std::collections::{BTreeMap, BTreeSet};

use rbee_api::continuation::{Delivered, MARK_PREFIX, Mark};
use rbee_api::headers::CLIENT_BYTES;
use reqwest::{Method, Response};
use serde_json::Value;

use crate::process::Worker;

/// What stands between two marks, and what is known after the second one.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) events: Vec<String>,
    /// `None` before the first mark that tells of a choice, and at the end.
    pub(crate) delivered: Option<Delivered>,
}

/// What a client makes of a stream.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Told {
    /// Ids, times and models of all chunks.
    pub(crate) names: BTreeSet<(String, u64, String)>,
    pub(crate) choices: BTreeMap<u64, ChoiceTold>,
    /// Every usage that was told.
    pub(crate) usage: Vec<Value>,
    pub(crate) error: Option<Value>,
    pub(crate) dones: usize,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct ChoiceTold {
    pub(crate) roles: usize,
    pub(crate) text: String,
    pub(crate) reasoning: String,
    /// Id, name and arguments of each call.
    pub(crate) calls: Vec<(String, String, String)>,
    /// What was told of each token.
    pub(crate) logprobs: Vec<Value>,
    pub(crate) ends: Vec<String>,
}

/// Asks for a marked stream, from the beginning or after what was delivered.
pub(crate) async fn open(
    worker: &Worker,
    path: &str,
    body: &Value,
    delivered: Option<&Delivered>,
) -> Response {
    let client = body.to_string();
    let more = delivered.map(|delivered| serde_json::to_string(delivered).unwrap());
    let request = worker
        .client
        .request(Method::POST, path)
        .header("content-type", "application/json")
        .header(CLIENT_BYTES, client.len())
        .body(client + &more.unwrap_or_default());
    request.send().await.unwrap()
}

/// Reads a marked stream to its end.
pub(crate) async fn pieces(
    worker: &Worker,
    path: &str,
    body: &Value,
    delivered: Option<&Delivered>,
) -> Vec<Piece> {
    let response = open(worker, path, body, delivered).await;
    assert_eq!(response.status(), 200, "{:?}", response.text().await);
    let text = response.text().await.unwrap();
    let prefix = std::str::from_utf8(MARK_PREFIX).unwrap();
    let mut known = None;
    let mut pieces = Vec::new();
    let mut events = Vec::new();
    for frame in text.split_terminator("\n\n") {
        let Some(mark) = frame.strip_prefix(prefix) else {
            events.push(frame.strip_prefix("data: ").unwrap().to_owned());
            continue;
        };
        match serde_json::from_str(mark).unwrap() {
            Mark::Head(head) => {
                assert!(known.is_none() && events.is_empty(), "the head comes first and once");
                if let Some(delivered) = delivered {
                    assert_eq!(head, delivered.head);
                }
                known = Some(delivered.cloned().unwrap_or(Delivered::new(head)));
            }
            Mark::Told(told) => {
                let delivered = known.as_mut().unwrap();
                delivered.add(told);
                let events = std::mem::take(&mut events);
                pieces.push(Piece { events, delivered: Some(delivered.clone()) });
            }
            // For the queen's accounts; what clients are told stands in the events.
            Mark::Usage(_) => {}
        }
    }
    pieces.push(Piece { events, delivered: None });
    pieces
}

impl Told {
    pub(crate) fn of<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> Self {
        let mut told = Self::default();
        for event in pieces.into_iter().flat_map(|piece| &piece.events) {
            if event == "[DONE]" {
                told.dones += 1;
                continue;
            }
            let event: Value = serde_json::from_str(event).unwrap();
            if event["error"].is_object() {
                told.error = Some(event["error"].clone());
                continue;
            }
            let text = |name: &str| event[name].as_str().unwrap().to_owned();
            told.names.insert((text("id"), event["created"].as_u64().unwrap(), text("model")));
            if event["usage"].is_object() {
                told.usage.push(event["usage"].clone());
            }
            for choice in event["choices"].as_array().unwrap() {
                let index = choice["index"].as_u64().unwrap();
                told.choices.entry(index).or_default().take(choice);
            }
        }
        told
    }
}

impl ChoiceTold {
    fn take(&mut self, choice: &Value) {
        let delta = &choice["delta"];
        self.roles += usize::from(delta["role"].is_string());
        for text in [&delta["content"], &choice["text"]] {
            self.text.push_str(text.as_str().unwrap_or_default());
        }
        self.reasoning.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            if call["id"].is_string() {
                self.calls.push((
                    text(&call["id"]),
                    text(&call["function"]["name"]),
                    String::new(),
                ));
            }
            let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
            self.calls[index]
                .2
                .push_str(call["function"]["arguments"].as_str().unwrap_or_default());
        }
        let logprobs = &choice["logprobs"];
        self.logprobs.extend(logprobs["content"].as_array().into_iter().flatten().cloned());
        for name in ["tokens", "token_logprobs", "text_offset", "top_logprobs"] {
            let told = logprobs[name].as_array().into_iter().flatten();
            self.logprobs.extend(told.map(|value| serde_json::json!([name, value])));
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.ends.push(reason.to_owned());
        }
    }
}
