//! The table of limits of crates/rbee-api/src/limits.rs, at the limit, one
//! above and ten times it, and every number in every form that is none: at the
//! queen, the hive and the worker, each for itself.

use std::fs;
use std::net::Ipv4Addr;

use e2e::{Cluster, Http, TinyKind, address_of, raw};
use rbee_api::limits;
use secrets_management::Secret;
use serde_json::{Map, Value, json};

/// What a request of some size looks like: the fields that it adds to a plain one.
type Fields = fn(usize) -> Value;

const MIB: usize = 1024 * 1024;

fn text(size: usize) -> String {
    "x".repeat(size)
}

fn tool(name: &str, description: &str, parameters: &Value) -> Value {
    json!({"type": "function", "function": {"name": name, "description": description, "parameters": parameters}})
}

/// A schema whose compact text has so many bytes.
fn schema(size: usize) -> Value {
    let bare = json!({"type": "object", "description": ""}).to_string().len();
    json!({"type": "object", "description": text(size - bare)})
}

fn message(content: Value) -> Value {
    json!({"messages": [{"role": "user", "content": content}]})
}

/// The limits of a chat: field at fault, limit, and what reaches it.
const CHAT: &[(&str, usize, Fields)] = &[
    (
        "messages",
        limits::MESSAGES_MAX,
        |n| json!({"messages": vec![json!({"role": "user", "content": "x"}); n]}),
    ),
    ("messages[0].content", limits::CONTENT_PARTS_MAX, |n| {
        message(json!(vec![json!({"type": "text", "text": "x"}); n]))
    }),
    ("stop", limits::STOP_SEQUENCES_MAX, |n| json!({"stop": vec!["x"; n]})),
    ("stop[0]", limits::STOP_BYTES_MAX, |n| json!({"stop": [text(n)]})),
    ("n", limits::CHOICES_MAX as usize, |n| json!({"n": n})),
    ("max_tokens", limits::MAX_TOKENS_MAX as usize, |n| json!({"max_tokens": n, "stop": "x"})),
    ("repeat_last_n", limits::REPEAT_LAST_N_MAX as usize, |n| json!({"repeat_last_n": n})),
    ("user", limits::USER_BYTES_MAX, |n| json!({"user": text(n)})),
    ("tools", limits::TOOLS_MAX, |n| {
        let tools = (0..n).map(|index| tool(&format!("t{index}"), "", &json!({"type": "object"})));
        json!({"tools": tools.collect::<Vec<_>>(), "tool_choice": "none"})
    }),
    (
        "tools[0].function.name",
        limits::TOOL_NAME_BYTES_MAX,
        |n| json!({"tools": [tool(&text(n), "", &json!({"type": "object"}))], "tool_choice": "none"}),
    ),
    (
        "tools[0].function.description",
        limits::TOOL_DESCRIPTION_BYTES_MAX,
        |n| json!({"tools": [tool("t", &text(n), &json!({"type": "object"}))], "tool_choice": "none"}),
    ),
    (
        "tools[0].function.parameters",
        limits::TOOL_SCHEMA_BYTES_MAX,
        |n| json!({"tools": [tool("t", "", &schema(n))], "tool_choice": "none"}),
    ),
    ("logit_bias", limits::LOGIT_BIAS_MAX, |n| {
        let biases: Map<String, Value> = (0..n).map(|id| (id.to_string(), json!(1))).collect();
        json!({"logit_bias": biases})
    }),
    (
        "top_logprobs",
        limits::TOP_LOGPROBS_MAX as usize,
        |n| json!({"logprobs": true, "top_logprobs": n}),
    ),
    (
        "dry_sequence_breakers",
        limits::DRY_BREAKERS_MAX,
        |n| json!({"dry_sequence_breakers": vec!["x"; n]}),
    ),
    (
        "dry_sequence_breakers[0]",
        limits::DRY_BREAKER_BYTES_MAX,
        |n| json!({"dry_sequence_breakers": [text(n)]}),
    ),
    (
        "response_format.json_schema.schema",
        limits::SCHEMA_BYTES_MAX,
        |n| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema(n)}}}),
    ),
    (
        "response_format.json_schema.name",
        limits::SCHEMA_NAME_BYTES_MAX,
        |n| json!({"response_format": {"type": "json_schema", "json_schema": {"name": text(n), "schema": {"type": "object"}}}}),
    ),
    ("chat_template_kwargs", limits::TEMPLATE_ARGUMENTS_MAX, |n| {
        let arguments: Map<String, Value> =
            (0..n).map(|name| (format!("a{name}"), json!(true))).collect();
        json!({"chat_template_kwargs": arguments})
    }),
];

/// A plain chat with `fields` in the place of its own.
fn chat(fields: &Value) -> Value {
    let mut body =
        json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    let (body_fields, more) =
        (body.as_object_mut().expect("fields"), fields.as_object().expect("fields"));
    body_fields.extend(more.clone());
    body
}

/// The three hops, each with its own credential, and where each takes a chat.
fn hops(cluster: &Cluster) -> [(&'static str, Http, String); 3] {
    let worker = &cluster.workers()[0];
    let (id, url) = (worker["id"].as_str().expect("an id"), worker["url"].as_str().expect("a URL"));
    let key = fs::read(cluster.home().join("secrets/worker.key")).expect("the key");
    let key = Secret::from_bytes(&key, "test").expect("a secret");
    let token = key.derive("worker", id).expect("a secret");
    [
        ("queen", cluster.queen(), "/v1/chat/completions".to_owned()),
        ("hive", cluster.hive(), format!("/api/v1/workers/{id}/v1/chat/completions")),
        ("worker", Http::new(url, Some(token.expose())), "/v1/chat/completions".to_owned()),
    ]
}

fn running() -> Cluster {
    let cluster = Cluster::echo();
    cluster.import_tiny("tiny");
    drop(cluster.rbee(&["infer", "-m", "tiny", "-p", "x"]).ok());
    cluster
}

#[test]
fn every_limit_of_a_chat_is_held_at_every_hop() {
    let cluster = running();
    for (hop, http, path) in hops(&cluster) {
        for (param, limit, fields) in CHAT {
            let at_limit = http.post(&path, &chat(&fields(*limit)));
            // What the request may hold and what the model can take are two bounds.
            // The echo engine, for its part, knows no likelihoods.
            let code = at_limit.code();
            let is_taken = at_limit.status == 200
                || ["context_length_exceeded", "unsupported_parameter"].contains(&code.as_str());
            assert!(is_taken, "{hop} {param} at {limit}: {} {}", at_limit.status, at_limit.body);
            for over in [limit + 1, limit * 10] {
                let reply = http.post(&path, &chat(&fields(over)));
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (400, "validation_failed"),
                    "{hop} {param} {over}"
                );
                let told = reply.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
                assert_eq!(&told, param, "{hop} {over}: {}", reply.body);
            }
        }
        assert_eq!(http.post(&path, &chat(&json!({}))).status, 200, "{hop} is as before");
    }
}

#[test]
fn every_number_in_every_form_is_taken_or_refused_by_name() {
    let cluster = running();
    let numbers = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "typical_p",
        "top_n_sigma",
        "repeat_penalty",
        "repeat_last_n",
        "presence_penalty",
        "frequency_penalty",
        "xtc_probability",
        "xtc_threshold",
        "dry_multiplier",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "seed",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "top_logprobs",
    ];
    let never = [
        "\"NaN\"", "NaN", "1e309", "-1e309", "\"1\"", "true", "[1]", "{}", "Infinity", "1e", "0x1",
        "01",
    ];
    let maybe = [
        "-1",
        "-0",
        "-0.0",
        "9007199254740993",
        "18446744073709551616",
        "1e-400",
        "2147483648",
        "0.5",
        "null",
    ];
    for (hop, http, path) in hops(&cluster) {
        for number in numbers {
            let ask = |value: &str| {
                let rest =
                    "\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]";
                http.post_text(&path, &format!("{{{rest},\"stop\":\"x\",\"{number}\":{value}}}"))
            };
            for value in never {
                let reply = ask(value);
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (400, "validation_failed"),
                    "{hop} {number}={value}"
                );
            }
            for value in maybe {
                let reply = ask(value);
                let param = (reply.status != 200).then(|| reply.json()["error"]["param"].clone());
                let is_named =
                    param.as_ref().is_none_or(|param| param == number || *param == Value::Null);
                assert!(
                    matches!(reply.status, 200 | 400) && is_named,
                    "{hop} {number}={value}: {}",
                    reply.body
                );
            }
        }
        assert_eq!(http.post(&path, &chat(&json!({}))).status, 200, "{hop} is as before");
    }
}

#[test]
fn inputs_and_documents_are_counted() {
    let cluster = Cluster::echo();
    cluster.import_tiny_of("embedder", TinyKind::Embed);
    cluster.import_tiny_of("ranker", TinyKind::Rerank);
    let queen = cluster.queen();
    for (path, param, limit, body) in [
        (
            "/v1/embeddings",
            "input",
            limits::EMBEDDING_INPUTS_MAX,
            (|n| json!({"model": "embedder", "input": vec!["x"; n]})) as Fields,
        ),
        (
            "/v1/rerank",
            "documents",
            limits::RERANK_DOCUMENTS_MAX,
            |n| json!({"model": "ranker", "query": "x", "documents": vec!["x"; n]}),
        ),
    ] {
        assert_eq!(queen.post(path, &body(limit)).status, 200, "{path}");
        for over in [limit + 1, limit * 10] {
            let reply = queen.post(path, &body(over));
            assert_eq!(
                (reply.status, &reply.json()["error"]["param"]),
                (400, &json!(param)),
                "{path} {over}"
            );
        }
    }
}

#[test]
fn bodies_headers_and_nesting_have_an_end_at_every_hop() {
    let cluster = running();
    for (hop, http, path) in hops(&cluster) {
        let sized = |size: usize| {
            let empty = chat(&json!({"wish": ""})).to_string().len();
            chat(&json!({"wish": text(size - empty)})).to_string()
        };
        let at_limit = http.post_text(&path, &sized(limits::BODY_BYTES_MAX));
        assert_eq!(
            (at_limit.status, at_limit.code().as_str()),
            (400, "unsupported_parameter"),
            "{hop}"
        );
        for over in [limits::BODY_BYTES_MAX + 1, 10 * limits::BODY_BYTES_MAX] {
            let reply = http.post_text(&path, &sized(over));
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (413, "payload_too_large"),
                "{hop} {over}"
            );
        }
        for depth in [limits::JSON_DEPTH_MAX + 1, 10 * limits::JSON_DEPTH_MAX, MIB] {
            let nested =
                format!("{{\"model\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
            let reply = http.post_text(&path, &nested);
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (400, "validation_failed"),
                "{hop} {depth}"
            );
        }

        let address = address_of(http.base_url());
        let with_headers = |headers: &str| {
            let request = format!(
                "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
            );
            raw(Ipv4Addr::LOCALHOST, address, request.as_bytes())
        };
        let so_many =
            |count: usize| (2..count).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
        assert_eq!(with_headers(&so_many(limits::HEADERS_MAX)).status, 200, "{hop}");
        for over in [limits::HEADERS_MAX + 1, 10 * limits::HEADERS_MAX] {
            assert_eq!(with_headers(&so_many(over)).status, 431, "{hop} {over}");
        }
        let so_long = |size: usize| format!("X-Long: {}\r\n", text(size));
        assert_eq!(with_headers(&so_long(limits::HEADER_BYTES_MAX - 200)).status, 200, "{hop}");
        for over in [limits::HEADER_BYTES_MAX, 10 * limits::HEADER_BYTES_MAX] {
            // What is far too long may be cut off before the answer is read.
            let status = with_headers(&so_long(over)).status;
            assert!(matches!(status, 431 | 0), "{hop} {over}: {status}");
        }
        assert_eq!(http.post(&path, &chat(&json!({}))).status, 200, "{hop} is as before");
    }
}
