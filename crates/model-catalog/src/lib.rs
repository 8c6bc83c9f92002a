//! The models of one machine. Owns the catalog (SQLite), the model directory with everything that is written into it,
//! the GGUF header reader and the memory estimate. Never contacts another machine, never loads a model, and never runs
//! a task of its own: every call blocks until it is done.

mod cache_type;
mod catalog;
mod durable;
mod error;
mod estimate;
mod gguf;
mod import;
mod model;
mod rebuild;
mod sidecar;
mod store;
mod transfer;

pub use cache_type::CacheType;
pub use catalog::{Catalog, OpenedCatalog};
pub use error::{CatalogError, StoreError};
pub use estimate::{MemoryEstimate, MemoryParams, Scores, estimate_memory};
pub use gguf::{GgufError, GgufHeader, Purpose};
pub use import::ImportRequest;
pub use model::Model;
pub use rebuild::{Rebuilt, RejectedFile};
pub use store::ModelStore;
pub use transfer::Progress;
