//! What a client makes of a stream of a chat completion.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Returns all that must be the same however often the worker of the stream was killed:
/// `texts` by choice, `calls` in one text, the number of `roles`, the `ends`, the `usage`.
///
/// # Errors
/// What is wrong with the stream: no `[DONE]`, an error, more than one id or time.
pub fn told(events: &[String]) -> Result<Value, String> {
    let Some((last, events)) = events.split_last() else { return Err("no events".to_owned()) };
    if last != "[DONE]" {
        return Err(format!("it ended with {last}"));
    }
    let (mut texts, mut roles) = (BTreeMap::<u64, String>::new(), 0);
    let (mut ends, mut usage) = (Vec::new(), Vec::new());
    let (mut names, mut calls) = (Vec::new(), String::new());
    for event in events {
        let event: Value = serde_json::from_str(event).map_err(|e| format!("{e}: {event}"))?;
        if !event["error"].is_null() {
            return Err(event.to_string());
        }
        let name = (event["id"].to_string(), event["created"].to_string());
        if !names.contains(&name) {
            names.push(name);
        }
        usage.extend(event["usage"]["completion_tokens"].as_u64());
        for choice in event["choices"].as_array().into_iter().flatten() {
            let delta = &choice["delta"];
            roles += usize::from(delta["role"].is_string());
            let text = texts.entry(choice["index"].as_u64().unwrap_or(u64::MAX)).or_default();
            text.push_str(delta["content"].as_str().unwrap_or_default());
            ends.extend(choice["finish_reason"].as_str().map(str::to_owned));
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                calls.push_str(call["function"]["name"].as_str().unwrap_or_default());
                calls.push_str(call["function"]["arguments"].as_str().unwrap_or_default());
            }
        }
    }
    if names.len() != 1 {
        return Err(format!("not one id and one time: {names:?}"));
    }
    let texts: Vec<String> = texts.into_values().collect();
    Ok(json!({"texts": texts, "calls": calls, "roles": roles, "ends": ends, "usage": usage}))
}
