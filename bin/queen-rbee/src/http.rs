//! The queen's route table: every path, who may call it, and what answers.

mod audit;
mod hives;
mod keys;
mod models;
mod openai;
mod operations;
mod pairing;
mod workers;

use std::sync::Arc;

use rbee_http::{Access, Authenticator, Principal, Readiness, RouteTable};

use crate::Credentials;
use crate::app::App;
use crate::jwt::Gate;
use crate::keys::Keys;
use crate::pairing::Pairings;

/// The table. `readiness` answers the health routes.
pub(crate) fn routes(readiness: Readiness) -> RouteTable<Arc<App>> {
    RouteTable::new()
        .health(readiness)
        .get("/v1/models", Access::Models, openai::models)
        .get("/v1/models/{*id}", Access::Models, openai::model)
        .post("/v1/chat/completions", Access::Inference, openai::chat)
        .post("/v1/completions", Access::Inference, openai::completion)
        .post("/v1/embeddings", Access::Inference, openai::embeddings)
        .post("/v1/rerank", Access::Inference, openai::rerank)
        .get("/api/v1/status", Access::Status, operations::status)
        .get("/api/v1/hives", Access::Status, hives::list)
        .post("/api/v1/hives/{name}/heartbeat", Access::Peer, hives::heartbeat)
        .post("/api/v1/hives/{name}/audit", Access::Peer, audit::exchange)
        .post("/api/v1/hives/{name}/pair", Access::Applicant, pairing::claim)
        .delete("/api/v1/hives/{name}", Access::Admin, pairing::forget)
        .post("/api/v1/pairings", Access::Admin, pairing::create)
        .get("/api/v1/workers", Access::Status, workers::list)
        .get("/api/v1/workers/{id}", Access::Status, workers::show)
        .delete("/api/v1/workers/{id}", Access::Admin, workers::stop)
        .post("/api/v1/workers/{id}/reset", Access::Admin, workers::reset)
        .get("/api/v1/workers/{id}/load", Access::Status, workers::load)
        .get("/api/v1/workers/{id}/logs", Access::Status, workers::logs)
        .get("/api/v1/models", Access::Models, models::list)
        .post("/api/v1/models/pull", Access::Admin, models::pull)
        .delete("/api/v1/models/{*reference}", Access::Admin, models::remove)
        .get("/api/v1/keys", Access::Admin, keys::list)
        .post("/api/v1/keys", Access::Admin, keys::create)
        .delete("/api/v1/keys/{name}", Access::Admin, keys::revoke)
        .get("/api/v1/usage", Access::Own, keys::usage)
        .post("/api/v1/shutdown", Access::Admin, operations::shutdown)
        .get("/metrics", Access::Status, operations::metrics)
}

/// Tells clients, hives and machines that are about to be paired apart by what they show; each comparison takes the same time.
pub(crate) fn authenticator(
    credentials: &Credentials,
    keys: Arc<Keys>,
    pairings: Arc<Pairings>,
    gate: Option<Arc<Gate>>,
) -> Authenticator {
    let Credentials { client, hive } = credentials.clone();
    Arc::new(move |shown, certificate| {
        let digest = shown.digest();
        // Whoever shows a hive's certificate is that hive or nobody, whatever tokens it has.
        if certificate.is_some() {
            return pairings.recognise(&digest, certificate);
        }
        match (client.matches(&digest), hive.matches(&digest)) {
            (true, _) => Some(Principal::Client),
            (false, true) => Some(Principal::Peer),
            (false, false) => {
                let signed = || gate.as_ref().and_then(|gate| gate.recognise(shown));
                let key = keys.recognise(shown).or_else(signed).map(Principal::Key);
                key.or_else(|| pairings.recognise(&digest, None))
            }
        }
    })
}
