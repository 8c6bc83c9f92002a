//! Whose request it is, as far as the queue deals out turns by it. Holds no
//! token and no text of a client's: a fingerprint and a hash.

use std::hash::{DefaultHasher, Hash, Hasher};

use auth_min::Fingerprint;

/// The one that a turn is given to: turns are dealt out between keys first,
/// and between the users of one key after that, so that a key gets no more by
/// naming more users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Client {
    /// The key that the request showed.
    pub(super) key: Fingerprint,
    /// The request's `user`; all requests without one are one user's.
    pub(super) user: User,
}

/// A user of a key, known by a hash: two whose hashes are equal share turns,
/// which harms nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct User(Option<u64>);

impl Client {
    /// Names the client that showed the key and asks for `user`.
    pub(crate) fn new(key: Fingerprint, user: Option<&str>) -> Self {
        let hash = |user: &str| {
            let mut hasher = DefaultHasher::new();
            user.hash(&mut hasher);
            hasher.finish()
        };
        Self { key, user: User(user.map(hash)) }
    }
}
