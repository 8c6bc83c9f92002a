//! What the output of a generation has to look like: the parameters that ask
//! for JSON, for a JSON schema, or for a grammar. Checks their size and shape;
//! whether a schema or grammar can be compiled is for the worker to find out.

use serde::Deserialize;
use serde_json::Value;

use super::fields::{Fields, RequestError};
use crate::limits;

/// What the output has to look like.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum OutputFormat {
    /// Whatever the model says.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that satisfies this schema.
    JsonSchema(Value),
    /// Text that this GBNF grammar derives.
    Grammar(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFormat {
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    json_schema: Option<RawSchema>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Text,
    JsonObject,
    JsonSchema,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSchema {
    name: String,
    schema: Value,
    #[serde(default, rename = "strict")]
    _strict: Option<bool>,
    #[serde(default, rename = "description")]
    _description: Option<String>,
}

impl OutputFormat {
    /// Returns the parameter that asks for this format; `None` for plain text.
    #[must_use]
    pub const fn param(&self) -> Option<&'static str> {
        match self {
            Self::Text => None,
            Self::JsonObject => Some("response_format"),
            Self::JsonSchema(_) => Some("response_format.json_schema.schema"),
            Self::Grammar(_) => Some("grammar"),
        }
    }

    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        fields.check_object("response_format")?;
        let format = match fields.take::<RawFormat>("response_format")? {
            None => Self::Text,
            Some(raw) => raw.check()?,
        };
        match fields.take::<String>("grammar")? {
            None => Ok(format),
            Some(grammar) if grammar.trim().is_empty() => Ok(format),
            Some(_) if format != Self::Text => Err(RequestError::invalid(
                "grammar",
                "grammar cannot be combined with response_format; leave one out",
            )),
            Some(grammar) if grammar.len() > limits::GRAMMAR_BYTES_MAX => {
                let reason = format!("a grammar has at most {} bytes", limits::GRAMMAR_BYTES_MAX);
                Err(RequestError::invalid("grammar", reason))
            }
            Some(grammar) => Ok(Self::Grammar(grammar)),
        }
    }
}

impl RawFormat {
    fn check(self) -> Result<OutputFormat, RequestError> {
        let param = "response_format.json_schema";
        match (self.kind, self.json_schema) {
            (Kind::Text, None) => Ok(OutputFormat::Text),
            (Kind::JsonObject, None) => Ok(OutputFormat::JsonObject),
            (Kind::JsonSchema, Some(schema)) => Ok(OutputFormat::JsonSchema(schema.check()?)),
            (Kind::JsonSchema, None) => {
                Err(RequestError::invalid(param, format!("{param} is required with this type")))
            }
            (Kind::Text | Kind::JsonObject, Some(_)) => {
                Err(RequestError::invalid(param, format!("{param} needs the type json_schema")))
            }
        }
    }
}

impl RawSchema {
    fn check(self) -> Result<Value, RequestError> {
        let invalid = |field: &str, reason: String| {
            Err(RequestError::invalid(format!("response_format.json_schema.{field}"), reason))
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        let length = 1..=limits::SCHEMA_NAME_BYTES_MAX;
        if !length.contains(&self.name.len()) || !self.name.chars().all(allowed) {
            let most = limits::SCHEMA_NAME_BYTES_MAX;
            return invalid("name", format!("a name has 1 to {most} of a-z A-Z 0-9 _ -"));
        }
        if !(self.schema.is_object() || self.schema.is_boolean()) {
            return invalid("schema", "a JSON schema is an object".to_owned());
        }
        if self.schema.to_string().len() > limits::SCHEMA_BYTES_MAX {
            let most = limits::SCHEMA_BYTES_MAX;
            return invalid("schema", format!("a schema has at most {most} bytes as compact JSON"));
        }
        Ok(self.schema)
    }
}
