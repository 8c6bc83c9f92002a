//! Bodies: OpenAI's requests, and what the programs tell each other.

use std::fmt::Debug;

use rbee_api::continuation::{Delivered, Mark};
use rbee_api::error::{ErrorBody, ErrorDetail};
use rbee_api::hive::HiveSnapshot;
use rbee_api::limits;
use rbee_api::model::{PullEvent, PullRequest};
use rbee_api::openai::{
    ChatRequest, CompletionRequest, EmbeddingRequest, RequestError, RerankRequest,
};
use rbee_api::worker::{LoadEvent, StartWorker, WorkerHeartbeat, WorkerReady};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Target;

/// Clients' requests.
pub const OPENAI_REQUESTS: Target = Target {
    name: "openai_requests",
    run: |data| {
        match ChatRequest::parse(data) {
            Ok(request) => {
                assert!((1..=limits::MESSAGES_MAX).contains(&request.messages.len()));
                assert!((1..=limits::CHOICES_MAX).contains(&request.generation.choices));
                assert!((0.0..=2.0).contains(&request.generation.sampling.temperature));
            }
            Err(error) => refused(error),
        }
        match CompletionRequest::parse(data) {
            Ok(request) => assert!(request.generation.stop.len() <= limits::STOP_SEQUENCES_MAX),
            Err(error) => refused(error),
        }
        match EmbeddingRequest::parse(data) {
            Ok(request) => {
                assert!((1..=limits::EMBEDDING_INPUTS_MAX).contains(&request.inputs.len()))
            }
            Err(error) => refused(error),
        }
        match RerankRequest::parse(data) {
            Ok(request) => assert!(!request.documents.is_empty() && !request.query.is_empty()),
            Err(error) => refused(error),
        }
    },
    seeds: || {
        let texts = [
            r#"{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"hi"}]}],"temperature":0.5,"stream":true,"stream_options":{"include_usage":true}}"#,
            r#"{"model":"m","messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"1"}],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":{"type":"function","function":{"name":"f"}}}"#,
            r#"{"model":"m","prompt":[1,2,3],"n":2,"logit_bias":{"5":-100},"dry_multiplier":1,"stop":["a","b"],"logprobs":3}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}},"chat_template_kwargs":{"enable_thinking":false}}"#,
            r#"{"model":"m","input":[[1],[2]],"encoding_format":"base64","dimensions":2}"#,
            r#"{"model":"m","query":"q","documents":["d",{"text":"e"}],"top_n":1}"#,
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        "null",
        "true",
        "false",
        "-0",
        "1e309",
        "-1",
        "9007199254740993",
        "\"\"",
        "\\u0000",
        "\\ud800",
        "[",
        "]",
        "{",
        "}",
        ",",
        ":",
        "\"messages\"",
        "\"prompt\"",
        "\"tools\"",
        "\"n\"",
        "\"seed\"",
        "[[[[[[[[",
        "{\"a\":{\"a\":{\"a\":",
    ],
};

/// A refusal names a field in words that can stand in a log line.
fn refused(error: RequestError) {
    let detail = ErrorDetail::from(error);
    assert_eq!(detail.code.status(), 400);
    let param = detail.param.unwrap_or_default();
    assert!(!param.chars().any(char::is_control), "{param:?}");
}

/// What the programs tell each other.
pub const INTERNAL_MESSAGES: Target = Target {
    name: "internal_messages",
    run: |data| {
        read::<HiveSnapshot>(data);
        read::<WorkerHeartbeat>(data);
        read::<WorkerReady>(data);
        read::<StartWorker>(data);
        read::<PullRequest>(data);
        read::<PullEvent>(data);
        read::<LoadEvent>(data);
        read::<ErrorBody>(data);
        read::<Mark>(data);
        read::<Delivered>(data);
    },
    seeds: || {
        let texts = [
            r#"{"epoch":1,"sequence":2,"draining":false,"resources":{"memory_total_bytes":1,"memory_available_bytes":1,"cores":2,"workers_max":8},"models":[],"workers":[]}"#,
            r#"{"sequence":1,"slots_available":8,"requests_running":0,"requests_waiting":0,"engine_steps":42,"is_stepping":false}"#,
            r#"{"reference":"file:/data/m.gguf","alias":"a:b","sha256":null}"#,
            r#"{"event":"progress","load_progress":0.42}"#,
            r#"{"told":[{"index":0,"tokens":[7],"draws":3,"has_ended":true}]}"#,
            r#"{"head":{"id":"r","created":1,"seed":5},"choices":[]}"#,
            r#"{"error":{"message":"m","type":"api_error","code":"worker_failed","param":null,"request_id":null,"retryable":true,"details":{"a":1}}}"#,
        ];
        texts.map(|text| text.as_bytes().to_vec()).into()
    },
    words: &[
        "null",
        "-1",
        "1e9",
        "\"event\"",
        "\"done\"",
        "\"failed\"",
        "\"ready\"",
        "{",
        "}",
        "[",
        "]",
        ",",
        "\\ud800",
    ],
};

/// What can be read can be written, and reads as the same again.
fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) {
    let Ok(message) = serde_json::from_slice::<T>(data) else { return };
    let text = serde_json::to_string(&message).unwrap_or_default();
    let again = serde_json::from_str::<T>(&text).ok();
    assert!(again.is_some(), "{message:?}");
    // The last digit of a fraction may be another when it is read again.
    assert!(text.contains('.') || again.as_ref() == Some(&message), "{message:?}");
}
