//! A safe wrapper over llama.cpp: models, contexts, batches, vocabularies,
//! chat templates, replies, grammars and devices. Owns every `unsafe` block of the project.
//!
//! What it never does: schedule, sample, cache prefixes, or know what a request
//! is. Anything that a caller can pass through this interface comes back as a
//! value or a typed error; the checks that llama.cpp makes by aborting the
//! process are made here first. Three things can still end the process: a bug
//! in llama.cpp, a GPU that fails in the middle of a computation, and a model
//! file crafted against llama.cpp's parser. A program that uses this crate is
//! therefore supervised.
#![deny(clippy::undocumented_unsafe_blocks)]

mod ffi;
mod log;

pub mod backend;
pub mod batch;
pub mod chat;
pub mod context;
pub mod context_params;
pub mod device;
pub mod grammar;
pub mod kv_type;
pub mod memory;
pub mod memory_use;
pub mod model;
pub mod model_params;
pub mod reply;
pub mod vocab;
