//! Streams of events as a client reads them.

use input_validation::RequestId;
use rbee_api::model::PullEvent;
use rbee_api::worker::LoadEvent;
use rbee_http::{CallError, HopClient, collect, new_request_id};
use serde_json::{Value, json};

use crate::program::soon;

/// Asks for a model to be imported and returns all events.
pub(crate) async fn pull(client: &HopClient, request: &Value) -> Result<Vec<PullEvent>, CallError> {
    let response = client.post_stream("/api/v1/models/pull", request, soon()).await?;
    let body = collect(response, soon()).await?;
    Ok(events(&body).iter().map(|event| serde_json::from_str(event).unwrap()).collect())
}

/// Splits a body into the data of its events.
pub(crate) fn events(body: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(body).unwrap();
    assert!(text.is_empty() || text.ends_with("\n\n"), "the last event is not whole: {text:?}");
    let frames = text.split_terminator("\n\n");
    frames.map(|frame| frame.strip_prefix("data: ").unwrap().to_owned()).collect()
}

/// The events of a load as they come.
pub(crate) struct Load {
    response: reqwest::Response,
    seen: Vec<u8>,
}

impl Load {
    pub(crate) async fn follow(client: &HopClient, worker: &str) -> Result<Self, CallError> {
        let path = format!("/api/v1/workers/{worker}/load");
        Ok(Self { response: client.get_stream(&path, soon()).await?, seen: Vec::new() })
    }

    /// Waits for the next event; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<LoadEvent> {
        loop {
            if let Some(end) = self.seen.windows(2).position(|pair| pair == b"\n\n") {
                let frame: Vec<u8> = self.seen.drain(..end + 2).collect();
                return Some(serde_json::from_str(&events(&frame)[0]).unwrap());
            }
            self.seen.extend_from_slice(&self.response.chunk().await.unwrap()?);
        }
    }
}

/// A chat that is being streamed through a hive.
pub(crate) struct Chat {
    response: reqwest::Response,
    seen: Vec<u8>,
}

impl Chat {
    /// Asks, and waits for the head of the answer.
    pub(crate) async fn begin(
        client: &HopClient,
        worker: &str,
        prompt: &str,
    ) -> Result<Self, CallError> {
        let request = json!({
            "model": "tiny", "stream": true, "max_tokens": 100_000,
            "messages": [{"role": "user", "content": prompt}],
        });
        let path = format!("/api/v1/workers/{worker}/v1/chat/completions");
        let id: RequestId = new_request_id();
        let body = serde_json::to_vec(&request).unwrap().into();
        Ok(Self { response: client.forward(&path, body, &id, soon()).await?, seen: Vec::new() })
    }

    /// Waits for at least one more event.
    pub(crate) async fn more(&mut self) {
        let chunk = self.response.chunk().await.unwrap().expect("the stream goes on");
        self.seen.extend_from_slice(&chunk);
    }

    /// Waits for the end and returns all events.
    pub(crate) async fn rest(mut self) -> Vec<String> {
        while let Some(chunk) = self.response.chunk().await.unwrap() {
            self.seen.extend_from_slice(&chunk);
        }
        events(&self.seen)
    }
}

/// The text of all deltas together.
pub(crate) fn text_of(events: &[String]) -> String {
    let deltas = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    deltas
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect()
}
