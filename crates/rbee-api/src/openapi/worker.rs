//! What a worker answers.

use super::operation::{Caller, Operation, Reply, Schemas, health};
use super::queen::{generation, inputs};
use crate::openai::ModelCardList;
use crate::queen::Removed;
use crate::worker::WorkerStatus;

pub(super) fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let peer = Caller::Peer;
    let mut all = health(schemas);
    all.extend(generation(schemas, peer, ["/v1/chat/completions", "/v1/completions"]));
    all.extend(inputs(schemas, peer, ["/v1/embeddings", "/v1/rerank"]));
    let cards = Reply::Json(schemas.reply::<ModelCardList>());
    let status = schemas.reply::<WorkerStatus>();
    let removed = Reply::Json(schemas.reply::<Removed>());
    let stopped = Reply::Json(status.clone());
    all.extend([
        Operation::get("/v1/models", peer, "The names of its model", cards),
        Operation::get("/api/v1/status", peer, "What it does", Reply::Json(status)),
        Operation::delete("/api/v1/requests/{id}", peer, "Ends requests of this id", removed),
        Operation::post("/api/v1/shutdown", peer, "Ends the worker", stopped),
        Operation::get("/metrics", peer, "Prometheus text", Reply::Text),
    ]);
    all
}
