//! What a credential allows, whichever kind of credential it is. Decides by
//! itself only which routes; models and limits are for whoever serves them.

use auth_min::{Fingerprint, TokenDigest};
use input_validation::{ModelRef, Sha256Hex};
use rbee_api::key::{KeyLimits, RouteGroup};
use tokio_util::sync::CancellationToken;

/// What the holder of one key or signed token may do.
#[derive(Debug)]
pub struct Grant {
    /// Under which name limits and usage are counted.
    pub subject: String,
    /// The routes that it opens.
    pub routes: Vec<RouteGroup>,
    /// The models that it may ask for; empty means all.
    pub models: Vec<ModelRef>,
    /// How much may be done with it.
    pub limits: KeyLimits,
    /// Cancelled when the credential is taken back.
    pub revoked: CancellationToken,
    identity: TokenDigest,
}

impl Grant {
    /// Begins with one that opens nothing. `identity` sets it apart from all
    /// others for ever; two with the same one share computed prompts and turns.
    #[must_use]
    pub fn new(subject: impl Into<String>, identity: &str) -> Self {
        Self {
            subject: subject.into(),
            routes: Vec::new(),
            models: Vec::new(),
            limits: KeyLimits::default(),
            revoked: CancellationToken::new(),
            identity: TokenDigest::of(&format!("rbee holder {identity}")),
        }
    }

    /// Says whether it opens the routes of `group`.
    #[must_use]
    pub fn opens(&self, group: RouteGroup) -> bool {
        self.routes.iter().any(|own| *own == group || *own == RouteGroup::Admin)
    }

    /// Returns what workers are told of the holder, so that computed prompts
    /// are shared by nobody else.
    #[must_use]
    pub fn cache_scope(&self) -> Sha256Hex {
        Sha256Hex::from_bytes(self.identity.as_bytes())
    }

    /// Returns what turns are dealt out by.
    #[must_use]
    pub fn fairness(&self) -> Fingerprint {
        self.identity.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_administrator_opens_all_routes_and_others_only_their_own() {
        let opens = |routes: &[RouteGroup]| {
            let mut grant = Grant::new("a", "a");
            grant.routes = routes.to_vec();
            RouteGroup::ALL.map(|group| grant.opens(group))
        };
        assert_eq!(opens(&[]), [false; 4]);
        assert_eq!(opens(&[RouteGroup::Inference]), [true, false, false, false]);
        assert_eq!(opens(&[RouteGroup::Models, RouteGroup::Status]), [false, true, true, false]);
        assert_eq!(opens(&[RouteGroup::Admin]), [true; 4]);
    }

    #[test]
    fn the_scope_is_the_holders_own_and_does_not_tell_who_it_is() {
        let scope = |identity| Grant::new("same name", identity).cache_scope().to_string();
        assert_eq!(scope("k-1"), scope("k-1"));
        assert_ne!(scope("k-1"), scope("k-2"));
        assert_ne!(
            scope("k-1"),
            Sha256Hex::from_bytes(TokenDigest::of("k-1").as_bytes()).to_string()
        );
    }
}
