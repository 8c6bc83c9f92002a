//! One operation of a document, and the schemas that the operations of a document share.

use input_validation::{KeyName, ModelRef, NodeName, RequestId, WorkerId};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::ErrorBody;

/// Where the schemas of a document lie.
const SCHEMAS: &str = "/components/schemas";

/// Names of the headers in which a request says how much time it has, as components.
const TIMING: [&str; 2] = ["Timeout", "Deadline"];

/// The schemas of one document.
pub(super) struct Schemas {
    /// Of what is sent.
    replies: SchemaGenerator,
    /// Of what is read. A field may be left out there that is always sent, so none of these is shared.
    bodies: SchemaGenerator,
}

impl Default for Schemas {
    fn default() -> Self {
        let settings = || SchemaSettings::draft2020_12().with(|s| s.meta_schema = None);
        let replies = settings().for_serialize().with(|s| s.definitions_path = SCHEMAS.into());
        let bodies = settings().for_deserialize().with(|s| s.inline_subschemas = true);
        Self { replies: replies.into_generator(), bodies: bodies.into_generator() }
    }
}

impl Schemas {
    /// Returns the schema of a type that is sent, as a reference.
    pub(super) fn reply<T: JsonSchema>(&mut self) -> Value {
        self.replies.subschema_for::<T>().to_value()
    }

    /// Returns the schema of a type that is read.
    pub(super) fn body<T: JsonSchema>(&mut self) -> Value {
        self.bodies.subschema_for::<T>().to_value()
    }

    /// Returns the schemas that were referred to.
    pub(super) fn into_components(mut self) -> Value {
        Value::Object(self.replies.take_definitions(true))
    }
}

/// `{"status": "ok"}`, the answer of the health routes.
#[derive(Serialize, JsonSchema)]
pub(super) struct Health {
    /// `ok`.
    status: String,
}

/// Part of a log.
#[derive(Deserialize, JsonSchema)]
#[serde(default)]
pub(super) struct LogQuery {
    /// Whether the reply goes on as the log grows.
    follow: bool,
    /// Lines from the end of the log.
    lines: u32,
}

impl Default for LogQuery {
    fn default() -> Self {
        Self { follow: false, lines: 200 }
    }
}

/// Who may call an operation.
#[derive(Clone, Copy)]
pub(super) enum Caller {
    Public,
    /// Clients, by the scope that they need.
    Inference,
    Models,
    Status,
    Admin,
    Own,
    Peer,
    Applicant,
    Worker,
}

/// What a success is answered with.
pub(super) enum Reply {
    Json(Value),
    Text,
    /// Server-sent events, each with such a value as `data:`.
    Events(Value),
    /// The first, or, where the request asks for a stream, events of the second.
    JsonOrEvents(Value, Value),
}

/// One operation.
pub(super) struct Operation {
    method: &'static str,
    template: &'static str,
    caller: Caller,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Option<Value>,
    reply: Reply,
}

impl Operation {
    pub(super) fn get(
        template: &'static str,
        caller: Caller,
        summary: &'static str,
        reply: Reply,
    ) -> Self {
        Self::new("get", template, caller, summary, reply)
    }

    pub(super) fn post(
        template: &'static str,
        caller: Caller,
        summary: &'static str,
        reply: Reply,
    ) -> Self {
        Self::new("post", template, caller, summary, reply)
    }

    pub(super) fn delete(
        template: &'static str,
        caller: Caller,
        summary: &'static str,
        reply: Reply,
    ) -> Self {
        Self::new("delete", template, caller, summary, reply)
    }

    fn new(
        method: &'static str,
        template: &'static str,
        caller: Caller,
        summary: &'static str,
        reply: Reply,
    ) -> Self {
        Self { method, template, caller, summary, parameters: Vec::new(), body: None, reply }
    }

    /// Takes a JSON body.
    pub(super) fn reads(mut self, schema: Value) -> Self {
        self.body = Some(schema);
        self
    }

    /// Takes the headers that say how much time the request has.
    pub(super) fn timed(mut self) -> Self {
        let references =
            TIMING.map(|name| json!({"$ref": format!("#/components/parameters/{name}")}));
        self.parameters.extend(references);
        self
    }

    /// Takes the parameters of the query that are the fields of `schema`.
    pub(super) fn queried(mut self, schema: &Value) -> Self {
        let fields = schema.get("properties").and_then(Value::as_object);
        for (name, schema) in fields.into_iter().flatten() {
            self.parameters.push(json!({"name": name, "in": "query", "schema": schema}));
        }
        self
    }

    /// The path as OpenAPI writes it, where a parameter may stand for several segments.
    pub(super) fn path(&self) -> String {
        self.template.replace("{*", "{")
    }

    pub(super) const fn method(&self) -> &'static str {
        self.method
    }

    pub(super) fn into_value(self, schemas: &mut Schemas) -> Value {
        let mut parameters = self.path_parameters(schemas);
        parameters.extend(self.parameters);
        let security = match self.caller {
            Caller::Public => json!([]),
            Caller::Inference => json!([{"client": ["inference"]}]),
            Caller::Models => json!([{"client": ["models"]}]),
            Caller::Status => json!([{"client": ["status"]}]),
            Caller::Admin => json!([{"client": ["admin"]}]),
            Caller::Own => json!([{"client": ["own"]}]),
            Caller::Peer => json!([{"peer": []}]),
            Caller::Applicant => json!([{"applicant": []}]),
            Caller::Worker => json!([{"worker": []}]),
        };
        let mut operation = json!({
            "summary": self.summary,
            "security": security,
            "parameters": parameters,
            "responses": {
                "200": {"description": "Done.", "content": self.reply.into_content(&schemas.reply::<ErrorBody>())},
                "4XX": {"$ref": "#/components/responses/Refused"},
                "5XX": {"$ref": "#/components/responses/Failed"},
            },
        });
        if let (Some(fields), Some(schema)) = (operation.as_object_mut(), self.body) {
            let content = json!({"application/json": {"schema": schema}});
            fields.insert("requestBody".to_owned(), json!({"required": true, "content": content}));
        }
        operation
    }

    fn path_parameters(&self, schemas: &mut Schemas) -> Vec<Value> {
        let names = self.template.split('/').filter_map(|part| {
            part.strip_prefix('{')?.strip_suffix('}').map(|name| name.trim_start_matches('*'))
        });
        let of = |name: &str| {
            let schema = match name {
                "name" if self.template.contains("/keys/") => schemas.reply::<KeyName>(),
                "name" => schemas.reply::<NodeName>(),
                "id" if self.template.contains("/workers/") => schemas.reply::<WorkerId>(),
                "id" if self.template.contains("/requests/") => schemas.reply::<RequestId>(),
                _ => schemas.reply::<ModelRef>(),
            };
            json!({"name": name, "in": "path", "required": true, "schema": schema})
        };
        names.map(of).collect()
    }
}

impl Reply {
    /// `error` is the schema of the body that every failure has, and the last event of a stream that breaks.
    fn into_content(self, error: &Value) -> Value {
        let events = |each: &Value| {
            let json = json!({
                "contentMediaType": "application/json", "contentSchema": {"anyOf": [each, error]},
            });
            json!({"schema": {
                "type": "object", "required": ["data"],
                "description": "One event; the last one of a stream of tokens is [DONE].",
                "properties": {"data": {"type": "string", "if": {"const": "[DONE]"}, "else": json}},
            }})
        };
        match self {
            Self::Json(schema) => json!({"application/json": {"schema": schema}}),
            Self::Text => json!({"text/plain": {"schema": {"type": "string"}}}),
            Self::Events(each) => json!({"text/event-stream": events(&each)}),
            Self::JsonOrEvents(whole, each) => json!({
                "application/json": {"schema": whole},
                "text/event-stream": events(&each),
            }),
        }
    }
}

/// The three health routes.
pub(super) fn health(schemas: &mut Schemas) -> Vec<Operation> {
    let routes = [
        ("/livez", "Whether the process answers"),
        ("/readyz", "Whether it takes requests"),
        ("/health", "The same as /readyz"),
    ];
    let health = schemas.reply::<Health>();
    let of = |(path, summary)| {
        Operation::get(path, Caller::Public, summary, Reply::Json(health.clone()))
    };
    routes.map(of).into()
}

/// The headers in which a request says how much time it has.
pub(super) fn timing_parameters() -> Value {
    json!({
        "Timeout": {
            "name": crate::headers::REQUEST_TIMEOUT_MS, "in": "header",
            "description": "Milliseconds that the request has.",
            "schema": {"type": "integer", "minimum": 0},
        },
        "Deadline": {
            "name": "x-request-deadline", "in": "header",
            "description": "The end of the request's time; of both headers the earlier one holds.",
            "schema": {"type": "string", "format": "date-time"},
        },
    })
}
