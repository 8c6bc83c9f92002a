//! What a tool's schema may look like before llama.cpp makes a grammar of it. Its converter calls itself for each
//! level, each reference and each property that may be left out, and does some work again for each way through a
//! schema; so a few hundred bytes can overflow its stack, or keep it busy for hours. Follows the same ways, and counts.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::Tool;

/// Deepest nesting, references followed. With [`REFERENCES_MAX`] it bounds what a thread needs of a stack: some ten
/// megabytes, where each reference is first followed at the end of the one before.
const DEPTH_MAX: usize = 64;
/// Most different references of one schema.
const REFERENCES_MAX: usize = 64;
/// Longest name of a property, in bytes: some of the converter's steps nest once for each.
const NAME_BYTES_MAX: usize = 256;
/// Most properties of one object that may be left out: each may be followed by each that comes after it.
const OPTIONAL_MAX: usize = 256;
/// Longest regular expression, in bytes.
const PATTERN_BYTES_MAX: usize = 1024;
/// Steps that the schemas of one request may take together, each some ten microseconds of the converter.
const STEPS_MAX: usize = 100_000;

/// Finds the tool whose schema would cost too much, and says why.
pub(super) fn check(tools: &[Tool]) -> Result<(), (String, String)> {
    let mut steps = STEPS_MAX;
    for tool in tools {
        let mut walk = Walk { root: &tool.parameters, steps, built: HashSet::new() };
        walk.node(&tool.parameters, 0).map_err(|reason| (tool.name.clone(), reason))?;
        steps = walk.steps;
    }
    Ok(())
}

/// One schema, and what is left of the steps.
struct Walk<'a> {
    root: &'a Value,
    steps: usize,
    /// The references whose targets were walked.
    built: HashSet<&'a str>,
}

impl<'a> Walk<'a> {
    fn spend(&mut self, steps: usize) -> Result<(), String> {
        self.steps = self.steps.checked_sub(steps).ok_or_else(|| {
            "it is too large, together with those of the other tools; leave out properties or alternatives".to_owned()
        })?;
        Ok(())
    }

    fn node(&mut self, schema: &'a Value, depth: usize) -> Result<(), String> {
        self.spend(1)?;
        if depth > DEPTH_MAX {
            return Err(format!("it is nested more than {DEPTH_MAX} deep, references followed"));
        }
        // What is no object is refused by name later.
        let Some(fields) = schema.as_object() else { return Ok(()) };
        self.ways(schema, &mut Vec::new(), 0)?;
        if let Some(Value::String(reference)) = fields.get("$ref") {
            let is_new = self.built.insert(reference);
            if self.built.len() > REFERENCES_MAX {
                return Err(format!("it has more than {REFERENCES_MAX} different references"));
            }
            return match self.target(reference) {
                Some(target) if is_new => self.node(target, depth + 1),
                _ => Ok(()),
            };
        }
        // Each type of several is converted with a copy of the whole.
        let types = fields.get("type").and_then(Value::as_array).map_or(1, Vec::len);
        for _ in 0..types {
            self.fields(fields, depth)?;
        }
        Ok(())
    }

    fn fields(&mut self, fields: &'a Map<String, Value>, depth: usize) -> Result<(), String> {
        for (name, value) in fields {
            match name.as_str() {
                "properties" => self.properties(fields, value, depth)?,
                "items" | "prefixItems" | "additionalProperties" | "anyOf" | "oneOf" | "allOf" => {
                    match value {
                        Value::Array(parts) => {
                            for part in parts {
                                self.node(part, depth + 1)?;
                            }
                        }
                        part => self.node(part, depth + 1)?,
                    }
                }
                "enum" => self.spend(value.as_array().map_or(0, Vec::len))?,
                "pattern" => {
                    let length = value.as_str().map_or(0, str::len);
                    if length > PATTERN_BYTES_MAX {
                        return Err(format!(
                            "a pattern of it has more than {PATTERN_BYTES_MAX} bytes"
                        ));
                    }
                    // All rules that were made before are copied for each pattern.
                    self.spend((STEPS_MAX - self.steps) / 100 + length)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn properties(
        &mut self,
        fields: &Map<String, Value>,
        properties: &'a Value,
        depth: usize,
    ) -> Result<(), String> {
        let Some(properties) = properties.as_object() else { return Ok(()) };
        let required = fields.get("required").and_then(Value::as_array).map_or(0, Vec::len);
        let optional = properties.len().saturating_sub(required);
        if optional > OPTIONAL_MAX {
            return Err(format!(
                "an object of it has more than {OPTIONAL_MAX} properties that may be left out"
            ));
        }
        self.spend(optional * optional / 2)?;
        for (name, part) in properties {
            if name.len() > NAME_BYTES_MAX {
                return Err(format!("the name of a property has more than {NAME_BYTES_MAX} bytes"));
            }
            self.node(part, depth + 1)?;
        }
        Ok(())
    }

    /// Walks all ways through references and alternatives that lead to a type, as is done to find out whether a value
    /// may be a text; `path` has the references on the way.
    fn ways(
        &mut self,
        schema: &'a Value,
        path: &mut Vec<&'a str>,
        depth: usize,
    ) -> Result<(), String> {
        self.spend(1)?;
        if depth > DEPTH_MAX {
            return Err(format!(
                "more than {DEPTH_MAX} references or alternatives lead to each other"
            ));
        }
        if let Some(Value::String(reference)) = schema.get("$ref") {
            if self.is_endless(reference) {
                return Err(format!("{} refers to nothing but itself", shown(reference)));
            }
            if let Some(target) = self.target(reference)
                && !path.contains(&reference.as_str())
            {
                path.push(reference);
                self.ways(target, path, depth + 1)?;
                path.pop();
            }
            return Ok(());
        }
        for key in ["anyOf", "oneOf", "allOf"] {
            for part in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
                self.ways(part, path, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Whether a reference leads to a reference, and so on without end.
    fn is_endless(&self, reference: &'a str) -> bool {
        let mut next = Some(reference);
        for _ in 0..=DEPTH_MAX {
            let Some(reference) = next else { return false };
            next = self.target(reference).and_then(|target| target.get("$ref")?.as_str());
        }
        true
    }

    fn target(&self, reference: &str) -> Option<&'a Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }
}

/// A reference as it may stand in a message.
fn shown(reference: &str) -> String {
    reference.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reason(parameters: Value) -> Option<String> {
        let tool = Tool { name: "f".to_owned(), description: String::new(), parameters };
        check(&[tool]).err().map(|(_, reason)| reason)
    }

    /// An object with so many properties, of which none is required.
    fn wide(count: usize) -> Value {
        let properties: Map<String, Value> =
            (0..count).map(|n| (format!("p{n}"), json!({"type": "string"}))).collect();
        json!({"type": "object", "properties": properties})
    }

    #[test]
    fn schemas_as_people_write_them_are_far_within_the_bounds() {
        let tree = json!({"type": "object", "properties": {"root": {"$ref": "#/$defs/node"}}, "required": ["root"],
            "$defs": {"node": {"type": "object", "properties": {"value": {"type": ["string", "null"]},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}});
        let list = json!({"$ref": "#/$defs/list", "$defs": {"list": {"anyOf": [{"type": "null"},
            {"type": "object", "properties": {"next": {"$ref": "#/$defs/list"}}}]}}});
        for schema in [
            tree,
            list,
            wide(100),
            json!({"type": "object", "properties": {"code": {
            "type": "string", "pattern": "^[A-Z]{2}[0-9]{4}$"}}}),
            json!(true),
            json!({"$ref": "#/nowhere"}),
        ] {
            assert_eq!(reason(schema.clone()), None, "{schema:.200}");
        }
        let tools: Vec<Tool> = (0..128)
            .map(|n| Tool {
                name: format!("f{n}"),
                description: String::new(),
                parameters: wide(20),
            })
            .collect();
        assert_eq!(check(&tools), Ok(()));
    }

    #[test]
    fn what_would_cost_without_end_is_refused() {
        let nested =
            |depth| (0..depth).fold(json!({"type": "string"}), |part, _| json!({"items": part}));
        let doubled = |depth| {
            (0..depth).fold(json!({"type": "string"}), |part, _| {
                json!({"type": ["object", "array"], "properties": {"a": part}, "items": {"type": "string"}})
            })
        };
        let mut steps = Map::new();
        for n in 0..20 {
            let next = format!("#/$defs/d{}", n + 1);
            steps.insert(format!("d{n}"), json!({"anyOf": [{"$ref": next}, {"$ref": next}]}));
        }
        steps.insert("d20".to_owned(), json!({"type": "string"}));
        let chain: Map<String, Value> = (0..40)
            .map(|n| (format!("d{n}"), json!({"items": {"$ref": format!("#/$defs/d{}", n + 1)}})))
            .collect();
        let many: Map<String, Value> = (0..=REFERENCES_MAX)
            .map(|n| (format!("p{n}"), json!({"$ref": format!("#/$defs/d{n}")})))
            .collect();
        for (schema, expected) in [
            (nested(DEPTH_MAX + 1), "nested more than"),
            (json!({"$ref": "#/$defs/d0", "$defs": chain}), "nested more than"),
            (json!({"properties": many}), "different references"),
            (wide(OPTIONAL_MAX + 1), "may be left out"),
            (json!({"properties": {"x".repeat(NAME_BYTES_MAX + 1): {}}}), "the name of a property"),
            (json!({"pattern": "x".repeat(PATTERN_BYTES_MAX + 1)}), "a pattern"),
            (doubled(30), "too large"),
            (json!({"$ref": "#/$defs/d0", "$defs": steps}), "too large"),
            (
                json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}),
                "nothing but itself",
            ),
            (json!({"$ref": "#"}), "nothing but itself"),
            (
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
                "nothing but itself",
            ),
        ] {
            let found = reason(schema.clone()).unwrap_or_default();
            assert!(found.contains(expected), "{found:?} for {expected:?} of {schema:.200}");
        }
        let tools: Vec<Tool> = (0..128)
            .map(|n| Tool {
                name: format!("f{n}"),
                description: String::new(),
                parameters: wide(200),
            })
            .collect();
        assert!(
            check(&tools)
                .is_err_and(|(tool, reason)| tool != "f0" && reason.contains("other tools"))
        );
    }
}
