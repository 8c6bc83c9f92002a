//! Steps of sampling, log probabilities and the form of the output.

use super::*;

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
    let many = chat_with(json!({"logprobs": true, "top_logprobs": limits::TOP_LOGPROBS_MAX + 1}));
    assert_refused(many, ErrorCode::ValidationFailed, "top_logprobs");
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
