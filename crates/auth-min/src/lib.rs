//! The rules of who may speak to a daemon. Owns the bearer header's syntax, token digests and fingerprints, and the
//! bind policy; never reads a file, keeps a raw token, or knows HTTP beyond header bytes.

mod bearer;
mod bind;
mod digest;

pub use bearer::{AuthError, BEARER_HEADER_BYTES_MAX, BearerToken};
pub use bind::{
    BindError, TOKEN_LENGTH_MIN, Transport, check_bind, check_open_bind, check_transport,
    is_loopback,
};
pub use digest::{Fingerprint, TokenDigest};
