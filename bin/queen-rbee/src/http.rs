//! The queen's route table: every path, who may call it, and what answers.

mod hives;
mod models;
mod openai;
mod operations;
mod workers;

use std::sync::Arc;

use auth_min::TokenDigest;
use rbee_http::{Access, Authenticator, Principal, Readiness, RouteTable};
use secrets_management::Secret;

use crate::app::App;

/// The table. `readiness` answers the health routes.
pub(crate) fn routes(readiness: Readiness) -> RouteTable<Arc<App>> {
    RouteTable::new()
        .health(readiness)
        .get("/v1/models", Access::Client, openai::models)
        .get("/v1/models/{*id}", Access::Client, openai::model)
        .post("/v1/chat/completions", Access::Client, openai::chat)
        .post("/v1/completions", Access::Client, openai::completion)
        .post("/v1/embeddings", Access::Client, openai::embeddings)
        .post("/v1/rerank", Access::Client, openai::rerank)
        .get("/api/v1/status", Access::Client, operations::status)
        .get("/api/v1/hives", Access::Client, hives::list)
        .post("/api/v1/hives/{name}/heartbeat", Access::Peer, hives::heartbeat)
        .get("/api/v1/workers", Access::Client, workers::list)
        .get("/api/v1/workers/{id}", Access::Client, workers::show)
        .delete("/api/v1/workers/{id}", Access::Client, workers::stop)
        .post("/api/v1/workers/{id}/reset", Access::Client, workers::reset)
        .get("/api/v1/workers/{id}/load", Access::Client, workers::load)
        .get("/api/v1/workers/{id}/logs", Access::Client, workers::logs)
        .get("/api/v1/models", Access::Client, models::list)
        .post("/api/v1/models/pull", Access::Client, models::pull)
        .delete("/api/v1/models/{*reference}", Access::Client, models::remove)
        .post("/api/v1/shutdown", Access::Client, operations::shutdown)
        .get("/metrics", Access::Client, operations::metrics)
}

/// Tells clients from hives by their token; each comparison takes the same time.
pub(crate) fn authenticator(client: &Secret, hive: &Secret) -> Authenticator {
    let client = TokenDigest::of(client.expose());
    let hive = TokenDigest::of(hive.expose());
    Arc::new(move |shown| {
        let digest = shown.digest();
        match (digest.matches(&client), digest.matches(&hive)) {
            (true, _) => Some(Principal::Client),
            (false, true) => Some(Principal::Peer),
            (false, false) => None,
        }
    })
}
