//! A server under measurement: its name, its address, its key, and a request in its words. Never measures.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rbee_http::EndpointClient;
use rbee_tls::Trust;
use secrets_management::{Secret, load_file};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::workload::{Ask, Form};
use crate::cli::{Api, ExtraFields};
use crate::config;
use crate::error::KeeperError;
use crate::keeper::Keeper;

/// Follows a prompt that no template ends: a model that is to complete a finished text may well end at once.
const CONTINUED: &str = "\n\nThe";

/// One server.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) identity: Identity,
    pub(super) client: EndpointClient,
}

/// What a report says about a server.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) model: String,
}

/// What all requests of a measurement have in common.
#[derive(Debug, Clone)]
pub(super) struct Dialect {
    pub(super) api: Api,
    pub(super) temperature: f32,
    pub(super) extra: ExtraFields,
}

/// Where a key is kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeySource<'a> {
    pub(super) file: Option<&'a Path>,
    pub(super) variable: Option<&'a str>,
}

impl Endpoint {
    /// Takes an address as it was typed, `[NAME=]URL`.
    ///
    /// # Errors
    /// What is wrong with the address, the key or the CA by which the server is known.
    pub(super) fn named(
        keeper: &Keeper,
        typed: &str,
        model: &str,
        key: KeySource<'_>,
    ) -> Result<Self, KeeperError> {
        let (name, url) = named_url(typed)?;
        Self::at(name, &url, model, load_key(key)?.map(Arc::new), &keeper.trust(&url)?)
    }

    /// Takes the queen that the other commands would ask, starting one where none runs.
    ///
    /// # Errors
    /// As for every command that needs a queen.
    pub(super) async fn queen(keeper: &Keeper, model: &str) -> Result<Self, KeeperError> {
        let queen = keeper.ensure_queen().await?;
        let key = Secret::from_bytes(queen.token().expose().as_bytes(), "the queen's token")?;
        let known_by = Trust::in_files(keeper.certificate_file()?.iter());
        let trust = known_by.map_err(KeeperError::Tls)?;
        Self::at("rbee".to_owned(), queen.url(), model, Some(Arc::new(key)), &trust)
    }

    fn at(
        name: String,
        url: &str,
        model: &str,
        key: Option<Arc<Secret>>,
        trust: &Trust,
    ) -> Result<Self, KeeperError> {
        let client = EndpointClient::new(url, key, trust).map_err(KeeperError::Client)?;
        let url = client.base_url().to_owned();
        Ok(Self { identity: Identity { name, url, model: model.to_owned() }, client })
    }
}

impl Dialect {
    /// Returns the route that is asked.
    pub(super) const fn path(&self) -> &'static str {
        match self.api {
            Api::Chat => "/v1/chat/completions",
            Api::Completions => "/v1/completions",
        }
    }

    /// Writes one request's body.
    pub(super) fn body(&self, ask: &Ask, model: &str) -> Bytes {
        let mut fields = Map::new();
        let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        set("model", json!(model));
        match self.api {
            Api::Chat => set("messages", json!(ask.messages)),
            Api::Completions => {
                let texts: Vec<&str> =
                    ask.messages.iter().map(|message| message.content.as_str()).collect();
                set("prompt", json!(format!("{}{CONTINUED}", texts.join("\n\n"))))
            }
        };
        set("stream", json!(true));
        set("stream_options", json!({ "include_usage": true }));
        set("max_tokens", json!(ask.output_tokens));
        set("temperature", json!(self.temperature));
        if ask.form == Form::JsonSchema {
            set("response_format", list_schema());
        }
        fields.extend(self.extra.clone());
        Value::Object(fields).to_string().into()
    }
}

/// A list long enough that its end is not reached within the usual output length.
fn list_schema() -> Value {
    json!({
        "type": "json_schema",
        "json_schema": {
            "name": "places",
            "strict": true,
            "schema": {
                "type": "object",
                "properties": {
                    "places": {
                        "type": "array",
                        "minItems": 20,
                        "items": {
                            "type": "object",
                            "properties": {
                                "name": { "type": "string" },
                                "height_m": { "type": "integer" }
                            },
                            "required": ["name", "height_m"],
                            "additionalProperties": false
                        }
                    }
                },
                "required": ["places"],
                "additionalProperties": false
            }
        }
    })
}

/// Takes `[NAME=]URL` apart: the name, which is the authority where none was typed, and what stands before `/v1`.
fn named_url(typed: &str) -> Result<(String, String), KeeperError> {
    let (name, url) = match typed.split_once('=') {
        Some((name, url)) if !name.contains(['/', ':']) && !name.is_empty() => (Some(name), url),
        _ => (None, typed),
    };
    let (authority, url) = base_url(url)?;
    Ok((name.map_or(authority, str::to_owned), url))
}

/// Checks an address; returns its authority, and what stands before `/v1`.
fn base_url(text: &str) -> Result<(String, String), KeeperError> {
    let wrong = |reason: &str| {
        let message = format!("{text:?} {reason}");
        let form = "an endpoint's address has the form http://HOST:PORT or https://HOST:PORT";
        KeeperError::usage(message, form)
    };
    let uri: http::Uri = text.parse().map_err(|_not_a_uri| wrong("is not a URL"))?;
    let scheme = match uri.scheme_str() {
        Some(scheme @ ("http" | "https")) => scheme,
        _ => return Err(wrong("does not begin with http:// or https://")),
    };
    let authority = uri.authority().ok_or_else(|| wrong("names no host"))?.as_str();
    if authority.contains('@') {
        return Err(wrong("holds a user name; keys are read from --key-file or --key-env"));
    }
    if uri.query().is_some() {
        return Err(wrong("has a query"));
    }
    let path = uri.path().trim_end_matches('/');
    let path = path.strip_suffix("/v1").unwrap_or(path);
    Ok((authority.to_owned(), format!("{scheme}://{authority}{path}")))
}

fn load_key(source: KeySource<'_>) -> Result<Option<Secret>, KeeperError> {
    if let Some(file) = source.file {
        return Ok(Some(load_file(file)?));
    }
    let Some(name) = source.variable else { return Ok(None) };
    let value = config::key_variable(name).ok_or_else(|| {
        let message = format!("the environment has no variable {name}");
        KeeperError::usage(message, "set it to the key, or name a file with --key-file")
    })?;
    Ok(Some(Secret::from_bytes(value.as_encoded_bytes(), &format!("variable {name}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Message;

    #[test]
    fn an_address_may_have_a_name_a_path_and_v1() {
        for (typed, name, url) in [
            ("http://h:1", "h:1", "http://h:1"),
            ("http://h:1/v1/", "h:1", "http://h:1"),
            ("peer=http://h:1/v1", "peer", "http://h:1"),
            ("http://h/openai/v1", "h", "http://h/openai"),
            ("a=https://h/v1", "a", "https://h"),
        ] {
            assert_eq!(named_url(typed).unwrap(), (name.to_owned(), url.to_owned()), "{typed}");
        }
    }

    #[test]
    fn an_address_that_cannot_be_asked_is_refused() {
        for typed in ["", "h:1", "ftp://h", "https://", "https://u:p@h", "http://h?a=b", "a=b"] {
            let refused = named_url(typed);
            assert!(matches!(refused, Err(KeeperError::Usage { .. })), "{typed}");
        }
    }

    #[test]
    fn the_body_has_common_fields_only_and_what_was_added() {
        let messages = vec![Message { role: "user", content: "hi".to_owned() }];
        let mut ask = Ask { messages, output_tokens: 5, form: Form::Free };
        let extra = serde_json::from_str(r#"{"temperature":1,"top_k":3}"#).unwrap();
        let mut dialect = Dialect { api: Api::Chat, temperature: 0.0, extra: Map::new() };
        let sent = |dialect: &Dialect, ask: &Ask| -> Value {
            serde_json::from_slice(&dialect.body(ask, "m")).unwrap()
        };
        let expected = json!({
            "model": "m", "messages": [{ "role": "user", "content": "hi" }], "stream": true,
            "stream_options": { "include_usage": true }, "max_tokens": 5, "temperature": 0.0,
        });
        assert_eq!(sent(&dialect, &ask), expected);
        dialect.extra = extra;
        assert_eq!(sent(&dialect, &ask)["temperature"], 1);
        assert_eq!(sent(&dialect, &ask)["top_k"], 3);
        dialect.api = Api::Completions;
        assert_eq!(sent(&dialect, &ask)["prompt"], "hi\n\nThe");
        ask.form = Form::JsonSchema;
        assert_eq!(sent(&dialect, &ask)["response_format"]["type"], "json_schema");
    }
}
