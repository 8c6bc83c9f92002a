//! Secrets: loading, generating, comparing, wiping. Owns the only type that holds a secret and the only code that reads
//! one from a file; never prints one, and never takes one from the command line or the environment.

mod core_dumps;
mod document;
mod error;
mod file;
mod rotation;
mod secret;
mod source;

pub use core_dumps::forbid_core_dumps;
pub use document::{load_document, store_document, store_new_document};
pub use error::{ContentProblem, SecretError};
pub use file::{load_file, load_or_generate};
pub use rotation::{Former, former_path, load_former, replace_file};
pub use secret::{SECRET_BYTES_MAX, Secret};
pub use source::SecretSource;
