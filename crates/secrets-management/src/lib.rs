//! Secrets: loading, generating, comparing, wiping. Owns the only type that holds a secret and the only code that reads
//! one from a file; never prints one, and never takes one from the command line or the environment.

mod error;
mod file;
mod secret;

pub use error::{ContentProblem, SecretError};
pub use file::{load_file, load_or_generate};
pub use secret::{SECRET_BYTES_MAX, Secret};
