//! Tools, their calls and results, and thinking.

use super::*;

pub(crate) fn call(id: &str, name: &str) -> Value {
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
