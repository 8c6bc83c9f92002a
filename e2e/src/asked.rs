//! Chat requests whose answers can be checked: what is said, and what the reply has to be like.

use serde_json::{Value, json};

/// Returns a streamed chat request that is answered the same way each time; `more` is added to it.
#[must_use]
pub fn asks(model: &str, said: &str, more: &Value) -> Value {
    let mut body = json!({"model": model, "stream": true, "temperature": 0,
        "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": said}]});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// Returns what has the echo engine call the tool `add` with `a`, a token each 12 ms, and offers it that tool.
#[must_use]
pub fn echoed_call(a: usize, c: &str) -> (String, Value) {
    let said = format!(
        "[[bytes=4 delay_ms=12 text=Well: <tool_call>\n{{\"name\": \"add\", \"arguments\": \
         {{\"a\": {a}, \"c\": \"{c}\"}}}}\n</tool_call>]]"
    );
    let tools = json!({"tools": [{"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "c": {"type": "string"}}}}}]});
    (said, tools)
}

/// Asks for an object with 12 to 16 `tags`.
#[must_use]
pub fn tags_format() -> Value {
    let schema = json!({"type": "object", "additionalProperties": false, "properties": {
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]},
            "minItems": 12, "maxItems": 16}}, "required": ["tags"]});
    json!({"response_format": {"type": "json_schema",
        "json_schema": {"name": "tags", "strict": true, "schema": schema}}, "max_tokens": 150})
}

/// Asks for a call of `add` with 20 to 24 `numbers`.
#[must_use]
pub fn numbers_tool() -> Value {
    let parameters = json!({"type": "object", "properties": {
        "numbers": {"type": "array", "items": {"type": "integer", "maximum": 9, "minimum": 0},
            "minItems": 20, "maxItems": 24}}, "required": ["numbers"]});
    json!({"tools": [{"type": "function",
        "function": {"name": "add", "parameters": parameters}}],
        "tool_choice": "required", "parallel_tool_calls": false, "max_tokens": 150})
}
