//! Finds the place in a schema that cannot be compiled, and words the reason.

use serde_json::{Map, Value};

/// Parts of a schema compiled in search of the place; beyond them the place
/// found so far has to do.
const TRIES_MAX: usize = 64;
/// Longest reason told to a client.
const REASON_CHARS_MAX: usize = 300;

/// What llguidance says, in one line, in the words of a client's schema.
pub(super) fn reason(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let (begins, has) = (|word: &str| text.starts_with(word), |word: &str| text.contains(word));
    let reworded = if begins("panic") {
        "it cannot be compiled"
    } else if begins("oneOf") {
        "oneOf is supported only where no value can satisfy two of its parts; use anyOf"
    } else if begins("Only absolute $ref") {
        "only references of the form #/... are followed"
    } else if has("fuel") || has("too large") || has("too big") || has("limit") {
        "it takes more work than a request may cost; simplify it"
    } else {
        ""
    };
    if !reworded.is_empty() {
        return reworded.to_owned();
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "^");
    let text = lines.collect::<Vec<_>>().join(" ");
    text.chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect()
}

/// Returns the path of the innermost part of `schema` that `compile` refuses
/// for the same reason as the whole, such as `.properties.age`; empty where no
/// part does.
pub(super) fn locate(
    schema: &Value,
    reason: &str,
    compile: impl Fn(Value) -> Option<String>,
) -> String {
    let mut path = String::new();
    let mut tries = TRIES_MAX;
    let mut place = schema;
    while let Some((step, part)) = parts(place).into_iter().find(|(_, part)| {
        tries = tries.saturating_sub(1);
        tries > 0
            && compile(with_definitions(part, schema)).is_some_and(|other| same(reason, &other))
    }) {
        path.push_str(&step);
        place = part;
    }
    path
}

/// Whether a part is refused for what the whole is refused for. What cannot be
/// satisfied is worded differently at each level.
fn same(whole: &str, part: &str) -> bool {
    let unsatisfiable = "Unsatisfiable";
    whole == part || (whole.starts_with(unsatisfiable) && part.starts_with(unsatisfiable))
}

/// The schemas directly inside a schema, each with its step of the path.
fn parts(schema: &Value) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for (key, value) in schema.as_object().into_iter().flatten() {
        match (key.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions",
                Value::Object(named),
            ) => {
                found.extend(named.iter().map(|(name, part)| (format!(".{key}.{name}"), part)));
            }
            ("anyOf" | "allOf" | "oneOf" | "prefixItems" | "items", Value::Array(list)) => {
                let numbered = list.iter().enumerate();
                found.extend(numbered.map(|(index, part)| (format!(".{key}[{index}]"), part)));
            }
            ("items" | "additionalProperties" | "additionalItems", Value::Object(_)) => {
                found.push((format!(".{key}"), value));
            }
            _ => {}
        }
    }
    found
}

/// A part as a schema of its own, with what it may refer to.
fn with_definitions(part: &Value, whole: &Value) -> Value {
    let Value::Object(fields) = part else { return part.clone() };
    let mut fields: Map<String, Value> = fields.clone();
    for key in ["$defs", "definitions", "$schema"] {
        if let Some(value) = whole.get(key) {
            fields.entry(key).or_insert_with(|| value.clone());
        }
    }
    Value::Object(fields)
}
