//! One request of a client that may break off, and how it ended. A request ends exactly
//! once: done, with an error that has a code, or because its client left.

use std::time::Duration;

use serde_json::{Value, json};

use crate::site::Site;

pub(crate) const CHAT: &str = "/v1/chat/completions";
/// The streams that went on at another worker, in the queen's metrics.
pub(crate) const CONTINUED: &str = "rbee_queen_continuations_total{outcome=\"continued\"}";

/// What a client does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manner {
    /// Waits for the whole reply at once.
    Whole,
    /// Reads a stream to its end.
    Stream,
    /// Leaves after so many events.
    Leave(usize),
}

/// How a request ended, as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    Done,
    /// With this code.
    Refused(String),
    Left,
    /// The connection broke, or there was none: right only when the queen was gone.
    Broken(String),
}

/// Sends one request for `tokens` tokens, each of which takes `delay`.
pub(crate) fn ask(
    site: &Site,
    model: &str,
    manner: Manner,
    tokens: u32,
    delay: Duration,
) -> Ending {
    let Some(queen) = site.try_to_queen() else {
        return Ending::Broken("no queen".to_owned());
    };
    let script = format!("[[tokens={tokens} delay_ms={}]] word", delay.as_millis());
    let is_stream = !matches!(manner, Manner::Whole);
    let body = json!({
        "model": model, "stream": is_stream, "messages": [{"role": "user", "content": script}],
    });
    if !is_stream {
        return match queen.try_call("POST", CHAT, Some(&body)) {
            None => Ending::Broken("no whole reply".to_owned()),
            Some(reply) if reply.status == 200 => Ending::Done,
            Some(reply) => refused(&reply.body),
        };
    }
    let Some((status, events)) = queen.try_stream(CHAT, &body) else {
        return Ending::Broken("no reply".to_owned());
    };
    if status != 200 {
        return Ending::Refused(status.to_string());
    }
    let limit = if let Manner::Leave(events) = manner { events } else { usize::MAX };
    read(events, limit)
}

/// Reads events to the end of the stream, or so many of them.
fn read(events: impl Iterator<Item = String>, limit: usize) -> Ending {
    let mut ending = None;
    for (count, event) in events.enumerate() {
        assert_eq!(ending, None, "something came after the end: {event}");
        if event == "[DONE]" {
            ending = Some(Ending::Done);
        } else if event.starts_with("{\"error\"") {
            ending = Some(refused(&event));
        } else if count >= limit {
            return Ending::Left;
        }
    }
    ending.unwrap_or_else(|| Ending::Broken("a stream without an end".to_owned()))
}

fn refused(body: &str) -> Ending {
    let error: Value = serde_json::from_str(body).unwrap_or_default();
    match error["error"]["code"].as_str() {
        Some(code) if !code.is_empty() => Ending::Refused(code.to_owned()),
        _ => panic!("an error without a code: {body}"),
    }
}

/// Returns the sum of a metric over its labels.
pub(crate) fn metric(text: &str, name: &str) -> f64 {
    let of_it =
        |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let values = text.lines().filter(of_it).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

/// Says which counter of things under way is not zero; the daemons have to run.
pub(crate) fn under_way(site: &Site) -> Option<String> {
    let queen = site.to_queen();
    let running = queen.get("/api/v1/status").json()["requests_running"].clone();
    let gauge = metric(&queen.get("/metrics").body, "rbee_queen_requests_running");
    if running != 0 || gauge != 0.0 {
        return Some(format!("the queen: {running} running, gauge {gauge}"));
    }
    for worker in site.listed()?.iter().filter(|worker| worker["state"] == "ready") {
        let path = format!("/api/v1/workers/{}/metrics", worker["id"].as_str().expect("an id"));
        let text = site.to_hive().get(&path).body;
        for name in ["rbee_worker_requests_running", "rbee_worker_requests_waiting"] {
            let count = metric(&text, name);
            if count != 0.0 {
                return Some(format!("{name} is {count}: {worker}"));
            }
        }
        let placed = queen.get("/api/v1/workers").json();
        let placed = placed["workers"].as_array().expect("a list").clone();
        let same = placed.iter().find(|placed| placed["id"] == worker["id"]);
        if same.is_none_or(|same| same["slots_available"] != same["slots_total"]) {
            return Some(format!("slots are taken: {same:?}"));
        }
    }
    None
}

#[test]
fn a_stream_without_an_end_is_broken_and_one_with_an_error_is_not() {
    let said = |events: &[&str]| read(events.iter().map(|event| (*event).to_owned()), usize::MAX);
    assert_eq!(said(&["{}", "[DONE]"]), Ending::Done);
    assert!(matches!(said(&["{}", "{}"]), Ending::Broken(_)));
    let failed = "{\"error\":{\"code\":\"worker_failed\"}}";
    assert_eq!(said(&["{}", failed]), Ending::Refused("worker_failed".to_owned()));
}
