//! The rules of who may speak to a daemon. Owns the bearer header's syntax, token digests and fingerprints, the bind
//! policy and the host check; never reads a file, keeps a raw token, or knows HTTP beyond header bytes.

mod bearer;
mod bind;
mod digest;
mod host;

pub use bearer::{AuthError, BEARER_HEADER_BYTES_MAX, BearerToken, authorize};
pub use bind::{BindError, TOKEN_LENGTH_MIN, check_bind, is_loopback};
pub use digest::{Fingerprint, TokenDigest};
pub use host::{HostError, check_host};
