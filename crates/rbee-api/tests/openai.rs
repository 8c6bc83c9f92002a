//! What OpenAI request bodies are taken, refused by name, or refused as wrong.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has to fail"
)]

use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::limits;
use rbee_api::openai::{
    ChatRequest, CompletionPrompt, CompletionRequest, RequestError, Role, Thinking, ToolChoice,
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
        ("logprobs", json!(true), json!(false)),
        ("functions", json!([{"name": "f"}]), json!([])),
        ("function_call", json!({"name": "f"}), json!("auto")),
        ("response_format", json!({"type": "json_object"}), json!({"type": "text"})),
        ("logit_bias", json!({"1": 2}), json!({})),
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
