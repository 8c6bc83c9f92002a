//! The real worker over its real socket, with the echo engine and a hive that
//! the test plays.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod choices;
mod client;
mod continuing;
mod disk;
mod embeddings;
mod estimate;
mod hive;
mod life;
mod llama;
mod marked;
mod output;
mod process;
mod real_choices;
mod real_continuing;
mod replies;
mod sharing;
mod slots;
mod tiny_models;
mod tools;
