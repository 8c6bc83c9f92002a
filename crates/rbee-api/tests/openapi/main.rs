//! The documents are true: the schema of a request and its parser accept and refuse the same values, field by field.

#![expect(clippy::indexing_slicing, clippy::panic, reason = "a helper of tests fails them")]

use jsonschema::Validator;
use rbee_api::openai::{ChatRequest, CompletionRequest, EmbeddingRequest, RerankRequest};
use rbee_api::openapi;
use serde_json::{Value, json};

type Accepts = fn(&[u8]) -> bool;

/// The route, the smallest request, and the parser.
fn requests() -> [(&'static str, Value, Accepts); 4] {
    let message = json!({"role": "user", "content": "hi"});
    [
        ("/v1/chat/completions", json!({"model": "m", "messages": [message]}), |b| {
            ChatRequest::parse(b).is_ok()
        }),
        ("/v1/completions", json!({"model": "m", "prompt": "hi"}), |b| {
            CompletionRequest::parse(b).is_ok()
        }),
        ("/v1/embeddings", json!({"model": "m", "input": "hi"}), |b| {
            EmbeddingRequest::parse(b).is_ok()
        }),
        ("/v1/rerank", json!({"model": "m", "query": "q", "documents": ["d"]}), |b| {
            RerankRequest::parse(b).is_ok()
        }),
    ]
}

/// The schema of a route's body, with the components that it refers to.
fn schema(document: &Value, route: &str) -> (Value, Validator) {
    let body = &document["paths"][route]["post"]["requestBody"]["content"]["application/json"];
    let mut schema = body["schema"].clone();
    assert!(schema.is_object(), "{route} has no body in the document");
    schema["components"] = document["components"].clone();
    let validator =
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{route}: {error}"));
    (schema, validator)
}

/// Values of every type, at and around every limit that is in use.
fn probes() -> Vec<Value> {
    let mut all = vec![json!(null), json!(true), json!(false), json!([]), json!({}), json!([[]])];
    let wholes: [i64; 28] = [
        i64::MIN,
        -2_147_483_649,
        -101,
        -100,
        -3,
        -2,
        -1,
        0,
        1,
        2,
        3,
        10,
        11,
        16,
        17,
        20,
        21,
        100,
        101,
        1024,
        65_536,
        65_537,
        1 << 20,
        (1 << 20) + 1,
        4_294_967_295,
        4_294_967_296,
        1 << 62,
        i64::MAX,
    ];
    all.extend(wholes.map(|number| json!(number)));
    all.extend([u64::MAX - 1, u64::MAX].map(|number| json!(number)));
    all.extend([-2.5, -0.5, 0.005, 0.5, 1.5, 99.5, 1e300, -1e300].map(|number| json!(number)));
    for length in [0, 1, 64, 65, 256, 257, 512, 513, 65_536, 65_537] {
        all.push(json!("x".repeat(length)));
    }
    for word in
        ["auto", "none", "required", "low", "default", "float", "base64", "in_memory", "text"]
    {
        all.push(json!(word));
    }
    for count in [1, 4, 5, 32, 33, 128, 129, 256, 257, 1024, 1025, 2048, 2049] {
        all.push(json!(vec!["x"; count]));
        all.push(json!(vec![1; count]));
        all.push(json!(vec![json!([1]); count]));
        let entries = (0..count).map(|id| (id.to_string(), json!(1)));
        all.push(Value::Object(entries.collect()));
    }
    all.extend([
        json!([""]),
        json!([1, "x"]),
        json!([-1]),
        json!([4_294_967_296_i64]),
        json!(["text"]),
    ]);
    all.extend([json!({"-1": 1}), json!({"x": 1}), json!({"+1": 1}), json!({"1": 101})]);
    all.extend([
        json!({"text": "d"}),
        json!([{"text": "d"}]),
        json!([["d"]]),
        json!([{"text": ""}]),
        json!([{"text": "d", "x": 1}]),
    ]);
    all
}

/// Values that only one field knows.
fn own_probes(field: &str) -> Vec<Value> {
    let function = |extra: Value| {
        let mut function = json!({"name": "f"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            function[key] = value.clone();
        }
        json!([{"type": "function", "function": function}])
    };
    let functions = |count: u32| -> Value {
        let named = |at| json!({"type": "function", "function": {"name": format!("f{at}")}});
        (0..count).map(named).collect()
    };
    let schema = |extra: Value| {
        let mut schema = json!({"name": "n", "schema": {}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            schema[key] = value.clone();
        }
        json!({"type": "json_schema", "json_schema": schema})
    };
    match field {
        "tools" => vec![
            function(json!({})),
            function(json!({"description": null, "parameters": null, "strict": null})),
            function(json!({"parameters": {"type": "object"}, "strict": true})),
            function(json!({"parameters": []})),
            function(json!({"description": "x".repeat(16_384)})),
            function(json!({"description": "x".repeat(16_385)})),
            function(json!({"name": ""})),
            function(json!({"name": "a b"})),
            function(json!({"name": "x".repeat(65)})),
            function(json!({"other": 1})),
            functions(128),
            functions(129),
            json!([{"type": "web_search"}]),
            json!([{"type": "function"}]),
        ],
        "tool_choice" => {
            vec![json!({"type": "function"}), json!({"type": "other", "function": {"name": "f"}})]
        }
        "response_format" => vec![
            json!({"type": "text"}),
            json!({"type": "json_object"}),
            json!({"type": "json_schema"}),
            json!({"type": "text", "json_schema": {"name": "n", "schema": {}}}),
            json!({"type": "xml"}),
            json!({"type": "text", "x": 1}),
            schema(json!({})),
            schema(json!({"schema": true})),
            schema(json!({"schema": 1})),
            schema(json!({"name": ""})),
            schema(json!({"name": "a b"})),
            schema(json!({"strict": true, "description": "d"})),
            schema(json!({"x": 1})),
        ],
        "stream_options" => vec![json!({"include_usage": true})],
        "chat_template_kwargs" => vec![
            json!({"enable_thinking": true}),
            json!({"enable_thinking": 1}),
            json!({"a": "x"}),
            json!({"a": null}),
            json!({"a": []}),
            json!({"a-b": 1}),
            json!({"messages": 1}),
            json!({"a": "x".repeat(256)}),
            json!({"a": "x".repeat(257)}),
        ],
        "messages" => messages(),
        _ => Vec::new(),
    }
}

fn messages() -> Vec<Value> {
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let said = |extra: Value| {
        let mut message = json!({"role": "user", "content": "hi"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            message[key] = value.clone();
        }
        message
    };
    let user = said(json!({}));
    let calls = said(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
    vec![
        json!([user]),
        json!(vec![user.clone(); 1024]),
        json!(vec![user.clone(); 1025]),
        json!([said(json!({"role": "developer"}))]),
        json!([said(json!({"role": "other"}))]),
        json!([said(json!({"content": [{"type": "text", "text": "x"}]}))]),
        json!([said(json!({"content": [{"type": "image_url"}]}))]),
        json!([said(json!({"content": [{"type": "text", "text": "x", "more": 1}]}))]),
        json!([said(json!({"content": 1}))]),
        json!([said(json!({"name": "me"}))]),
        json!([said(json!({"name": []}))]),
        json!([said(json!({"refusal": "no"}))]),
        json!([said(json!({"refusal": null, "annotations": [], "audio": null}))]),
        json!([said(json!({"tool_calls": [call]}))]),
        json!([said(json!({"tool_calls": []}))]),
        json!([said(json!({"tool_call_id": "c"}))]),
        json!([said(json!({"parsed": {"a": 1}}))]),
        json!([said(json!({"unknown": 1}))]),
        json!([calls]),
        json!([calls, {"role": "tool", "tool_call_id": "c", "content": "1"}]),
        json!([calls, {"role": "tool", "tool_call_id": "c", "name": "f", "content": "1"}]),
        json!([calls, {"role": "tool", "content": "1"}]),
        json!([said(json!({"reasoning_content": "hm"}))]),
        json!([{"content": "hi"}]),
        json!([["user", "hi"]]),
    ]
}

#[test]
fn a_schema_and_its_parser_accept_and_refuse_the_same_values() {
    let document = openapi::queen();
    let mut probed = 0;
    let mut differ = Vec::new();
    for (route, base, accepts) in requests() {
        let (schema, validator) = schema(&document, route);
        assert!(validator.is_valid(&base) && accepts(base.to_string().as_bytes()), "{route}");
        let fields = schema["properties"].as_object().expect("fields");
        let unknown = ["unknown".to_owned()];
        for field in fields.keys().chain(&unknown) {
            for value in probes().into_iter().chain(own_probes(field)) {
                let mut body = base.clone();
                body[field] = value.clone();
                let accepted = accepts(body.to_string().as_bytes());
                // A schema cannot say that it is the same number as `n`, and says of a name only its alphabet.
                let is_said = accepted || !["best_of", "model"].contains(&field.as_str());
                if is_said && validator.is_valid(&body) != accepted {
                    let shown: String = value.to_string().chars().take(80).collect();
                    differ.push(format!("{route}: {field} = {shown} is accepted: {accepted}"));
                }
                probed += 1;
            }
        }
        for field in schema["required"].as_array().expect("needed fields") {
            let mut body = base.clone();
            body.as_object_mut().expect("an object").remove(field.as_str().expect("a name"));
            assert!(!validator.is_valid(&body) && !accepts(body.to_string().as_bytes()));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(probed > 10_000, "{probed}");
}

#[test]
fn fields_that_depend_on_each_other_do_so_in_the_schema() {
    let document = openapi::queen();
    for (route, base, accepts) in requests().into_iter().take(2) {
        let (_, validator) = schema(&document, route);
        for (fields, good) in [
            (json!({"stream": true, "stream_options": {"include_usage": true}}), true),
            (json!({"stream": false, "stream_options": {"include_usage": true}}), false),
            (json!({"stream_options": {}}), false),
            (json!({"stream_options": null}), true),
        ] {
            let mut body = base.clone();
            for (key, value) in fields.as_object().expect("an object") {
                body[key] = value.clone();
            }
            assert_eq!(accepts(body.to_string().as_bytes()), good, "{fields}");
            assert_eq!(validator.is_valid(&body), good, "{fields}");
        }
    }
}

#[test]
fn names_that_are_accepted_match_their_patterns() {
    let document = openapi::worker();
    let (schemas, hive) = (&document["components"]["schemas"], openapi::hive());
    let of = |name: &str| {
        let both = [&schemas[name], &hive["components"]["schemas"][name]];
        let schema = both.into_iter().find(|schema| schema.is_object()).expect("a schema");
        jsonschema::validator_for(schema).expect("a valid schema")
    };
    let long = "a".repeat(64);
    let texts = [
        "a",
        "w-1",
        "a-",
        "-a",
        "a_b",
        "A",
        "m:tag",
        "m:tag:x",
        "hf:o/r@main:f",
        "file:/a%20b",
        "a b",
        "https://h/p",
        "",
        "a\n",
        "é",
        "\"",
        "'",
        "[]",
        "a\\",
        "!",
        "~",
        &long,
        &"a".repeat(65),
        &"a".repeat(128),
        &"a".repeat(129),
        &"a".repeat(512),
        &"a".repeat(513),
        &"0f".repeat(32),
    ];
    for text in texts {
        let json = json!(text);
        let pairs = [
            ("ModelRef", text.parse::<input_validation::ModelRef>().is_ok()),
            ("WorkerId", text.parse::<input_validation::WorkerId>().is_ok()),
            ("RequestId", text.parse::<input_validation::RequestId>().is_ok()),
            ("Sha256Hex", text.parse::<input_validation::Sha256Hex>().is_ok()),
        ];
        for (name, accepted) in pairs {
            assert!(!accepted || of(name).is_valid(&json), "{name}: {text:?}");
        }
        let exact = ["WorkerId", "RequestId", "Sha256Hex"].iter();
        for name in exact {
            let (_, accepted) = pairs.iter().find(|(n, _)| n == name).expect("a pair");
            assert_eq!(of(name).is_valid(&json), *accepted, "{name}: {text:?}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    for document in [openapi::queen(), openapi::hive(), openapi::worker()] {
        let text = document.to_string();
        let mut references = text.split("\"$ref\":\"#").skip(1).filter_map(|r| r.split('"').next());
        assert!(references.clone().count() > 20);
        assert_eq!(references.find(|pointer| document.pointer(pointer).is_none()), None);
    }
}
