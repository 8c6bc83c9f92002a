//! What OpenAI request bodies are taken, refused by name, or refused as wrong.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has to fail"
)]

mod bounds;
mod embedding;
mod sampling;
mod tools;

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
        ("functions", json!([{"name": "f"}]), json!([])),
        ("function_call", json!({"name": "f"}), json!("auto")),
        ("service_tier", json!("flex"), json!("auto")),
        ("cache_prompt", json!(false), json!(true)),
        ("prompt_cache_retention", json!("24h"), json!("in_memory")),
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
        ("n", json!(0)),
        ("n", json!(limits::CHOICES_MAX + 1)),
        ("n", json!(1.5)),
        ("n", json!("two")),
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
fn one_choice_is_made_unless_more_are_asked_for() {
    for (more, choices) in
        [(json!({}), 1), (json!({"n": null}), 1), (json!({"n": 1}), 1), (json!({"n": 16}), 16)]
    {
        assert_eq!(chat_with(more.clone()).unwrap().generation.choices, choices, "{more}");
        assert_eq!(completion_with(more.clone()).unwrap().generation.choices, choices, "{more}");
    }
}

#[test]
fn the_best_of_more_choices_than_are_returned_is_refused() {
    for allowed in [json!({"best_of": 1}), json!({"n": 3, "best_of": 3}), json!({"best_of": null})]
    {
        completion_with(allowed).unwrap();
    }
    for refused in
        [json!({"best_of": 3}), json!({"n": 2, "best_of": 3}), json!({"n": 2, "best_of": 1})]
    {
        assert_refused(completion_with(refused), ErrorCode::UnsupportedParameter, "best_of");
    }
    let wrong = completion_with(json!({"best_of": "all"}));
    assert_refused(wrong, ErrorCode::ValidationFailed, "best_of");
    assert_refused(chat_with(json!({"best_of": 1})), ErrorCode::UnsupportedParameter, "best_of");
}

#[test]
fn the_newer_name_of_max_tokens_wins() {
    let request = chat_with(json!({"max_tokens": 5, "max_completion_tokens": 7})).unwrap();
    assert_eq!(request.generation.max_tokens, Some(7));
}

#[test]
fn a_user_has_two_names_and_a_key_for_the_cache_changes_nothing() {
    let user = |extra: Value| chat_with(extra).unwrap().generation.user;
    assert_eq!(user(json!({"user": "a"})).as_deref(), Some("a"));
    assert_eq!(user(json!({"safety_identifier": "b", "user": "a"})).as_deref(), Some("b"));
    assert_eq!(user(json!({"prompt_cache_key": "k"})), None);
    let long = "x".repeat(limits::USER_BYTES_MAX + 1);
    for name in ["user", "safety_identifier", "prompt_cache_key"] {
        assert_refused(chat_with(json!({name: long})), ErrorCode::ValidationFailed, name);
    }
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
    let marked = json!([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]);
    assert_eq!(with(marked).unwrap().messages[0].content, "a");
    let unknown =
        json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b", "tone": "high"}]);
    assert_refused(with(unknown), ErrorCode::UnsupportedParameter, "messages[0].content[1].tone");
    assert_refused(with(json!("a\u{0}b")), ErrorCode::ValidationFailed, "messages[0].content");
    assert_refused(with(json!("")), ErrorCode::ValidationFailed, "messages");
}

#[test]
fn every_role_is_known_and_developer_is_system_to_the_template() {
    let names = ["system", "developer", "user", "assistant", "tool"];
    let mut messages: Vec<Value> =
        names.iter().map(|role| json!({"role": role, "content": "x"})).collect();
    messages[3]["tool_calls"] = json!([tools::call("c1", "f")]);
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
