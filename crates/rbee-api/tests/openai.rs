//! What OpenAI request bodies are taken, refused by name, or refused as wrong.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has to fail"
)]

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::limits;
use rbee_api::openai::{
    ChatRequest, CompletionPrompt, CompletionRequest, EmbeddingEncoding, EmbeddingInput,
    EmbeddingRequest, EmbeddingVector, OutputFormat, RequestError, RerankRequest, Role, Sampling,
    Thinking, ToolChoice,
};
use serde_json::{Value, json};

fn chat_with(extra: Value) -> Result<ChatRequest, RequestError> {
    let mut body =
        json!({"model": "smollm2:135m", "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    ChatRequest::parse(body.to_string().as_bytes())
}

fn completion_with(extra: Value) -> Result<CompletionRequest, RequestError> {
    let mut body = json!({"model": "smollm2:135m", "prompt": "hi"});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    CompletionRequest::parse(body.to_string().as_bytes())
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, RequestError>,
    code: ErrorCode,
    param: &str,
) {
    let detail = ErrorDetail::from(result.unwrap_err());
    assert_eq!((detail.code, detail.param.as_deref()), (code, Some(param)), "{detail:?}");
    assert!(!detail.message.is_empty());
}

#[test]
fn a_parameter_that_is_not_honoured_is_refused_by_name_and_its_neutral_value_is_not() {
    let cases = [
        ("n", json!(2), json!(1)),
        ("functions", json!([{"name": "f"}]), json!([])),
        ("function_call", json!({"name": "f"}), json!("auto")),
        ("service_tier", json!("flex"), json!("auto")),
        ("no_such_thing", json!(1), Value::Null),
    ];
    for (name, refused, neutral) in cases {
        assert_refused(chat_with(json!({name: refused})), ErrorCode::UnsupportedParameter, name);
        if !neutral.is_null() {
            chat_with(json!({name: neutral})).unwrap();
            chat_with(json!({name: null})).unwrap();
        }
    }
    assert_refused(completion_with(json!({"echo": true})), ErrorCode::UnsupportedParameter, "echo");
    assert_refused(
        completion_with(json!({"best_of": 3})),
        ErrorCode::UnsupportedParameter,
        "best_of",
    );
    assert_refused(
        completion_with(json!({"suffix": "x"})),
        ErrorCode::UnsupportedParameter,
        "suffix",
    );
}

#[test]
fn numbers_outside_their_range_or_type_name_their_field() {
    let cases = [
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("temperature", json!("warm")),
        ("top_p", json!(1.01)),
        ("min_p", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("max_completion_tokens", json!(limits::MAX_TOKENS_MAX + 1)),
        ("presence_penalty", json!(2.5)),
        ("repeat_penalty", json!(0)),
        ("repeat_last_n", json!(limits::REPEAT_LAST_N_MAX + 1)),
        ("top_k", json!(-1)),
        ("seed", json!(1.5)),
        ("typical_p", json!(1.1)),
        ("top_n_sigma", json!(-2)),
        ("xtc_probability", json!(1.5)),
        ("xtc_threshold", json!(-0.1)),
        ("dry_multiplier", json!(-1)),
        ("dry_base", json!("x")),
        ("dry_allowed_length", json!(-1)),
        ("dry_penalty_last_n", json!(-2)),
        ("dry_sequence_breakers", json!(vec!["x"; limits::DRY_BREAKERS_MAX + 1])),
        ("min_tokens", json!(limits::MAX_TOKENS_MAX + 1)),
        ("ignore_eos", json!(1)),
        ("logprobs", json!(3)),
        ("top_logprobs", json!(21)),
        ("logit_bias", json!([1])),
        ("logit_bias", json!({"x": 1})),
        ("stream", json!("yes")),
        ("stop", json!(["a", "b", "c", "d", "e"])),
    ];
    for (name, value) in cases {
        assert_refused(chat_with(json!({name: value})), ErrorCode::ValidationFailed, name);
    }
    for (name, value) in
        [("temperature", json!(2.0)), ("top_p", json!(0)), ("stop", json!(["a", "b", "c", "d"]))]
    {
        chat_with(json!({name: value})).unwrap();
    }
    let long = "x".repeat(limits::STOP_BYTES_MAX);
    chat_with(json!({"stop": long})).unwrap();
    assert_refused(
        chat_with(json!({"stop": ["a", format!("{long}x")]})),
        ErrorCode::ValidationFailed,
        "stop[1]",
    );
}

#[test]
fn the_newer_name_of_max_tokens_wins() {
    let request = chat_with(json!({"max_tokens": 5, "max_completion_tokens": 7})).unwrap();
    assert_eq!(request.generation.max_tokens, Some(7));
}

#[test]
fn content_may_be_text_or_text_parts_and_nothing_else() {
    let with =
        |content: Value| chat_with(json!({"messages": [{"role": "user", "content": content}]}));
    let parts =
        with(json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])).unwrap();
    assert_eq!(parts.messages[0].content, "a\nb");
    let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
    assert_refused(with(image), ErrorCode::UnsupportedParameter, "messages[0].content[0]");
    assert_refused(with(json!("a\u{0}b")), ErrorCode::ValidationFailed, "messages[0].content");
    assert_refused(with(json!("")), ErrorCode::ValidationFailed, "messages");
}

#[test]
fn every_role_is_known_and_developer_is_system_to_the_template() {
    let names = ["system", "developer", "user", "assistant", "tool"];
    let mut messages: Vec<Value> =
        names.iter().map(|role| json!({"role": role, "content": "x"})).collect();
    messages[3]["tool_calls"] = json!([call("c1", "f")]);
    messages[4]["tool_call_id"] = json!("c1");
    let request = chat_with(json!({"messages": messages})).unwrap();
    let seen: Vec<&str> = request.messages.iter().map(|m| m.role.template_name()).collect();
    assert_eq!(seen, ["system", "system", "user", "assistant", "tool"]);
    assert_eq!(request.messages[1].role, Role::Developer);
    let robot = json!({"messages": [{"role": "robot", "content": "x"}]});
    assert_refused(chat_with(robot), ErrorCode::ValidationFailed, "messages[0].role");
}

#[test]
fn a_reply_of_ours_can_be_sent_back_as_history() {
    let history = json!({"messages": [
        {"role": "assistant", "content": "x", "refusal": null, "tool_calls": [], "annotations": [],
            "parsed": {"any": "thing"}},
        {"role": "user", "content": "go on"},
    ]});
    chat_with(history).unwrap();
}

fn call(id: &str, name: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": "{\"a\": 1}"}})
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name}})
}

#[test]
fn tools_are_taken_with_all_that_belongs_to_them() {
    let parameters = json!({"type": "object", "properties": {"z": {"type": "string"}, "a": {}}});
    let request = chat_with(json!({
        "tools": [
            {"type": "function", "function": {
                "name": "look_up", "description": "Looks up.", "parameters": parameters,
                "strict": true,
            }},
            tool("b-2"),
        ],
        "tool_choice": {"type": "function", "function": {"name": "b-2"}},
        "parallel_tool_calls": false,
    }))
    .unwrap();
    let options = request.tools;
    assert_eq!(options.tools[0].description, "Looks up.");
    // The model reads the properties in the order in which they were written.
    assert_eq!(options.tools[0].parameters.to_string(), parameters.to_string());
    assert_eq!(options.tools[1].parameters, json!({"type": "object", "properties": {}}));
    assert_eq!(options.choice, ToolChoice::Named("b-2".to_owned()));
    assert_eq!(options.parallel, Some(false));
    for (choice, expected) in [
        (json!("auto"), ToolChoice::Auto),
        (json!("none"), ToolChoice::None),
        (json!("required"), ToolChoice::Required),
        (Value::Null, ToolChoice::Auto),
    ] {
        let request = chat_with(json!({"tools": [tool("f")], "tool_choice": choice})).unwrap();
        assert_eq!(request.tools.choice, expected);
    }
}

#[test]
fn tools_out_of_bounds_are_refused_with_their_place() {
    let wrong = ErrorCode::ValidationFailed;
    let other = ErrorCode::UnsupportedParameter;
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let with = |function: Value| json!([{"type": "function", "function": function}]);
    let big = json!({"type": "object", "description": "x".repeat(limits::TOOL_SCHEMA_BYTES_MAX)});
    let cases = [
        (json!("x"), wrong, "tools"),
        (json!([{"type": "function"}]), wrong, "tools[0].function"),
        (json!([{"type": "web_search"}]), other, "tools[0].type"),
        (json!([named("no spaces")]), wrong, "tools[0].function.name"),
        (json!([named("")]), wrong, "tools[0].function.name"),
        (json!([named(&"x".repeat(65))]), wrong, "tools[0].function.name"),
        (json!([named("f"), named("f")]), wrong, "tools[1].function.name"),
        (json!(vec![named("f"); limits::TOOLS_MAX + 1]), wrong, "tools"),
        (with(json!({"name": "f", "parameters": big})), wrong, "tools[0].function.parameters"),
        (with(json!({"name": "f", "parameters": []})), wrong, "tools[0].function.parameters"),
        (with(json!({"name": "f", "speed": 1})), wrong, "tools[0].function.speed"),
    ];
    for (tools, code, param) in cases {
        assert_refused(chat_with(json!({"tools": tools})), code, param);
    }
    let choices = [
        (json!("sometimes"), wrong, "tool_choice"),
        (named("g"), wrong, "tool_choice.function.name"),
        (json!({"type": "allowed_tools"}), other, "tool_choice"),
    ];
    for (choice, code, param) in choices {
        let request = json!({"tools": [tool("f")], "tool_choice": choice});
        assert_refused(chat_with(request), code, param);
    }
    assert_refused(chat_with(json!({"tool_choice": "required"})), wrong, "tool_choice");
}

#[test]
fn a_reply_is_held_to_a_form_or_may_hold_calls_but_not_both() {
    let unsupported = ErrorCode::UnsupportedParameter;
    let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}}});
    let forms = [
        ("response_format", json!({"type": "json_object"})),
        ("response_format", schema),
        ("grammar", json!("root ::= [x]")),
        ("ignore_eos", json!(true)),
        ("min_tokens", json!(2)),
    ];
    for (name, value) in forms {
        let with = |choice: Value| {
            chat_with(json!({name: value, "tools": [tool("f")], "tool_choice": choice}))
        };
        for choice in [Value::Null, json!("auto"), json!("required")] {
            assert_refused(with(choice), unsupported, name);
        }
        with(json!("none")).unwrap();
        chat_with(json!({name: value, "tools": []})).unwrap();
    }
    chat_with(json!({"response_format": {"type": "text"}, "tools": [tool("f")]})).unwrap();

    // Thoughts would not have the form.
    let json = json!({"type": "json_object"});
    let held = chat_with(json!({"response_format": json})).unwrap();
    assert_eq!(held.thinking.enabled, Some(false));
    let thinks =
        json!({"response_format": json, "chat_template_kwargs": {"enable_thinking": true}});
    assert_refused(chat_with(thinks), unsupported, "chat_template_kwargs.enable_thinking");
}

#[test]
fn calls_and_their_results_are_taken_and_have_to_match() {
    let user = json!({"role": "user", "content": "go"});
    let called = |calls: Value| json!({"role": "assistant", "content": null, "tool_calls": calls});
    let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "4"});
    let with = |messages: Value| chat_with(json!({"messages": messages}));
    let thought = json!({
        "role": "assistant", "content": "So.", "reasoning_content": "Hm.",
        "tool_calls": [call("c1", "f"), call("c2", "f")],
    });
    let request = with(json!([user, thought, result("c2"), result("c1")])).unwrap();
    assert_eq!(request.messages[1].reasoning_content, "Hm.");
    assert_eq!(request.messages[1].tool_calls[1].id, "c2");
    assert_eq!(request.messages[1].tool_calls[1].arguments, "{\"a\": 1}");
    assert_eq!(request.messages[3].tool_call_id.as_deref(), Some("c1"));

    let wrong = ErrorCode::ValidationFailed;
    let said_by_user = json!({"role": "user", "content": "x", "tool_calls": [call("c1", "f")]});
    let mut parsed = call("c1", "f");
    parsed["function"]["parsed_arguments"] = json!({"a": 1});
    with(json!([user, called(json!([parsed]))])).unwrap();
    let half = json!({"id": "c1", "type": "function", "function": {"name": "f"}});
    let cases = [
        (json!([user, called(json!([call("c1", "f")])), result("c2")]), "messages[2].tool_call_id"),
        (json!([user, result("c1")]), "messages[1].tool_call_id"),
        (json!([user, {"role": "tool", "content": "4"}]), "messages[1].tool_call_id"),
        (
            json!([{"role": "user", "content": "x", "tool_call_id": "c"}]),
            "messages[0].tool_call_id",
        ),
        (json!([said_by_user]), "messages[0].tool_calls"),
        (json!([called(json!([call("", "f")]))]), "messages[0].tool_calls[0].id"),
        (json!([called(json!([call("c", "f"), call("c", "f")]))]), "messages[0].tool_calls[1].id"),
        (json!([called(json!([call("c", "f g")]))]), "messages[0].tool_calls[0].function.name"),
        (json!([called(json!([half]))]), "messages[0].tool_calls[0].function"),
    ];
    for (messages, param) in cases {
        assert_refused(with(messages), wrong, param);
    }
}

#[test]
fn thinking_is_asked_for_in_the_ways_that_clients_know() {
    let thinking = |extra: Value| chat_with(extra).map(|request| request.thinking);
    assert_eq!(thinking(json!({})).unwrap(), Thinking::default());
    let off = thinking(json!({"chat_template_kwargs": {"enable_thinking": false}})).unwrap();
    assert_eq!((off.enabled, off.template_arguments.len()), (Some(false), 0));
    assert_eq!(thinking(json!({"reasoning_effort": "none"})).unwrap().enabled, Some(false));
    let high = thinking(json!({"reasoning_effort": "high", "chat_template_kwargs": {"n": 1}}));
    let high = high.unwrap();
    assert_eq!(high.enabled, None);
    assert_eq!(Value::Object(high.template_arguments), json!({"n": 1, "reasoning_effort": "high"}));

    let wrong = ErrorCode::ValidationFailed;
    let many: serde_json::Map<String, Value> =
        (0..=limits::TEMPLATE_ARGUMENTS_MAX).map(|n| (format!("n{n}"), json!(1))).collect();
    let cases = [
        (json!({"reasoning_effort": "huge"}), "reasoning_effort"),
        (json!({"chat_template_kwargs": {"messages": "x"}}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"a b": 1}}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"a": [1]}}), "chat_template_kwargs.a"),
        (json!({"chat_template_kwargs": {"a": "x".repeat(257)}}), "chat_template_kwargs.a"),
        (json!({"chat_template_kwargs": many}), "chat_template_kwargs"),
        (
            json!({"chat_template_kwargs": {"enable_thinking": "no"}}),
            "chat_template_kwargs.enable_thinking",
        ),
    ];
    for (request, param) in cases {
        assert_refused(chat_with(request), wrong, param);
    }
}

#[test]
fn stream_options_need_a_stream() {
    let options = json!({"include_usage": true});
    let alone = json!({"stream_options": options});
    assert_refused(chat_with(alone), ErrorCode::ValidationFailed, "stream_options");
    let request = chat_with(json!({"stream": true, "stream_options": options})).unwrap();
    assert!(request.stream.include_usage);
}

#[test]
fn a_prompt_is_text_or_tokens_and_never_empty() {
    let prompt = |value: Value| completion_with(json!({"prompt": value})).map(|r| r.prompt);
    assert_eq!(prompt(json!("a")).unwrap(), CompletionPrompt::Text("a".to_owned()));
    assert_eq!(prompt(json!(["a"])).unwrap(), CompletionPrompt::Text("a".to_owned()));
    assert_eq!(prompt(json!([1, 2])).unwrap(), CompletionPrompt::Tokens(vec![1, 2]));
    for empty in [json!(""), json!([]), json!([""])] {
        assert_refused(prompt(empty), ErrorCode::ValidationFailed, "prompt");
    }
    assert_refused(prompt(json!(["a", "b"])), ErrorCode::UnsupportedParameter, "prompt");
    assert_refused(prompt(json!([[1]])), ErrorCode::UnsupportedParameter, "prompt");
}

#[test]
fn what_is_not_a_json_object_is_refused_without_panic() {
    for body in ["", "[]", "{", "nul", "\"x\"", "{\"model\":}", &"[".repeat(100_000)] {
        let error = ChatRequest::parse(body.as_bytes()).unwrap_err();
        assert!(matches!(error, RequestError::NotAnObject { .. }), "{error:?}");
    }
    assert_refused(ChatRequest::parse(b"{}"), ErrorCode::ValidationFailed, "model");
    assert_refused(
        ChatRequest::parse(br#"{"model":"a b","messages":[]}"#),
        ErrorCode::ValidationFailed,
        "model",
    );
}

#[test]
fn too_many_messages_are_refused_at_the_limit() {
    let message = json!({"role": "user", "content": "x"});
    let full = vec![message.clone(); limits::MESSAGES_MAX];
    chat_with(json!({"messages": full})).unwrap();
    let over = vec![message; limits::MESSAGES_MAX + 1];
    assert_refused(chat_with(json!({"messages": over})), ErrorCode::ValidationFailed, "messages");
}

fn embedding_with(extra: Value) -> Result<EmbeddingRequest, RequestError> {
    let mut body = json!({"model": "bge:small", "input": "hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    EmbeddingRequest::parse(body.to_string().as_bytes())
}

fn rerank_with(extra: Value) -> Result<RerankRequest, RequestError> {
    let mut body = json!({"model": "bge:rank", "query": "hi", "documents": ["a", "b"]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    RerankRequest::parse(body.to_string().as_bytes())
}

#[test]
fn what_is_embedded_comes_in_four_forms() {
    let inputs = |input: Value| embedding_with(json!({"input": input})).map(|r| r.inputs);
    let text = |text: &str| EmbeddingInput::Text(text.to_owned());
    assert_eq!(inputs(json!("a")).unwrap(), [text("a")]);
    assert_eq!(inputs(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
    assert_eq!(inputs(json!([1, 2])).unwrap(), [EmbeddingInput::Tokens(vec![1, 2])]);
    let lists = [EmbeddingInput::Tokens(vec![1]), EmbeddingInput::Tokens(vec![2, 3])];
    assert_eq!(inputs(json!([[1], [2, 3]])).unwrap(), lists);
    for (wrong, param) in [
        (json!(""), "input"),
        (json!([]), "input"),
        (json!(["a", ""]), "input[1]"),
        (json!([[1], []]), "input[1]"),
        (json!(["a", "b\u{0}"]), "input[1]"),
        (json!(["a", 1]), "input"),
        (json!([-1]), "input"),
        (json!({"text": "a"}), "input"),
        (json!(null), "input"),
        (json!(vec!["a"; limits::EMBEDDING_INPUTS_MAX + 1]), "input"),
    ] {
        assert_refused(inputs(wrong), ErrorCode::ValidationFailed, param);
    }
    assert_eq!(inputs(json!(vec!["a"; limits::EMBEDDING_INPUTS_MAX])).unwrap().len(), 2048);
}

#[test]
fn embeddings_are_numbers_or_base64_of_a_width_if_asked_for() {
    let request = embedding_with(json!({"user": "u"})).unwrap();
    assert_eq!((request.encoding, request.dimensions), (EmbeddingEncoding::Float, None));
    let request = embedding_with(json!({"encoding_format": "base64", "dimensions": 8})).unwrap();
    assert_eq!((request.encoding, request.dimensions), (EmbeddingEncoding::Base64, Some(8)));
    for (extra, code, param) in [
        (json!({"encoding_format": "int8"}), ErrorCode::ValidationFailed, "encoding_format"),
        (json!({"dimensions": 0}), ErrorCode::ValidationFailed, "dimensions"),
        (json!({"dimensions": 1.5}), ErrorCode::ValidationFailed, "dimensions"),
        (json!({"task": "query"}), ErrorCode::UnsupportedParameter, "task"),
    ] {
        assert_refused(embedding_with(extra), code, param);
    }
    let encoded = EmbeddingVector::encode(vec![1.0, -2.5], EmbeddingEncoding::Base64);
    assert_eq!(encoded, EmbeddingVector::Base64("AACAPwAAIMA=".to_owned()));
}

#[test]
fn documents_to_rank_are_texts_or_objects_with_one() {
    let request = rerank_with(json!({"documents": ["a", {"text": "b"}], "top_n": 1})).unwrap();
    assert_eq!((request.documents, request.top_n), (vec!["a".into(), "b".into()], Some(1)));
    assert!(!request.return_documents);
    assert!(rerank_with(json!({"return_documents": true})).unwrap().return_documents);
    for (extra, code, param) in [
        (json!({"query": ""}), ErrorCode::ValidationFailed, "query"),
        (json!({"query": 1}), ErrorCode::ValidationFailed, "query"),
        (json!({"documents": []}), ErrorCode::ValidationFailed, "documents"),
        (json!({"documents": "a"}), ErrorCode::ValidationFailed, "documents"),
        (json!({"documents": ["a", ""]}), ErrorCode::ValidationFailed, "documents[1]"),
        (json!({"documents": ["a", {"title": "b"}]}), ErrorCode::ValidationFailed, "documents[1]"),
        (json!({"top_n": 0}), ErrorCode::ValidationFailed, "top_n"),
        (json!({"rank_fields": ["a"]}), ErrorCode::UnsupportedParameter, "rank_fields"),
    ] {
        assert_refused(rerank_with(extra), code, param);
    }
}

#[test]
fn sampling_steps_are_off_unless_asked_for() {
    let sampling = |extra: Value| chat_with(extra).unwrap().generation.sampling;
    assert_eq!(sampling(json!({})), Sampling::default());
    let off = json!({"typical_p": 1, "top_n_sigma": 0, "dry_multiplier": 0, "xtc_probability": 0,
        "xtc_threshold": 0.2, "dry_base": 2, "logit_bias": {}});
    assert_eq!(sampling(off), Sampling { top_n_sigma: 0.0, ..Sampling::default() });
    // Above a half there is never more than one top choice.
    assert_eq!(sampling(json!({"xtc_probability": 1, "xtc_threshold": 0.6})).xtc, None);
    let xtc = sampling(json!({"xtc_probability": 0.5})).xtc.unwrap();
    assert_eq!((xtc.probability, xtc.threshold), (0.5, 0.1));
    let dry = sampling(json!({"dry_multiplier": 0.8})).dry.unwrap();
    assert_eq!((dry.base, dry.allowed_length, dry.last_n), (1.75, 2, None));
    assert_eq!(dry.breakers, ["\n", ":", "\"", "*"]);
    let dry = json!({"dry_multiplier": 1, "dry_penalty_last_n": 64, "dry_sequence_breakers": []});
    let dry = sampling(dry).dry.unwrap();
    assert_eq!((dry.last_n, dry.breakers.len()), (Some(64), 0));
    assert_eq!(sampling(json!({"dry_multiplier": 1, "dry_penalty_last_n": 0})).dry, None);
    let long = json!({"dry_sequence_breakers": ["ok", ""]});
    assert_refused(chat_with(long), ErrorCode::ValidationFailed, "dry_sequence_breakers[1]");
}

#[test]
fn a_bias_names_a_token_and_stays_in_its_range() {
    let bias = |value: Value| chat_with(json!({"logit_bias": value}));
    let taken = bias(json!({"7": -100, "50256": 1.5})).unwrap().generation.sampling.logit_bias;
    assert_eq!(taken.iter().find(|(token, _)| *token == 50_256), Some(&(50_256, 1.5)));
    assert_eq!(taken.len(), 2);
    assert_refused(bias(json!({"7": 101})), ErrorCode::ValidationFailed, "logit_bias.7");
    let many = |count: usize| (0..count).map(|id| (id.to_string(), json!(1))).collect::<Value>();
    bias(many(limits::LOGIT_BIAS_MAX)).unwrap();
    let refused = bias(many(limits::LOGIT_BIAS_MAX + 1));
    assert_refused(refused, ErrorCode::ValidationFailed, "logit_bias");
}

#[test]
fn log_probabilities_are_asked_for_in_two_ways() {
    let chat = |extra: Value| chat_with(extra).unwrap().generation.logprobs;
    assert_eq!(chat(json!({"logprobs": false, "top_logprobs": 0})), None);
    assert_eq!(chat(json!({"logprobs": true})), Some(0));
    assert_eq!(chat(json!({"logprobs": true, "top_logprobs": 20})), Some(20));
    let alone = chat_with(json!({"top_logprobs": 1}));
    assert_refused(alone, ErrorCode::ValidationFailed, "top_logprobs");
    let completion = |extra: Value| completion_with(extra).map(|r| r.generation.logprobs);
    assert_eq!(completion(json!({})).unwrap(), None);
    assert_eq!(completion(json!({"logprobs": 0})).unwrap(), Some(0));
    assert_refused(completion(json!({"logprobs": 21})), ErrorCode::ValidationFailed, "logprobs");
}

#[test]
fn an_output_format_is_checked_down_to_its_fields() {
    let format = |value: Value| chat_with(json!({"response_format": value}));
    let taken = |value: Value| format(value).unwrap().generation.format;
    assert_eq!(taken(json!({"type": "text"})), OutputFormat::Text);
    assert_eq!(taken(json!({"type": "json_object"})), OutputFormat::JsonObject);
    let schema = |name: &str, schema: Value| {
        json!({"type": "json_schema",
            "json_schema": {"name": name, "description": "x", "strict": false, "schema": schema}})
    };
    assert_eq!(taken(schema("a-B_1", json!({}))), OutputFormat::JsonSchema(json!({})));
    let padding = "x".repeat(limits::SCHEMA_BYTES_MAX);
    for (value, param) in [
        (json!("json"), ""),
        (json!({"type": "xml"}), ".type"),
        (json!({"type": "json_schema"}), ".json_schema"),
        (json!({"type": "text", "json_schema": {"name": "x", "schema": {}}}), ".json_schema"),
        (json!({"type": "json_schema", "json_schema": {"name": "x"}}), ".json_schema"),
        (schema("", json!({})), ".json_schema.name"),
        (schema("a b", json!({})), ".json_schema.name"),
        (schema(&"x".repeat(65), json!({})), ".json_schema.name"),
        (schema("x", json!(5)), ".json_schema.schema"),
        (schema("x", json!({"title": padding})), ".json_schema.schema"),
    ] {
        let param = format!("response_format{param}");
        assert_refused(format(value), ErrorCode::ValidationFailed, &param);
    }
}

#[test]
fn a_grammar_decides_alone_when_the_output_ends() {
    let grammar = json!("root ::= \"x\"");
    let taken = completion_with(json!({"grammar": grammar})).unwrap().generation.format;
    assert_eq!(taken, OutputFormat::Grammar("root ::= \"x\"".to_owned()));
    let long = completion_with(json!({"grammar": "x".repeat(limits::GRAMMAR_BYTES_MAX + 1)}));
    assert_refused(long, ErrorCode::ValidationFailed, "grammar");
    let both = json!({"grammar": grammar, "response_format": {"type": "json_object"}});
    assert_refused(chat_with(both), ErrorCode::ValidationFailed, "grammar");
    for (param, value) in [("ignore_eos", json!(true)), ("min_tokens", json!(1))] {
        let both = json!({"grammar": grammar, param: value});
        assert_refused(chat_with(both), ErrorCode::UnsupportedParameter, param);
        chat_with(json!({param: value})).unwrap();
    }
}
