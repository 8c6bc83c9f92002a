//! Signed tokens at the queen: keeps the issuer's public keys and the list of
//! tokens that were taken back, and turns a good token into a [`Grant`]. What
//! makes a token good stands in `jwt-guardian`.

mod sources;

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use auth_min::BearerToken;
use input_validation::ModelRef;
use jwt_guardian::{Algorithm, Claims, KeySet, Refused, Rules, SelfTestFailed, verify};
use rbee_http::Grant;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::config::JwtSettings;
use sources::{KeySource, RevokedFile, SourceError};

/// How often the list of tokens that were taken back is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest time between two readings of the keys for tokens with an unknown
/// key: whoever sends such tokens causes no more than this.
const UNKNOWN_KEY_GAP: Duration = Duration::from_secs(5);
/// What usage of signed tokens is counted under begins with; no key's name can.
const SUBJECT_PREFIX: &str = "jwt:";

/// Says why signed tokens cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// The code that checks signatures does not work.
    #[error(transparent)]
    SelfTest(#[from] SelfTestFailed),
    /// A file or address of the configuration cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Believes or refuses signed tokens.
#[derive(Debug)]
pub(crate) struct Gate {
    settings: JwtSettings,
    rules: Rules,
    source: KeySource,
    revoked_file: Option<RevokedFile>,
    /// The last good ones; none until the first were fetched.
    keys: RwLock<Option<KeySet>>,
    revoked: RwLock<HashSet<String>>,
    /// Notified when a token names a key that is not known.
    unknown_key: Notify,
}

impl Gate {
    /// Tests the code, reads the files; keys from an address come later. Blocks.
    ///
    /// # Errors
    /// [`JwtError`].
    pub(crate) fn open(settings: &JwtSettings) -> Result<Self, JwtError> {
        jwt_guardian::self_test()?;
        let source = KeySource::new(settings)?;
        let keys = source.read_file()?;
        let revoked_file = settings.revoked_file.clone().map(RevokedFile::new);
        let revoked = match &revoked_file {
            Some(file) => file.read()?,
            None => HashSet::new(),
        };
        let names = settings.algorithms.iter();
        let rules = Rules {
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            leeway: Duration::from_secs(settings.leeway_seconds),
            algorithms: names.filter_map(|name| Algorithm::from_name(name)).collect(),
            needs_id: revoked_file.is_some(),
        };
        Ok(Self {
            settings: settings.clone(),
            rules,
            source,
            revoked_file,
            keys: RwLock::new(keys),
            revoked: RwLock::new(revoked),
            unknown_key: Notify::new(),
        })
    }

    /// Returns what a signed token grants; `None` for one that is not good.
    pub(crate) fn recognise(&self, token: &BearerToken<'_>) -> Option<Arc<Grant>> {
        let text = token.expose();
        if text.matches('.').count() != 2 {
            return None;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let verified = match &*keys {
            Some(keys) => verify(text, keys, &self.rules, now.as_secs()),
            None => Err(Refused::UnknownKey),
        };
        drop(keys);
        let claims = match verified {
            Ok(claims) => claims,
            Err(reason) => {
                if reason == Refused::UnknownKey {
                    self.unknown_key.notify_one();
                }
                tracing::info!(%reason, "signed token refused");
                return None;
            }
        };
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        if claims.id.as_ref().is_some_and(|id| revoked.contains(id)) {
            tracing::info!(reason = "it was taken back", "signed token refused");
            return None;
        }
        drop(revoked);
        self.grant(&claims).map(Arc::new)
    }

    /// Reads what a token may do; `None` where it names models in a form that says nothing.
    fn grant(&self, claims: &Claims) -> Option<Grant> {
        let subject = format!("{SUBJECT_PREFIX}{}", claims.subject);
        // With the issuer, since another one may have a subject of the same name.
        let identity = format!("jwt {} {}", self.settings.issuer, claims.subject);
        let mut grant = Grant::new(subject, &identity);
        for word in claims.words(&self.settings.scopes_claim)? {
            grant.routes.extend(self.settings.scopes.get(word).into_iter().flatten());
        }
        grant.routes.sort();
        grant.routes.dedup();
        let models = claims.words(&self.settings.models_claim)?;
        let models: Result<Vec<ModelRef>, _> = models.into_iter().map(str::parse).collect();
        grant.models = models.ok()?;
        if grant.models.is_empty() && claims.has(&self.settings.models_claim) {
            return None;
        }
        grant.limits = self.settings.limits;
        Some(grant)
    }

    /// Keeps keys and list fresh, until dropped. What cannot be read leaves the
    /// last good one in force.
    pub(crate) async fn keep_fresh(self: Arc<Self>) {
        let refresh = Duration::from_secs(self.settings.refresh_seconds);
        let mut read_at: Option<Instant> = None;
        loop {
            let age = read_at.map(|at| at.elapsed());
            let is_missing = self.keys.read().unwrap_or_else(PoisonError::into_inner).is_none();
            let due = if is_missing { UNKNOWN_KEY_GAP } else { refresh };
            if age.is_none_or(|age| age >= due) {
                self.read_keys().await;
                read_at = Some(Instant::now());
            }
            self.read_revoked().await;
            let may_hurry = read_at.is_some_and(|at| at.elapsed() >= UNKNOWN_KEY_GAP);
            tokio::select! {
                () = sleep(LOOK_INTERVAL) => {}
                () = self.unknown_key.notified(), if may_hurry => read_at = None,
            }
        }
    }

    async fn read_keys(&self) {
        match self.source.read().await {
            Ok(fresh) => {
                let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
                if keys.as_ref() != Some(&fresh) {
                    tracing::info!("the issuer's keys are new");
                }
                *keys = Some(fresh);
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the issuer's keys cannot be read; the last ones stay");
            }
        }
    }

    async fn read_revoked(&self) {
        let Some(file) = &self.revoked_file else { return };
        match file.read_if_changed().await {
            Ok(None) => {}
            Ok(Some(fresh)) => {
                tracing::info!(tokens = fresh.len(), "the list of tokens taken back is new");
                *self.revoked.write().unwrap_or_else(PoisonError::into_inner) = fresh;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "the list of tokens taken back cannot be read; the last one stays"
                );
            }
        }
    }
}
