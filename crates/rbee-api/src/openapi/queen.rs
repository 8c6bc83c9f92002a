//! What the queen answers.

use schemars::JsonSchema;
use serde::Deserialize;

use super::operation::{Caller, LogQuery, Operation, Reply, Schemas, health};
use super::requests;
use crate::audit::AuditExchange;
use crate::hive::{HiveSnapshot, SnapshotReply};
use crate::key::{CreateKey, CreatedKey, KeyInfo, KeyList, USAGE_DAYS_MAX, UsageList};
use crate::model::{PullEvent, PullRequest};
use crate::openai::{
    ChatChunk, ChatCompletion, CompletionReply, EmbeddingList, ModelCard, ModelCardList,
    RerankReply,
};
use crate::pairing::{CreatePairing, CreatedPairing, PairReply, PairRequest};
use crate::queen::{
    HiveList, PlacedModelList, PlacedWorkerDetail, PlacedWorkerList, PlacedWorkerReset,
    QueenStatus, Removed,
};
use crate::worker::LoadEvent;

pub(super) fn operations(schemas: &mut Schemas) -> Vec<Operation> {
    let mut all = health(schemas);
    all.extend(openai(schemas));
    all.extend(workers(schemas));
    all.extend(cluster(schemas));
    all.extend(keys(schemas));
    all.extend(pairing(schemas));
    all
}

/// How far back a listing of usage goes.
#[derive(Deserialize, JsonSchema)]
#[expect(dead_code, reason = "only described here")]
struct UsageQuery {
    /// Days, today included; 30 unless told.
    #[schemars(range(min = 1, max = USAGE_DAYS_MAX))]
    days: Option<u32>,
}

fn keys(schemas: &mut Schemas) -> Vec<Operation> {
    let list = Reply::Json(schemas.reply::<KeyList>());
    let created = Reply::Json(schemas.reply::<CreatedKey>());
    let revoked = Reply::Json(schemas.reply::<KeyInfo>());
    let used = Reply::Json(schemas.reply::<UsageList>());
    let wanted = schemas.body::<CreateKey>();
    let days = schemas.body::<UsageQuery>();
    vec![
        Operation::get("/api/v1/keys", Caller::Admin, "The keys, without their values", list),
        Operation::post("/api/v1/keys", Caller::Admin, "Makes a key", created).reads(wanted),
        Operation::delete("/api/v1/keys/{name}", Caller::Admin, "Takes a key back", revoked),
        Operation::get("/api/v1/usage", Caller::Own, "What was used by key and day", used)
            .queried(&days),
    ]
}

fn pairing(schemas: &mut Schemas) -> Vec<Operation> {
    let created = Reply::Json(schemas.reply::<CreatedPairing>());
    let paired = Reply::Json(schemas.reply::<PairReply>());
    let removed = Reply::Json(schemas.reply::<Removed>());
    let wanted = schemas.body::<CreatePairing>();
    let request = schemas.body::<PairRequest>();
    let (admin, machine) = (Caller::Admin, Caller::Applicant);
    vec![
        Operation::post("/api/v1/pairings", admin, "Makes a one-time code", created).reads(wanted),
        Operation::post("/api/v1/hives/{name}/pair", machine, "Takes a machine in", paired)
            .reads(request),
        Operation::delete("/api/v1/hives/{name}", admin, "Forgets a paired machine", removed),
    ]
}

fn openai(schemas: &mut Schemas) -> Vec<Operation> {
    let cards = Reply::Json(schemas.reply::<ModelCardList>());
    let card = Reply::Json(schemas.reply::<ModelCard>());
    let mut all = vec![
        Operation::get("/v1/models", Caller::Models, "OpenAI's list of models", cards),
        Operation::get("/v1/models/{*id}", Caller::Models, "One of them", card),
    ];
    all.extend(generation(schemas, Caller::Inference, ["/v1/chat/completions", "/v1/completions"]));
    all.extend(inputs(schemas, Caller::Inference, ["/v1/embeddings", "/v1/rerank"]));
    all
}

/// Chats and text completions, at whichever paths.
pub(super) fn generation(
    schemas: &mut Schemas,
    caller: Caller,
    [chat, completion]: [&'static str; 2],
) -> Vec<Operation> {
    let chats =
        Reply::JsonOrEvents(schemas.reply::<ChatCompletion>(), schemas.reply::<ChatChunk>());
    let texts =
        Reply::JsonOrEvents(schemas.reply::<CompletionReply>(), schemas.reply::<CompletionReply>());
    let model = requests::model(schemas);
    vec![
        Operation::post(chat, caller, "A chat", chats).reads(requests::chat(&model)).timed(),
        Operation::post(completion, caller, "A text completion", texts)
            .reads(requests::completion(&model))
            .timed(),
    ]
}

/// Embeddings and ranking, at whichever paths.
pub(super) fn inputs(
    schemas: &mut Schemas,
    caller: Caller,
    [embeddings, rerank]: [&'static str; 2],
) -> Vec<Operation> {
    let embedded = Reply::Json(schemas.reply::<EmbeddingList>());
    let ranked = Reply::Json(schemas.reply::<RerankReply>());
    let model = requests::model(schemas);
    vec![
        Operation::post(embeddings, caller, "Embeddings", embedded)
            .reads(requests::embeddings(&model))
            .timed(),
        Operation::post(rerank, caller, "Documents ranked against a query", ranked)
            .reads(requests::rerank(&model))
            .timed(),
    ]
}

fn workers(schemas: &mut Schemas) -> Vec<Operation> {
    let list = Reply::Json(schemas.reply::<PlacedWorkerList>());
    let detail = Reply::Json(schemas.reply::<PlacedWorkerDetail>());
    let reset = Reply::Json(schemas.reply::<PlacedWorkerReset>());
    let removed = Reply::Json(schemas.reply::<Removed>());
    let load = Reply::Events(schemas.reply::<LoadEvent>());
    let log = schemas.body::<LogQuery>();
    vec![
        Operation::get("/api/v1/workers", Caller::Status, "Workers on all machines", list),
        Operation::get("/api/v1/workers/{id}", Caller::Status, "One worker", detail),
        Operation::delete("/api/v1/workers/{id}", Caller::Admin, "Stops a worker", removed),
        Operation::post("/api/v1/workers/{id}/reset", Caller::Admin, "Forgets its failures", reset),
        Operation::get("/api/v1/workers/{id}/load", Caller::Status, "How far its load is", load)
            .timed(),
        Operation::get("/api/v1/workers/{id}/logs", Caller::Status, "Its log", Reply::Text)
            .queried(&log),
    ]
}

fn cluster(schemas: &mut Schemas) -> Vec<Operation> {
    let status = schemas.reply::<QueenStatus>();
    let hives = Reply::Json(schemas.reply::<HiveList>());
    let beat = Reply::Json(schemas.reply::<SnapshotReply>());
    let models = Reply::Json(schemas.reply::<PlacedModelList>());
    let pulled = Reply::Events(schemas.reply::<PullEvent>());
    let removed = Reply::Json(schemas.reply::<Removed>());
    let checkpoints = Reply::Json(schemas.reply::<AuditExchange>());
    let exchange = schemas.body::<AuditExchange>();
    let snapshot = schemas.body::<HiveSnapshot>();
    let pull = schemas.body::<PullRequest>();
    vec![
        Operation::get(
            "/api/v1/status",
            Caller::Status,
            "The queen, all machines, all workers",
            Reply::Json(status.clone()),
        ),
        Operation::get("/api/v1/hives", Caller::Status, "The machines", hives),
        Operation::post(
            "/api/v1/hives/{name}/heartbeat",
            Caller::Peer,
            "Takes a machine's report",
            beat,
        )
        .reads(snapshot),
        Operation::post(
            "/api/v1/hives/{name}/audit",
            Caller::Peer,
            "Keeps a machine's checkpoint and answers with her own",
            checkpoints,
        )
        .reads(exchange),
        Operation::get("/api/v1/models", Caller::Models, "The models on all machines", models),
        Operation::post("/api/v1/models/pull", Caller::Admin, "Adds a model", pulled).reads(pull),
        Operation::delete("/api/v1/models/{*reference}", Caller::Admin, "Removes a model", removed),
        Operation::post("/api/v1/shutdown", Caller::Admin, "Ends the queen", Reply::Json(status)),
        Operation::get("/metrics", Caller::Status, "Prometheus text", Reply::Text),
    ]
}
