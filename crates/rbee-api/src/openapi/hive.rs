//! What a hive answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::operation::{Caller, LogQuery, Operation, Reply, Schemas, health};
use super::queen::{generation, inputs};
use crate::hive::{HeartbeatReply, HiveStatus};
use crate::model::{ModelList, PullEvent, PullRequest};
use crate::queen::Removed;
use crate::worker::{
    LoadEvent, StartWorker, WorkerDetail, WorkerEnding, WorkerHeartbeat, WorkerInfo, WorkerList,
    WorkerLoading, WorkerReady, WorkerReset,
};

/// What a hive answers that is asked to end.
#[derive(Serialize, JsonSchema)]
struct Draining {
    /// `true`.
    draining: bool,
}

/// How a hive is to end.
#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "only described here")]
struct ShutdownQuery {
    /// Milliseconds that it has, at most as many as are configured; 0 ends it at once.
    timeout_ms: Option<u64>,
}

pub(super) fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let mut all = health(schemas);
    all.extend(machine(schemas));
    all.extend(workers(schemas));
    let chats = ["/api/v1/workers/{id}/v1/chat/completions", "/api/v1/workers/{id}/v1/completions"];
    all.extend(generation(schemas, Caller::Peer, chats));
    let vectors = ["/api/v1/workers/{id}/v1/embeddings", "/api/v1/workers/{id}/v1/rerank"];
    all.extend(inputs(schemas, Caller::Peer, vectors));
    all.extend(contacts(schemas));
    all
}

fn machine(schemas: &mut Schemas) -> Vec<Operation> {
    let peer = Caller::Peer;
    let status = Reply::Json(schemas.reply::<HiveStatus>());
    let draining = Reply::Json(schemas.reply::<Draining>());
    let models = Reply::Json(schemas.reply::<ModelList>());
    let pulled = Reply::Events(schemas.reply::<PullEvent>());
    let removed = Reply::Json(schemas.reply::<Removed>());
    let pull = schemas.body::<PullRequest>();
    let ending = schemas.body::<ShutdownQuery>();
    vec![
        Operation::get("/metrics", peer, "Prometheus text", Reply::Text),
        Operation::get("/api/v1/status", peer, "The machine and its workers", status),
        Operation::post("/api/v1/shutdown", peer, "Ends the hive", draining).queried(&ending),
        Operation::get("/api/v1/models", peer, "The models on disk", models),
        Operation::post("/api/v1/models/pull", peer, "Adds a model", pulled).reads(pull).timed(),
        Operation::delete("/api/v1/models/{*reference}", peer, "Removes a model", removed).timed(),
    ]
}

fn workers(schemas: &mut Schemas) -> Vec<Operation> {
    let peer = Caller::Peer;
    let list = Reply::Json(schemas.reply::<WorkerList>());
    let detail = Reply::Json(schemas.reply::<WorkerDetail>());
    let started = Reply::Json(schemas.reply::<WorkerInfo>());
    let reset = Reply::Json(schemas.reply::<WorkerReset>());
    let removed = Reply::Json(schemas.reply::<Removed>());
    let load = Reply::Events(schemas.reply::<LoadEvent>());
    let start = schemas.body::<StartWorker>();
    let log = schemas.body::<LogQuery>();
    vec![
        Operation::get("/api/v1/workers", peer, "The workers", list),
        Operation::post("/api/v1/workers", peer, "Has a worker of a model", started).reads(start),
        Operation::get("/api/v1/workers/{id}", peer, "One worker", detail),
        Operation::delete("/api/v1/workers/{id}", peer, "Stops a worker", removed).timed(),
        Operation::post("/api/v1/workers/{id}/reset", peer, "Forgets its failures", reset),
        Operation::get("/api/v1/workers/{id}/load", peer, "How far its load is", load).timed(),
        Operation::get("/api/v1/workers/{id}/logs", peer, "Its log", Reply::Text)
            .queried(&log)
            .timed(),
        Operation::get("/api/v1/workers/{id}/metrics", peer, "Its own metrics", Reply::Text),
    ]
}

fn contacts(schemas: &mut Schemas) -> Vec<Operation> {
    let answer = schemas.reply::<HeartbeatReply>();
    let bodies = [
        ("/api/v1/workers/{id}/loading", schemas.body::<WorkerLoading>()),
        ("/api/v1/workers/{id}/ready", schemas.body::<WorkerReady>()),
        ("/api/v1/workers/{id}/heartbeat", schemas.body::<WorkerHeartbeat>()),
        ("/api/v1/workers/{id}/ending", schemas.body::<WorkerEnding>()),
    ];
    let of = |(path, body)| {
        let reply = Reply::Json(answer.clone());
        Operation::post(path, Caller::Worker, "A worker speaks for itself", reply).reads(body)
    };
    bodies.map(of).into()
}
