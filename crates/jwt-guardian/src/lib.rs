//! Signed tokens (JWT, RFC 7519) of an identity provider. Owns what a token
//! must be to be believed: its form, its signature by a key that is known
//! beforehand, and its claims. Fetches nothing, reads no file, knows no route;
//! what a believed token may do is decided by whoever asked.

mod algorithm;
mod claims;
mod key_set;
mod object;
mod token;

pub use algorithm::{Algorithm, SelfTestFailed, self_test};
pub use claims::{Claims, Refused, Rules};
pub use key_set::{KEY_SET_BYTES_MAX, KeySet, KeySetError};
pub use token::verify;
