//! The token of one conversation, which can be replaced while both ends run.
//! Owns which tokens are good now: the one in force, and for a while the one
//! before it. Decides nothing about whose they are.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use auth_min::{Fingerprint, TokenDigest};
use secrets_management::{Secret, SecretError, SecretSource};
use tokio::time::Instant;

/// A token and what it is compared by.
#[derive(Debug, Clone)]
struct Known {
    secret: Arc<Secret>,
    digest: TokenDigest,
}

impl Known {
    fn new(secret: Arc<Secret>) -> Self {
        let digest = TokenDigest::of(secret.expose());
        Self { secret, digest }
    }
}

/// The tokens that are good.
#[derive(Debug)]
struct Tokens {
    current: Known,
    /// The one before, and until when it is good.
    former: Option<(Known, Instant)>,
}

/// The token of one conversation. Clones share it.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Where it is read again, and for how long a former one is good; `None` for one that never changes.
    source: Option<(SecretSource, Duration)>,
    tokens: Arc<RwLock<Arc<Tokens>>>,
}

/// Why a token was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// It could be guessed by whoever reaches the daemon.
    #[error("the new token has {length} characters; on this address it needs {length_min}")]
    TooShort {
        /// Characters of the new token.
        length: usize,
        /// Characters that it needs.
        length_min: usize,
    },
}

impl From<Arc<Secret>> for Credential {
    fn from(secret: Arc<Secret>) -> Self {
        let tokens = Tokens { current: Known::new(secret), former: None };
        Self { source: None, tokens: Arc::new(RwLock::new(Arc::new(tokens))) }
    }
}

impl Credential {
    /// Loads the token from where it is kept. A former one that lies there, too,
    /// is good for `overlap` from the moment it was replaced. Blocks.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn load(source: SecretSource, overlap: Duration) -> Result<Self, SecretError> {
        let tokens = read(&source, overlap)?;
        let tokens = Arc::new(RwLock::new(Arc::new(tokens)));
        Ok(Self { source: Some((source, overlap)), tokens })
    }

    /// Reads the token again, and says by its fingerprint which one is in force
    /// now. On an error everything stays as it was. Blocks.
    ///
    /// # Errors
    /// [`ReloadError`].
    pub fn reload(&self, length_min: usize) -> Result<Fingerprint, ReloadError> {
        if let Some((source, overlap)) = &self.source {
            let tokens = read(source, *overlap)?;
            let length = tokens.current.secret.expose().len();
            if length < length_min {
                return Err(ReloadError::TooShort { length, length_min });
            }
            *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        }
        Ok(self.fingerprint())
    }

    /// Says whether a token that somebody shows is good now. Takes the same time for each wrong one.
    #[must_use]
    pub fn matches(&self, shown: &TokenDigest) -> bool {
        let tokens = self.tokens();
        let is_current = tokens.current.digest.matches(shown);
        let is_former = tokens.former.as_ref().is_some_and(|(former, until)| {
            let is_it = former.digest.matches(shown);
            is_it && Instant::now() < *until
        });
        is_current || is_former
    }

    /// Returns the token to show to others.
    #[must_use]
    pub fn current(&self) -> Arc<Secret> {
        Arc::clone(&self.tokens().current.secret)
    }

    /// Returns the one before, while it is good: who has not heard of the new one yet knows it.
    pub(crate) fn former(&self) -> Option<Arc<Secret>> {
        let tokens = self.tokens();
        let (former, until) = tokens.former.as_ref()?;
        (Instant::now() < *until).then(|| Arc::clone(&former.secret))
    }

    /// Returns what logs may show of the token in force.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.tokens().current.digest.fingerprint()
    }

    fn tokens(&self) -> Arc<Tokens> {
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(source: &SecretSource, overlap: Duration) -> Result<Tokens, SecretError> {
    let current = Known::new(Arc::new(source.load()?));
    let former = source.load_former(overlap)?;
    let former = former.map(|(secret, left)| (Known::new(Arc::new(secret)), Instant::now() + left));
    Ok(Tokens { current, former })
}
