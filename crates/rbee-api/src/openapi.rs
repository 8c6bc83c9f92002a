//! The interfaces of the three daemons as OpenAPI 3.1 documents. Replies, and the bodies that serde reads, are
//! described by their types; OpenAI's requests, which are parsed by hand, by `requests`. Owns no route: a test
//! holds the documents to the route tables.

mod hive;
mod operation;
mod queen;
mod requests;
mod worker;

use serde_json::{Map, Value, json};

use crate::error::ErrorBody;
use operation::{Operation, Schemas};

/// Returns the document of the queen.
#[must_use]
pub fn queen() -> Value {
    document("queen-rbee", "The queen: what clients call.", 8080, queen::operations)
}

/// Returns the document of a hive.
#[must_use]
pub fn hive() -> Value {
    document("rbee-hive", "A hive: what its queen and its workers call.", 9200, hive::operations)
}

/// Returns the document of a worker.
#[must_use]
pub fn worker() -> Value {
    document("llm-worker-rbee", "A worker: what its hive calls.", 8081, worker::operations)
}

/// Writes a document as text, the form in which programs print it.
#[must_use]
pub fn to_text(document: &Value) -> String {
    // A tree of texts and numbers is always JSON.
    serde_json::to_string_pretty(document).unwrap_or_default() + "\n"
}

fn document(
    program: &str,
    description: &str,
    port: u16,
    operations: fn(&mut Schemas) -> Vec<Operation>,
) -> Value {
    let mut schemas = Schemas::default();
    let mut paths: Map<String, Value> = Map::new();
    for operation in operations(&mut schemas) {
        let (path, method) = (operation.path(), operation.method());
        let item = paths.entry(path).or_insert_with(|| json!({}));
        if let Some(item) = item.as_object_mut() {
            item.insert(method.to_owned(), operation.into_value(&mut schemas));
        }
    }
    let error = schemas.reply::<ErrorBody>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": program,
            "version": env!("CARGO_PKG_VERSION"),
            "description": description,
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": format!("http://127.0.0.1:{port}")}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "client": bearer("The client token, for clients of the queen."),
                "applicant": bearer("The secret of a one-time code for pairing."),
                "peer": bearer("The token between queen and hive, or the one a hive gave its worker."),
                "worker": bearer("The token a hive gave a worker for calling back."),
            },
            "parameters": operation::timing_parameters(),
            "responses": {
                "Refused": failure("The request is at fault; `code` says why.", &error),
                "Failed": failure("The server is; `retryable` says whether a later try may succeed.", &error),
            },
            "schemas": schemas.into_components(),
        },
    })
}

fn bearer(description: &str) -> Value {
    json!({"type": "http", "scheme": "bearer", "description": description})
}

fn failure(description: &str, error: &Value) -> Value {
    json!({"description": description, "content": {"application/json": {"schema": error}}})
}
