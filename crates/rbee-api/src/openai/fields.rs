//! Takes the fields of a request body one by one, so that what is left over at
//! the end is known by name.

use input_validation::sanitize_for_log;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{ErrorCode, ErrorDetail};

/// Why a request body was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The body is not a JSON object.
    #[error("the body is not a JSON object: {reason}")]
    NotAnObject {
        /// What the JSON parser said, with the place.
        reason: String,
    },
    /// A field has a wrong type or a value out of range.
    #[error("{reason}")]
    Invalid {
        /// JSON path of the field.
        param: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// A field asks for something rbee does not do.
    #[error("{reason}")]
    Unsupported {
        /// JSON path of the field.
        param: String,
        /// What is not done, and what to do instead.
        reason: String,
    },
}

impl RequestError {
    pub(super) fn invalid(param: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { param: param.into(), reason: reason.into() }
    }

    pub(super) fn unsupported(param: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { param: param.into(), reason: reason.into() }
    }
}

impl From<RequestError> for ErrorDetail {
    fn from(error: RequestError) -> Self {
        let message = error.to_string();
        match error {
            RequestError::NotAnObject { .. } => Self::new(ErrorCode::ValidationFailed, message),
            RequestError::Invalid { param, .. } => {
                Self::new(ErrorCode::ValidationFailed, message).with_param(param)
            }
            RequestError::Unsupported { param, .. } => {
                Self::new(ErrorCode::UnsupportedParameter, message).with_param(param)
            }
        }
    }
}

/// The fields of a body that have not been taken yet.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    pub(super) fn parse(body: &[u8]) -> Result<Self, RequestError> {
        match serde_json::from_slice::<Value>(body) {
            Ok(Value::Object(map)) => Ok(Self(map)),
            Ok(_) => Err(RequestError::NotAnObject { reason: "expected `{`".to_owned() }),
            Err(error) => Err(RequestError::NotAnObject { reason: error.to_string() }),
        }
    }

    /// Takes an optional field; `null` is the same as absent, as OpenAI has it.
    pub(super) fn take<T: DeserializeOwned>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, RequestError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_path_to_error::deserialize(value).map(Some).map_err(|error| {
                // Both quote names that the client made up.
                let inner = sanitize_for_log(&error.path().to_string()).into_owned();
                let param = match inner.as_str() {
                    "." => name.to_owned(),
                    path if path.starts_with('[') => format!("{name}{path}"),
                    path => format!("{name}.{path}"),
                };
                let told = error.into_inner().to_string();
                let reason = format!("{param}: {}", sanitize_for_log(&without_value(&told)));
                RequestError::invalid(param, reason)
            }),
        }
    }

    pub(super) fn require<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, RequestError> {
        self.take(name)?.ok_or_else(|| RequestError::invalid(name, format!("{name} is required")))
    }

    /// Refuses a field that is there and no object: serde would read a list as the object's values in their order.
    pub(super) fn check_object(&self, name: &str) -> Result<(), RequestError> {
        match self.0.get(name) {
            None | Some(Value::Null | Value::Object(_)) => Ok(()),
            Some(_) => Err(RequestError::invalid(name, format!("{name} must be an object"))),
        }
    }

    /// Refuses a list with lists in it, where objects are expected, for the same reason.
    pub(super) fn check_no_lists_in(&self, name: &str) -> Result<(), RequestError> {
        let items = self.0.get(name).and_then(Value::as_array);
        match items.and_then(|items| items.iter().position(Value::is_array)) {
            None => Ok(()),
            Some(index) => Err(RequestError::invalid(
                format!("{name}[{index}]"),
                format!("{name}[{index}] must be an object, not a list"),
            )),
        }
    }

    /// Takes a field that rbee does not honour: any of `neutral` is fine, as is
    /// its absence; every other value is refused by name.
    pub(super) fn only(&mut self, name: &str, neutral: &[Value]) -> Result<(), RequestError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if neutral.contains(&value) => Ok(()),
            Some(_) => Err(RequestError::unsupported(
                name,
                format!("{name} is not supported with this value; leave it out"),
            )),
        }
    }

    /// Takes a text of at most `bytes_max` bytes.
    pub(super) fn take_text(
        &mut self,
        name: &str,
        bytes_max: usize,
    ) -> Result<Option<String>, RequestError> {
        match self.take::<String>(name)? {
            Some(text) if text.len() > bytes_max => {
                Err(RequestError::invalid(name, format!("{name} is longer than {bytes_max} bytes")))
            }
            text => Ok(text),
        }
    }

    /// Refuses whatever has not been taken.
    pub(super) fn finish(self) -> Result<(), RequestError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                let shown: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
                let reason = format!("{shown} is not a parameter that rbee knows; leave it out");
                Err(RequestError::unsupported(shown, reason))
            }
        }
    }
}

/// Takes the text that was found out of what the parser says: it may be a whole prompt.
fn without_value(told: &str) -> String {
    let parts =
        [("string \"", "\", expected", "a string"), ("variant `", "`, expected", "variant")];
    for (before, after, instead) in parts {
        if let (Some((start, _)), Some((_, end))) =
            (told.split_once(before), told.rsplit_once(after))
        {
            return format!("{start}{instead}, expected{end}");
        }
    }
    told.to_owned()
}

/// Checks a number against its range; not-a-number is outside every range.
pub(super) fn in_range<T: PartialOrd + std::fmt::Display + Copy>(
    name: &str,
    value: T,
    min: T,
    max: T,
) -> Result<T, RequestError> {
    if value >= min && value <= max {
        Ok(value)
    } else {
        Err(RequestError::invalid(
            name,
            format!("{name} must be between {min} and {max}, not {value}"),
        ))
    }
}
