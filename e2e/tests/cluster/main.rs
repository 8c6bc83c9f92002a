//! The whole product from outside: four real programs, a user's commands, a
//! client's requests, an operator's signals.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has to fail"
)]

mod audit;
mod auth;
mod bad_input;
mod canaries;
mod cold_start;
mod conformance;
mod embeddings;
mod endings;
mod errors;
mod faults;
mod front_door;
mod hostile_files;
mod kept;
mod keys;
mod limits;
mod listening;
mod logs;
mod observe;
mod openapi;
mod overload;
mod pairing;
mod rotation;
mod routes;
mod slow_clients;
mod streams;
mod surviving;
#[expect(clippy::unwrap_used, dead_code, reason = "the worker's tests use all of it")]
#[path = "../../../bin/llm-worker-rbee/tests/worker/tiny_models.rs"]
mod tiny_models;
mod tls;
