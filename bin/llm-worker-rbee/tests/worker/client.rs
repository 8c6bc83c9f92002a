//! Calls the worker as its hive does, and reads replies and streams apart.

use rbee_api::error::{ErrorBody, ErrorCode, ErrorDetail};
use rbee_api::openai::{ChatChunk, FinishReason};
use rbee_tls::Trust;
use reqwest::{Method, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::process::{MODEL, PATIENCE};

/// One caller.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// What came of a stream.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    pub(crate) text: String,
    pub(crate) chunks: Vec<ChatChunk>,
    pub(crate) error: Option<ErrorDetail>,
    pub(crate) done: bool,
}

impl Client {
    pub(crate) fn new(url: &str, token: Option<&str>) -> Self {
        let tls = Trust::nobody().client_config().unwrap();
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy();
        let http = http.timeout(PATIENCE).build().unwrap();
        Self { http, url: url.to_owned(), token: token.map(str::to_owned) }
    }

    /// The same caller with another token.
    pub(crate) fn with_token(&self, token: Option<&str>) -> Self {
        Self::new(&self.url, token)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        Answer::read(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::read(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        Answer::read(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    /// Asks for a chat reply; `more` is added to the body.
    pub(crate) async fn chat(&self, content: &str, more: Value) -> Answer {
        self.post("/v1/chat/completions", &chat_body(content, more)).await
    }

    /// Begins a stream and returns it as soon as its head is there.
    pub(crate) async fn open_chat(&self, content: &str, more: Value) -> Response {
        let mut body = chat_body(content, more);
        body["stream"] = json!(true);
        let request = self.request(Method::POST, "/v1/chat/completions").json(&body);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{:?}", response.text().await);
        response
    }

    /// Reads a stream to its end.
    pub(crate) async fn stream_chat(&self, content: &str, more: Value) -> Streamed {
        Streamed::read(self.open_chat(content, more).await).await
    }
}

fn chat_body(content: &str, more: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

impl Answer {
    async fn read(response: Response) -> Self {
        Self { status: response.status().as_u16(), body: response.text().await.unwrap() }
    }

    pub(crate) fn json<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap()
    }

    /// The error of an answer that is one.
    pub(crate) fn error(&self) -> ErrorDetail {
        let body: ErrorBody = serde_json::from_str(&self.body).unwrap();
        assert_eq!(self.status, body.error.code.status(), "{}", self.body);
        body.error
    }

    pub(crate) fn code(&self) -> ErrorCode {
        self.error().code
    }
}

impl Streamed {
    pub(crate) async fn read(response: Response) -> Self {
        let mut response = response;
        let mut streamed = Self::default();
        let mut frames = String::new();
        let mut pending = Vec::new();
        // A worker that dies breaks the connection off in the middle.
        while let Ok(Some(bytes)) = response.chunk().await {
            pending.extend_from_slice(&bytes);
        }
        frames.push_str(std::str::from_utf8(&pending).unwrap());
        for frame in frames.split_terminator("\n\n") {
            streamed.take(frame.strip_prefix("data: ").unwrap());
        }
        streamed
    }

    fn take(&mut self, data: &str) {
        assert!(!self.done && self.error.is_none(), "something came after the end: {data}");
        if data == "[DONE]" {
            self.done = true;
        } else if let Ok(body) = serde_json::from_str::<ErrorBody>(data) {
            self.error = Some(body.error);
        } else {
            let chunk: ChatChunk = serde_json::from_str(data).unwrap();
            let delta = chunk.choices.first().and_then(|choice| choice.delta.content.as_deref());
            self.text.push_str(delta.unwrap_or_default());
            self.chunks.push(chunk);
        }
    }

    /// What came of one choice.
    pub(crate) fn choice(&self, index: u32) -> Self {
        let mut of_choice = Self { done: self.done, ..Self::default() };
        for chunk in &self.chunks {
            if let [choice] = chunk.choices.as_slice()
                && choice.index == index
            {
                of_choice.text.push_str(choice.delta.content.as_deref().unwrap_or_default());
                of_choice.chunks.push(chunk.clone());
            }
        }
        of_choice
    }

    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        self.chunks.iter().flat_map(|chunk| &chunk.choices).find_map(|choice| choice.finish_reason)
    }

    /// Name and arguments of the calls, put together as a client does it.
    pub(crate) fn calls(&self) -> Vec<(String, String)> {
        let mut calls: Vec<(String, String)> = Vec::new();
        let choices = self.chunks.iter().flat_map(|chunk| &chunk.choices);
        for delta in choices.flat_map(|choice| &choice.delta.tool_calls) {
            if let Some(name) = &delta.function.name {
                assert_eq!(delta.index as usize, calls.len(), "{delta:?}");
                assert!(delta.id.as_ref().is_some_and(|id| id.starts_with("call_")), "{delta:?}");
                assert_eq!(delta.kind.as_deref(), Some("function"), "{delta:?}");
                calls.push((name.clone(), String::new()));
            }
            calls[delta.index as usize].1.push_str(&delta.function.arguments);
        }
        calls
    }

    /// What the model thought.
    pub(crate) fn reasoning(&self) -> String {
        let choices = self.chunks.iter().flat_map(|chunk| &chunk.choices);
        choices.filter_map(|choice| choice.delta.reasoning_content.as_deref()).collect()
    }

    pub(crate) fn error_code(&self) -> Option<ErrorCode> {
        self.error.as_ref().map(|error| error.code)
    }
}
