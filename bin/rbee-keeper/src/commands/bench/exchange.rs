//! One request and what it went through: when it was due, when each token came, what the server counted, or how it
//! failed. Reads the clock; computes no statistics.

use std::time::Duration;

use bytes::Bytes;
use deadline_propagation::Deadline;
use rbee_http::{CallError, collect};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

use super::chunk;
use super::endpoint::Endpoint;
use crate::error::KeeperError;
use crate::event_stream::EventReader;

/// Most bytes of a server's error that a report repeats.
const MESSAGE_BYTES_MAX: usize = 300;

/// What one request went through. Times are from the start of its run.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) phase: Phase,
    /// When it was due; latency counts from here.
    pub(super) due: Duration,
    /// When it was really sent.
    pub(super) sent: Duration,
    /// When it ended, well or not.
    pub(super) ended: Duration,
    /// Gaps between tokens count when they end after this.
    pub(super) gaps_from: Duration,
    pub(super) outcome: Result<Reply, Failure>,
}

/// A whole reply.
#[derive(Debug, Clone, Default)]
pub(super) struct Reply {
    /// When each piece of text came; never empty.
    pub(super) tokens_at: Vec<Duration>,
    pub(super) completion_tokens: u64,
    pub(super) counted_by: CountedBy,
    pub(super) prompt_tokens: Option<u64>,
    pub(super) cached_tokens: Option<u64>,
    pub(super) text: String,
}

/// Who counted the reply's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CountedBy {
    /// The server, in `usage`.
    Usage,
    /// This program, by the pieces of text, because the server said nothing.
    #[default]
    Deltas,
}

/// How a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) class: FailureClass,
    /// The server's or the system's words, cut to a bearable length.
    pub(super) message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FailureClass {
    /// No connection, or it broke before the reply's head.
    Connection,
    /// The time for the request was over.
    Timeout,
    /// A status that is not a success.
    Status(u16),
    /// An error within the stream.
    ErrorEvent,
    /// The stream ended without `[DONE]`.
    BrokenOff,
    /// An event that is no chunk of a completion.
    Garbled,
    /// A whole stream in which nothing was generated.
    NoText,
}

impl FailureClass {
    /// Names the class for reports.
    pub(super) fn name(self) -> String {
        match self {
            Self::Connection => "connection".to_owned(),
            Self::Timeout => "timeout".to_owned(),
            Self::Status(status) => format!("status_{status}"),
            Self::ErrorEvent => "error_event".to_owned(),
            Self::BrokenOff => "broken_off".to_owned(),
            Self::Garbled => "garbled".to_owned(),
            Self::NoText => "no_text".to_owned(),
        }
    }
}

/// What a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    /// The one phase of a plain scenario.
    Load,
    TurnOne,
    TurnTwo,
    /// The second turn's text, but with nothing of it known.
    Cold,
    /// Streams that run while a long prompt arrives.
    Running,
    /// The long prompt.
    Arriving,
    /// The JSON scenario without a schema.
    Free,
    /// The JSON scenario with its schema.
    Schema,
}

impl Phase {
    /// Names the phase for reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::TurnOne => "turn-one",
            Self::TurnTwo => "turn-two",
            Self::Cold => "cold",
            Self::Running => "running",
            Self::Arriving => "arriving",
            Self::Free => "free",
            Self::Schema => "schema",
        }
    }
}

/// Asks once and reads the reply to its end. `on_token` is called with the number of pieces of text so far. Dropping
/// the future closes the connection.
pub(super) async fn exchange(
    endpoint: &Endpoint,
    path: &str,
    body: Bytes,
    time: Duration,
    run_start: Instant,
    mut on_token: impl FnMut(usize),
) -> Result<Reply, Failure> {
    let deadline = Deadline::after(time);
    let response = endpoint.client.post(path, body, deadline).await.map_err(Failure::from_call)?;
    let status = response.status();
    if !status.is_success() {
        let class = FailureClass::Status(status.as_u16());
        let said = collect(response, deadline).await.map_err(Failure::from_call)?;
        return Err(Failure::new(class, &words(&said)));
    }
    let mut events = EventReader::new(response.bytes_stream(), deadline, time.as_secs());
    let mut reply = Reply::default();
    loop {
        let event = events.next_raw().await.map_err(|error| Failure::from_stream(&error))?;
        let now = run_start.elapsed();
        let Some(event) = event else {
            return Err(Failure::new(FailureClass::BrokenOff, "the stream ended without [DONE]"));
        };
        if &*event.data == "[DONE]" {
            break;
        }
        let chunk = chunk::read(&event.data)
            .map_err(|error| Failure::new(FailureClass::Garbled, &error.to_string()))?;
        if let Some(error) = chunk.error {
            return Err(Failure::new(FailureClass::ErrorEvent, error));
        }
        if let Some(usage) = chunk.usage {
            reply.completion_tokens = usage.completion_tokens;
            reply.prompt_tokens = Some(usage.prompt_tokens);
            reply.cached_tokens = usage.cached_tokens();
            reply.counted_by = CountedBy::Usage;
        }
        if let Some(text) = chunk.text {
            reply.text.push_str(&text);
        }
        if chunk.is_token {
            reply.tokens_at.push(now);
            on_token(reply.tokens_at.len());
        }
    }
    if reply.tokens_at.is_empty() {
        return Err(Failure::new(FailureClass::NoText, "nothing was generated"));
    }
    if reply.counted_by == CountedBy::Deltas {
        reply.completion_tokens = u64::try_from(reply.tokens_at.len()).unwrap_or(u64::MAX);
    }
    Ok(reply)
}

/// What a refusal says to people: the message in the body that OpenAI's
/// dialect has for errors, else the body itself.
fn words(body: &[u8]) -> String {
    let json: Option<Value> = serde_json::from_slice(body).ok();
    let message = json.as_ref().and_then(|json| {
        let error = json.get("error")?;
        error.get("message").unwrap_or(error).as_str()
    });
    message.map_or_else(|| String::from_utf8_lossy(body).into_owned(), ToOwned::to_owned)
}

impl Failure {
    fn new(class: FailureClass, message: &str) -> Self {
        let message = message.trim();
        let end = message.floor_char_boundary(MESSAGE_BYTES_MAX);
        Self { class, message: message.get(..end).unwrap_or_default().to_owned() }
    }

    fn from_call(error: CallError) -> Self {
        match error {
            CallError::TimedOut => Self::new(FailureClass::Timeout, "no answer in time"),
            CallError::Unreachable(source) => {
                Self::new(FailureClass::Connection, &crate::error::root_cause(&source))
            }
            CallError::Refused(_)
            | CallError::Foreign { .. }
            | CallError::Setup(_)
            | CallError::Tls(_) => Self::new(FailureClass::Connection, &error.to_string()),
        }
    }

    fn from_stream(error: &KeeperError) -> Self {
        let class = match error {
            KeeperError::TimedOut { .. } => FailureClass::Timeout,
            // The reader of events knows no other.
            _ => FailureClass::BrokenOff,
        };
        Self::new(class, &error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_server_s_words_whatever_its_dialect() {
        for (body, told) in [
            (r#"{"error":{"code":404,"message":"no such model"}}"#, "no such model"),
            (r#"{"error":"no such model"}"#, "no such model"),
            (r#"{"detail":"Not Found"}"#, r#"{"detail":"Not Found"}"#),
            ("<h1>Bad Gateway</h1>", "<h1>Bad Gateway</h1>"),
            ("", ""),
        ] {
            assert_eq!(words(body.as_bytes()), told);
        }
    }
}
