//! OpenAI's requests as JSON schemas, with the limits and words of the parsers in [`crate::openai`]. What depends on two
//! fields at once stands here as far as a schema can say it; the parsers alone decide.

use input_validation::ModelRef;
use serde_json::{Map, Value, json};

use super::operation::Schemas;
use crate::limits;

/// The name of a model, as a reference.
pub(super) fn model(schemas: &mut Schemas) -> Value {
    schemas.reply::<ModelRef>()
}

/// `POST /v1/chat/completions`.
pub(super) fn chat(model: &Value) -> Value {
    let mut fields = generation();
    fields.extend(fields_of(json!({
        "tools": optional(&json!({"type": "array", "items": tool(), "maxItems": limits::TOOLS_MAX})),
        "tool_choice": optional(&json!({"anyOf": [
            {"enum": ["auto", "none", "required"]},
            {
                "type": "object",
                "properties": {"type": {"const": "function"}, "function": {
                    "type": "object", "properties": {"name": text(0, None)}, "required": ["name"],
                }},
                "required": ["type", "function"],
            },
        ]})),
        "parallel_tool_calls": optional(&json!({"type": "boolean"})),
        "functions": optional(&json!({"const": []})),
        "function_call": optional(&json!({"enum": ["none", "auto"]})),
        "reasoning_effort": optional(
            &json!({"enum": ["none", "minimal", "low", "medium", "high", "xhigh"]}),
        ),
        "chat_template_kwargs": optional(&template_arguments()),
        "logprobs": optional(&json!({"type": "boolean"})),
        "top_logprobs": whole(0, Some(limits::TOP_LOGPROBS_MAX.into())),
        "store": optional(&json!({"const": false})),
        "metadata": optional(&json!({"const": {}})),
        "modalities": optional(&json!({"const": ["text"]})),
        "service_tier": optional(&json!({"enum": ["auto", "default"]})),
    })));
    fields.insert("model".to_owned(), model.clone());
    fields.insert(
        "messages".to_owned(),
        json!({
            "type": "array", "items": message(),
            "minItems": 1, "maxItems": limits::MESSAGES_MAX,
            "description": "At least one has text or calls tools.",
        }),
    );
    let rules = [
        stream_options_need_a_stream(),
        json!({
            "if": {
                "properties": {"tool_choice": {"anyOf": [{"const": "required"}, {"type": "object"}]}},
                "required": ["tool_choice"],
            },
            "then": {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]},
        }),
        json!({
            "if": {"properties": {"top_logprobs": {"type": "integer", "minimum": 1}}, "required": ["top_logprobs"]},
            "then": {"properties": {"logprobs": {"const": true}}, "required": ["logprobs"]},
        }),
    ];
    body(fields, &["model", "messages"], &rules)
}

/// `POST /v1/completions`.
pub(super) fn completion(model: &Value) -> Value {
    let mut fields = generation();
    fields.extend(fields_of(json!({
        "logprobs": whole(0, Some(limits::TOP_LOGPROBS_MAX.into())),
        "echo": optional(&json!({"const": false})),
        "best_of": described(
            &whole(1, Some(limits::CHOICES_MAX.into())), "The same number as `n`.",
        ),
        "suffix": optional(&json!({"const": ""})),
        "prompt": {"anyOf": [
            text(1, None),
            {"type": "array", "items": token(), "minItems": 1, "maxItems": limits::MAX_TOKENS_MAX},
            {"type": "array", "items": text(1, None), "minItems": 1, "maxItems": 1},
        ]},
    })));
    fields.insert("model".to_owned(), model.clone());
    body(fields, &["model", "prompt"], &[stream_options_need_a_stream()])
}

/// `POST /v1/embeddings`.
pub(super) fn embeddings(model: &Value) -> Value {
    let most = limits::EMBEDDING_INPUTS_MAX;
    let tokens = json!({"type": "array", "items": token(), "minItems": 1});
    let mut fields = user();
    fields.extend(fields_of(json!({
        "model": model,
        "input": {"anyOf": [
            text(1, None),
            {"type": "array", "items": text(1, None), "minItems": 1, "maxItems": most},
            tokens,
            {"type": "array", "items": tokens, "minItems": 1, "maxItems": most},
        ]},
        "encoding_format": optional(&json!({"enum": ["float", "base64"]})),
        "dimensions": whole(1, None),
    })));
    body(fields, &["model", "input"], &[])
}

/// `POST /v1/rerank`.
pub(super) fn rerank(model: &Value) -> Value {
    let mut fields = user();
    fields.extend(fields_of(json!({
        "model": model,
        "query": text(1, None),
        "documents": {
            "type": "array", "minItems": 1, "maxItems": limits::RERANK_DOCUMENTS_MAX,
            "items": {"anyOf": [text(1, None), {
                "type": "object", "properties": {"text": text(1, None)},
                "required": ["text"], "additionalProperties": false,
            }]},
        },
        "top_n": whole(1, None),
        "return_documents": optional(&json!({"type": "boolean"})),
    })));
    body(fields, &["model", "query", "documents"], &[])
}

/// What chats and text completions have in common.
fn generation() -> Map<String, Value> {
    let tokens_max = Some(limits::MAX_TOKENS_MAX.into());
    let back_max = Some(limits::REPEAT_LAST_N_MAX.into());
    let stop = text(1, Some(limits::STOP_BYTES_MAX));
    let breaker = text(1, Some(limits::DRY_BREAKER_BYTES_MAX));
    let mut fields = fields_of(json!({
        "n": whole(1, Some(limits::CHOICES_MAX.into())),
        "max_tokens": whole(1, tokens_max),
        "max_completion_tokens": whole(1, tokens_max),
        "min_tokens": whole(0, tokens_max),
        "ignore_eos": optional(&json!({"type": "boolean"})),
        "stop": optional(&json!({"anyOf": [
            stop, {"type": "array", "items": stop, "maxItems": limits::STOP_SEQUENCES_MAX},
        ]})),
        "temperature": number(0.0, 2.0),
        "top_k": whole(0, None),
        "top_p": number(0.0, 1.0),
        "min_p": number(0.0, 1.0),
        "typical_p": number(0.0, 1.0),
        "top_n_sigma": number(-1.0, 100.0),
        "xtc_probability": number(0.0, 1.0),
        "xtc_threshold": number(0.0, 1.0),
        "repeat_penalty": number(0.01, 10.0),
        "repeat_last_n": whole(0, back_max),
        "presence_penalty": number(-2.0, 2.0),
        "frequency_penalty": number(-2.0, 2.0),
        "dry_multiplier": number(0.0, 100.0),
        "dry_base": number(0.0, 100.0),
        "dry_allowed_length": whole(0, None),
        "dry_penalty_last_n": whole(-1, back_max),
        "dry_sequence_breakers": optional(&json!({
            "type": "array", "items": breaker, "maxItems": limits::DRY_BREAKERS_MAX,
        })),
        "logit_bias": optional(&json!({
            "type": "object", "maxProperties": limits::LOGIT_BIAS_MAX,
            "propertyNames": {"pattern": "^\\+?[0-9]+$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        })),
        "seed": whole(i64::MIN, Some(i64::MAX)),
        "response_format": optional(&format()),
        "grammar": described(
            &optional(&text(0, Some(limits::GRAMMAR_BYTES_MAX))),
            "A GBNF grammar; not beside another response_format than text.",
        ),
        "stream": optional(&json!({"type": "boolean"})),
        "stream_options": optional(&json!({
            "type": "object", "additionalProperties": false,
            "properties": {
                "include_usage": {"type": "boolean"},
                "include_obfuscation": {"const": false},
            },
        })),
        "prompt_cache_key": optional(&text(0, Some(limits::USER_BYTES_MAX))),
        "prompt_cache_retention": optional(&json!({"enum": ["in_memory", "in-memory"]})),
        "cache_prompt": optional(&json!({"const": true})),
    }));
    fields.extend(user());
    fields
}

fn user() -> Map<String, Value> {
    let name = optional(&text(0, Some(limits::USER_BYTES_MAX)));
    fields_of(json!({"user": name, "safety_identifier": name}))
}

fn message() -> Value {
    let none = json!({"enum": [null, []]});
    let part = json!({
        "type": "object", "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": text(0, None), "cache_control": {}},
        "additionalProperties": false,
    });
    let call = json!({
        "type": "object", "additionalProperties": false, "required": ["id", "function"],
        "properties": {
            "id": text(1, Some(limits::TOOL_CALL_ID_BYTES_MAX)),
            "type": {"const": "function"},
            "index": whole(0, None),
            "function": {
                "type": "object", "additionalProperties": false, "required": ["name", "arguments"],
                "properties": {"name": tool_name(), "arguments": text(0, None), "parsed_arguments": {}},
            },
        },
    });
    let of_role = |role: &str| json!({"properties": {"role": {"const": role}}});
    json!({
        "type": "object", "additionalProperties": false, "required": ["role"],
        "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": optional(&json!({"anyOf": [
                text(0, None),
                {"type": "array", "items": part, "maxItems": limits::CONTENT_PARTS_MAX},
            ]})),
            "reasoning_content": optional(&text(0, None)),
            "tool_calls": optional(
                &json!({"type": "array", "items": call, "maxItems": limits::TOOL_CALLS_MAX}),
            ),
            "tool_call_id": described(
                &optional(&text(0, None)), "The id of a call in an earlier message.",
            ),
            "name": {}, "refusal": none, "annotations": none, "audio": none, "function_call": none,
            "parsed": {},
        },
        "allOf": [
            {
                "if": of_role("tool"),
                "then": {"required": ["tool_call_id"], "properties": {"tool_call_id": {"type": "string"}}},
                "else": {"properties": {"tool_call_id": {"type": "null"}, "name": none}},
            },
            {
                "if": of_role("assistant"),
                "else": {"properties": {"tool_calls": {"anyOf": [{"type": "null"}, {"maxItems": 0}]}}},
            },
        ],
    })
}

fn tool() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["type", "function"],
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object", "additionalProperties": false, "required": ["name"],
                "properties": {
                    "name": tool_name(),
                    "description": optional(&text(0, Some(limits::TOOL_DESCRIPTION_BYTES_MAX))),
                    "parameters": optional(&json!({"type": "object"})),
                    "strict": optional(&json!({"type": "boolean"})),
                },
            },
        },
    })
}

fn tool_name() -> Value {
    let pattern = format!("^[A-Za-z0-9_-]{{1,{}}}$", limits::TOOL_NAME_BYTES_MAX);
    json!({"type": "string", "pattern": pattern})
}

fn template_arguments() -> Value {
    let most = limits::TEMPLATE_ARGUMENT_BYTES_MAX;
    let reserved =
        ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "documents"];
    json!({
        "type": "object", "maxProperties": limits::TEMPLATE_ARGUMENTS_MAX,
        "propertyNames": {
            "pattern": format!("^[A-Za-z0-9_]{{0,{most}}}$"), "not": {"enum": reserved},
        },
        "properties": {"enable_thinking": {"type": "boolean"}},
        "additionalProperties": {"anyOf": [{"type": ["boolean", "number"]}, text(0, Some(most))]},
    })
}

fn format() -> Value {
    let name = format!("^[A-Za-z0-9_-]{{1,{}}}$", limits::SCHEMA_NAME_BYTES_MAX);
    json!({"anyOf": [
        {
            "type": "object", "additionalProperties": false, "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object"]}, "json_schema": {"type": "null"},
            },
        },
        {
            "type": "object", "additionalProperties": false, "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object", "additionalProperties": false, "required": ["name", "schema"],
                    "properties": {
                        "name": {"type": "string", "pattern": name},
                        "schema": {"type": ["object", "boolean"]},
                        "strict": optional(&json!({"type": "boolean"})),
                        "description": optional(&text(0, None)),
                    },
                },
            },
        },
    ]})
}

fn stream_options_need_a_stream() -> Value {
    json!({
        "if": {"properties": {"stream_options": {"type": "object"}}, "required": ["stream_options"]},
        "then": {"properties": {"stream": {"const": true}}, "required": ["stream"]},
    })
}

/// A body of these fields; a parameter that is not known is refused.
fn body(fields: Map<String, Value>, required: &[&str], rules: &[Value]) -> Value {
    let mut body = json!({
        "type": "object", "properties": fields, "required": required, "additionalProperties": false,
    });
    if let (Some(body), false) = (body.as_object_mut(), rules.is_empty()) {
        body.insert("allOf".to_owned(), json!(rules));
    }
    body
}

fn fields_of(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// `null` means the same as leaving a parameter out.
fn optional(schema: &Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

fn described(schema: &Value, description: &str) -> Value {
    let mut schema = schema.clone();
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("description".to_owned(), json!(description));
    }
    schema
}

/// A text; limits are in bytes, of which a character has at least one.
fn text(min: usize, max: Option<usize>) -> Value {
    match max {
        Some(max) => json!({"type": "string", "minLength": min, "maxLength": max}),
        None => json!({"type": "string", "minLength": min}),
    }
}

/// A whole number or null; of 32 bits where no limit is named.
fn whole(min: i64, max: Option<i64>) -> Value {
    let max = max.unwrap_or_else(|| u32::MAX.into());
    optional(&json!({"type": "integer", "minimum": min, "maximum": max}))
}

/// A number or null.
fn number(min: f64, max: f64) -> Value {
    optional(&json!({"type": "number", "minimum": min, "maximum": max}))
}

/// The id of a token.
fn token() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": u32::MAX})
}
