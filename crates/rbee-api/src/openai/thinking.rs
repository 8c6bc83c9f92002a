//! Whether a model thinks before it answers, and what else its chat template
//! is told.

use serde_json::{Map, Value};

use super::fields::{Fields, RequestError};
use crate::limits;

/// What a request says about thinking.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Thinking {
    /// Whether a model that can think is asked to; absent leaves it to the model.
    pub enabled: Option<bool>,
    /// Variables for the chat template: texts, numbers, truth values.
    pub template_arguments: Map<String, Value>,
}

/// The words of `reasoning_effort`; `none` asks for no thinking.
const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

/// Variables that belong to the template engine.
const RESERVED: [&str; 6] =
    ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "documents"];

impl Thinking {
    pub(super) fn take(fields: &mut Fields) -> Result<Self, RequestError> {
        let arguments: Map<String, Value> =
            fields.take("chat_template_kwargs")?.unwrap_or_default();
        let mut thinking = Self { enabled: None, template_arguments: check(arguments)? };
        if let Some(value) = thinking.template_arguments.remove("enable_thinking") {
            let Value::Bool(enabled) = value else {
                let reason = "enable_thinking is true or false";
                return Err(RequestError::invalid("chat_template_kwargs.enable_thinking", reason));
            };
            thinking.enabled = Some(enabled);
        }
        match fields.take::<String>("reasoning_effort")? {
            None => {}
            Some(effort) if effort == "none" => thinking.enabled = Some(false),
            Some(effort) if EFFORTS.contains(&effort.as_str()) => {
                thinking
                    .template_arguments
                    .insert("reasoning_effort".to_owned(), Value::String(effort));
            }
            Some(_) => {
                let reason = format!("reasoning_effort is one of {}", EFFORTS.join(", "));
                return Err(RequestError::invalid("reasoning_effort", reason));
            }
        }
        Ok(thinking)
    }

    /// Asks for no thinking, since thoughts do not have the form that `form` asks for.
    pub(super) fn leave_out_beside(&mut self, form: &str) -> Result<(), RequestError> {
        if self.enabled == Some(true) {
            let param = "chat_template_kwargs.enable_thinking";
            let reason = format!("{param} cannot be combined with {form}; leave one out");
            return Err(RequestError::unsupported(param, reason));
        }
        self.enabled = Some(false);
        Ok(())
    }
}

fn check(arguments: Map<String, Value>) -> Result<Map<String, Value>, RequestError> {
    if arguments.len() > limits::TEMPLATE_ARGUMENTS_MAX {
        let max = limits::TEMPLATE_ARGUMENTS_MAX;
        let reason = format!("chat_template_kwargs has at most {max} entries");
        return Err(RequestError::invalid("chat_template_kwargs", reason));
    }
    for (name, value) in &arguments {
        let is_name = name.len() <= limits::TEMPLATE_ARGUMENT_BYTES_MAX
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name || RESERVED.contains(&name.as_str()) {
            let reason = "names in chat_template_kwargs are made of letters, digits and \
                          underscores, and are none that rbee sets itself";
            return Err(RequestError::invalid("chat_template_kwargs", reason));
        }
        let is_small = match value {
            Value::Bool(_) | Value::Number(_) => true,
            Value::String(text) => {
                text.len() <= limits::TEMPLATE_ARGUMENT_BYTES_MAX && !text.contains('\0')
            }
            Value::Null | Value::Array(_) | Value::Object(_) => false,
        };
        if !is_small {
            return Err(RequestError::invalid(
                format!("chat_template_kwargs.{name}"),
                format!(
                    "a value in chat_template_kwargs is true, false, a number, or a text of at \
                     most {} bytes",
                    limits::TEMPLATE_ARGUMENT_BYTES_MAX
                ),
            ));
        }
    }
    Ok(arguments)
}
