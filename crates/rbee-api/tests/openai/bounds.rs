//! The table of limits: each value is taken at its limit, and refused one above it and ten times above it, with the
//! place that is blamed.

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::limits;
use rbee_api::openai::{
    ChatRequest, CompletionRequest, EmbeddingRequest, RequestError, RerankRequest,
};
use serde_json::{Map, Value, json};

type Parse = fn(&Value) -> Result<(), RequestError>;

fn bytes(body: &Value) -> Vec<u8> {
    body.to_string().into_bytes()
}

const CHAT: Parse = |body| ChatRequest::parse(&bytes(body)).map(drop);
const COMPLETION: Parse = |body| CompletionRequest::parse(&bytes(body)).map(drop);
const EMBEDDING: Parse = |body| EmbeddingRequest::parse(&bytes(body)).map(drop);
const RERANK: Parse = |body| RerankRequest::parse(&bytes(body)).map(drop);

/// A limit, the field that a value above it is blamed on, and a request with so many or so much of it.
struct Row {
    limit: usize,
    param: &'static str,
    parse: Parse,
    body: fn(usize) -> Value,
}

fn text(length: usize) -> String {
    "x".repeat(length)
}

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let fields = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

fn tools(function: Value) -> Value {
    chat(json!({"tools": [{"type": "function", "function": function}]}))
}

/// A chat whose assistant has made calls with these ids.
fn calls(ids: &[String]) -> Value {
    let call = |id: &String| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let calls: Vec<Value> = ids.iter().map(call).collect();
    let user = json!({"role": "user", "content": "hi"});
    let assistant = json!({"role": "assistant", "content": null, "tool_calls": calls});
    chat(json!({"messages": [user, assistant]}))
}

fn numbered(count: usize, value: &Value) -> Map<String, Value> {
    (0..count).map(|n| (format!("{n}"), value.clone())).collect()
}

fn schema(name: &str, schema: Value) -> Value {
    chat(json!({"response_format": {"type": "json_schema",
        "json_schema": {"name": name, "schema": schema}}}))
}

/// An object of so many bytes.
fn sized(length: usize) -> Value {
    let empty = json!({"description": ""}).to_string().len();
    json!({"description": text(length - empty)})
}

const fn row(limit: usize, param: &'static str, parse: Parse, body: fn(usize) -> Value) -> Row {
    Row { limit, param, parse, body }
}

fn counts() -> Vec<Row> {
    vec![
        row(limits::MESSAGES_MAX, "messages", CHAT, |n| {
            chat(json!({"messages": vec![json!({"role": "user", "content": "hi"}); n]}))
        }),
        row(limits::CONTENT_PARTS_MAX, "messages[0].content", CHAT, |n| {
            let parts = vec![json!({"type": "text", "text": "x"}); n];
            chat(json!({"messages": [{"role": "user", "content": parts}]}))
        }),
        row(limits::STOP_SEQUENCES_MAX, "stop", CHAT, |n| chat(json!({"stop": vec!["x"; n]}))),
        row(limits::STOP_BYTES_MAX, "stop[0]", CHAT, |n| chat(json!({"stop": text(n)}))),
        row(limits::CHOICES_MAX as usize, "n", CHAT, |n| chat(json!({"n": n}))),
        row(limits::MAX_TOKENS_MAX as usize, "max_tokens", CHAT, |n| {
            chat(json!({"max_tokens": n}))
        }),
        row(limits::REPEAT_LAST_N_MAX as usize, "repeat_last_n", CHAT, |n| {
            chat(json!({"repeat_last_n": n}))
        }),
        row(limits::USER_BYTES_MAX, "user", CHAT, |n| chat(json!({"user": text(n)}))),
        row(
            limits::EMBEDDING_INPUTS_MAX,
            "input",
            EMBEDDING,
            |n| json!({"model": "m", "input": vec!["x"; n]}),
        ),
        row(
            limits::RERANK_DOCUMENTS_MAX,
            "documents",
            RERANK,
            |n| json!({"model": "m", "query": "q", "documents": vec!["x"; n]}),
        ),
        row(limits::TOOLS_MAX, "tools", CHAT, |n| {
            let tool = |n| json!({"type": "function", "function": {"name": format!("f{n}")}});
            chat(json!({"tools": (0..n).map(tool).collect::<Vec<_>>()}))
        }),
    ]
}

fn tools_and_forms() -> Vec<Row> {
    vec![
        row(limits::TOOL_NAME_BYTES_MAX, "tools[0].function.name", CHAT, |n| {
            tools(json!({"name": text(n)}))
        }),
        row(limits::TOOL_DESCRIPTION_BYTES_MAX, "tools[0].function.description", CHAT, |n| {
            tools(json!({"name": "f", "description": text(n)}))
        }),
        row(limits::TOOL_SCHEMA_BYTES_MAX, "tools[0].function.parameters", CHAT, |n| {
            tools(json!({"name": "f", "parameters": sized(n)}))
        }),
        row(limits::TOOL_CALLS_MAX, "messages[1].tool_calls", CHAT, |n| {
            calls(&(0..n).map(|n| format!("c{n}")).collect::<Vec<_>>())
        }),
        row(limits::TOOL_CALL_ID_BYTES_MAX, "messages[1].tool_calls[0].id", CHAT, |n| {
            calls(&[text(n)])
        }),
        row(limits::TEMPLATE_ARGUMENTS_MAX, "chat_template_kwargs", CHAT, |n| {
            let arguments: Map<String, Value> =
                (0..n).map(|n| (format!("n{n}"), json!(1))).collect();
            chat(json!({"chat_template_kwargs": arguments}))
        }),
        row(limits::TEMPLATE_ARGUMENT_BYTES_MAX, "chat_template_kwargs.a", CHAT, |n| {
            chat(json!({"chat_template_kwargs": {"a": text(n)}}))
        }),
        row(limits::LOGIT_BIAS_MAX, "logit_bias", CHAT, |n| {
            chat(json!({"logit_bias": numbered(n, &json!(1))}))
        }),
        row(limits::TOP_LOGPROBS_MAX as usize, "top_logprobs", CHAT, |n| {
            chat(json!({"logprobs": true, "top_logprobs": n}))
        }),
        row(limits::DRY_BREAKERS_MAX, "dry_sequence_breakers", CHAT, |n| {
            chat(json!({"dry_sequence_breakers": vec!["x"; n]}))
        }),
        row(limits::DRY_BREAKER_BYTES_MAX, "dry_sequence_breakers[0]", CHAT, |n| {
            chat(json!({"dry_sequence_breakers": [text(n)]}))
        }),
        row(limits::SCHEMA_BYTES_MAX, "response_format.json_schema.schema", CHAT, |n| {
            schema("s", sized(n))
        }),
        row(limits::SCHEMA_NAME_BYTES_MAX, "response_format.json_schema.name", CHAT, |n| {
            schema(&text(n), json!({}))
        }),
        row(
            limits::GRAMMAR_BYTES_MAX,
            "grammar",
            COMPLETION,
            |n| json!({"model": "m", "prompt": "hi", "grammar": text(n)}),
        ),
    ]
}

#[test]
fn every_limit_is_taken_at_its_value_and_refused_above_it() {
    for Row { limit, param, parse, body } in counts().into_iter().chain(tools_and_forms()) {
        if let Err(error) = parse(&body(limit)) {
            panic!("{param} at {limit}: {:?}", ErrorDetail::from(error));
        }
        for above in [limit + 1, limit * 10] {
            let Err(error) = parse(&body(above)) else { panic!("{param} of {above} is taken") };
            let detail = ErrorDetail::from(error);
            let blamed = detail.param.as_deref().unwrap_or_default();
            assert_eq!(
                (detail.code, blamed),
                (ErrorCode::ValidationFailed, param),
                "{above}: {detail:?}"
            );
            assert!(detail.message.len() < 400, "{param}: an answer as long as the question");
        }
    }
}
