//! Keys with names: made, listed, taken back, and recognised when a client
//! shows one. Holds all of them in memory, by their digests, so that one that
//! is taken back is refused from that moment on. What they may do is carried
//! by their [`Grant`]; what they use stands in [`Accounts`].

mod accounts;
mod limits;
mod requester;
mod store;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use auth_min::{BearerToken, Fingerprint, TokenDigest};
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_api::key::{
    CreateKey, CreatedKey, KEY_MODELS_MAX, KEYS_MAX, KeyInfo, KeyValue, RouteGroup, UsageList,
    UsageRow,
};
use rbee_http::{ApiError, Grant, new_request_id};
use rbee_sqlite::DatabaseError;
use secrets_management::Secret;
use tokio::time::sleep;

use accounts::Posting;
use limits::Moment;
use store::{Store, StoredKey};

pub(crate) use accounts::{Accounts, Spending, Tokens};
pub(crate) use requester::Requester;

/// Under which name the token of the home directory is counted.
pub(crate) const CLIENT_TOKEN: &str = "client-token";
/// What keys begin with, so that people and scanners of secrets know them.
const VALUE_PREFIX: &str = "rbee_";
/// How much of what was used a crash can lose.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// What a key opens that is made without more.
const ROUTES_DEFAULT: [RouteGroup; 2] = [RouteGroup::Inference, RouteGroup::Models];

/// A key that clients may show.
#[derive(Debug)]
struct Held {
    key: StoredKey,
    grant: Arc<Grant>,
}

impl Held {
    fn new(key: StoredKey) -> Self {
        let mut grant = Grant::new(key.info.name.as_str(), &key.info.id);
        grant.routes.clone_from(&key.info.routes);
        grant.models.clone_from(&key.info.models);
        grant.limits = key.info.limits;
        Self { key, grant: Arc::new(grant) }
    }
}

/// All keys, the client token's grant among them.
#[derive(Debug)]
pub(crate) struct Keys {
    store: Arc<Store>,
    /// By fingerprint, which is public; among equal ones the digest decides, in constant time.
    held: RwLock<HashMap<Fingerprint, Vec<Held>>>,
    client_token: Arc<Grant>,
    accounts: Arc<Accounts>,
}

impl Keys {
    /// Opens the database at `path`. Blocks.
    ///
    /// # Errors
    /// The database cannot be used.
    pub(crate) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let store = Store::open(path)?;
        let mut held: HashMap<Fingerprint, Vec<Held>> = HashMap::new();
        for key in store.keys()? {
            held.entry(key.digest.fingerprint()).or_default().push(Held::new(key));
        }
        let today = store.usage(Moment::now().day(), None)?;
        let mut client_token = Grant::new(CLIENT_TOKEN, CLIENT_TOKEN);
        client_token.routes = vec![RouteGroup::Admin];
        Ok(Self {
            store: Arc::new(store),
            held: RwLock::new(held),
            client_token: Arc::new(client_token),
            accounts: Accounts::resumed(&today),
        })
    }

    /// Returns what the key grants that a client shows; `None` where it is
    /// none of ours or has ended.
    pub(crate) fn recognise(&self, token: &BearerToken<'_>) -> Option<Arc<Grant>> {
        let digest = token.digest();
        let now_ms = Moment::now().unix_ms;
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let alike = held.get(&digest.fingerprint())?;
        let found = alike.iter().find(|held| held.key.digest.matches(&digest))?;
        let has_ended = found.key.info.expires_at_ms.is_some_and(|end| end <= now_ms);
        (!has_ended).then(|| Arc::clone(&found.grant))
    }

    /// Returns what the token of the home directory grants: everything.
    pub(crate) fn client_token(&self) -> &Arc<Grant> {
        &self.client_token
    }

    pub(crate) fn accounts(&self) -> &Arc<Accounts> {
        &self.accounts
    }

    /// Returns all keys, in order of name.
    pub(crate) fn list(&self) -> Vec<KeyInfo> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys: Vec<_> = held.values().flatten().map(|held| held.key.info.clone()).collect();
        drop(held);
        keys.sort_by(|one, other| one.name.cmp(&other.name));
        keys
    }

    /// Makes a key and returns it, with the value that is never shown again.
    ///
    /// # Errors
    /// `validation_failed`, `key_taken`, and `internal_error` where it cannot
    /// be written down.
    pub(crate) async fn create(&self, wanted: CreateKey) -> Result<CreatedKey, ApiError> {
        let now_ms = Moment::now().unix_ms;
        let wanted = checked(wanted, now_ms)?;
        if self.list().len() >= KEYS_MAX {
            let message =
                format!("there are {KEYS_MAX} keys, which is as many as can be; revoke one");
            return Err(ApiError::new(ErrorCode::ValidationFailed, message));
        }
        let value = fresh_value()?;
        let digest = TokenDigest::of(&value);
        let info = KeyInfo {
            id: format!("k-{}", new_request_id()),
            name: wanted.name,
            fingerprint: digest.fingerprint().to_string(),
            models: wanted.models,
            routes: wanted.routes.unwrap_or_else(|| ROUTES_DEFAULT.to_vec()),
            created_at_ms: now_ms,
            expires_at_ms: wanted.expires_at_ms,
            limits: wanted.limits,
        };
        let key = StoredKey { info: info.clone(), digest };
        let store = Arc::clone(&self.store);
        let (key, is_new) =
            blocking(move || store.insert(&key).map(|is_new| (key, is_new))).await?;
        if !is_new {
            return Err(taken(&info));
        }
        tracing::info!(key = %info.name, key_id = %info.id, token = %info.fingerprint, "key made");
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.entry(key.digest.fingerprint()).or_default().push(Held::new(key));
        drop(held);
        Ok(CreatedKey { info, key: KeyValue(value) })
    }

    /// Takes a key back, by id or name: it is refused from now on, and what
    /// runs under it ends.
    ///
    /// # Errors
    /// `key_not_found`, and `internal_error` where that cannot be written down.
    pub(crate) async fn revoke(&self, name_or_id: &str) -> Result<KeyInfo, ApiError> {
        let found = self.list().into_iter().find(|key| key.id == name_or_id);
        let found = found
            .or_else(|| self.list().into_iter().find(|key| key.name.as_str() == name_or_id))
            .ok_or_else(unknown)?;
        self.forget(&found.id);
        tracing::info!(key = %found.name, key_id = %found.id, "key revoked");
        let (store, id) = (Arc::clone(&self.store), found.id.clone());
        blocking(move || store.remove(&id)).await?;
        Ok(found)
    }

    /// Refuses a key from now on and ends what runs under it.
    fn forget(&self, id: &str) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        for alike in held.values_mut() {
            let gone = alike.extract_if(.., |held| held.key.info.id == id);
            gone.for_each(|held| held.grant.revoked.cancel());
        }
        held.retain(|_, alike| !alike.is_empty());
    }

    /// Returns what was used in the last `days` days, today included; with
    /// `subject` only under that name.
    ///
    /// # Errors
    /// `internal_error` where the database fails.
    pub(crate) async fn usage(
        &self,
        days: u32,
        subject: Option<String>,
    ) -> Result<UsageList, ApiError> {
        self.save().await;
        let today = Moment::now().day();
        let from = today.saturating_sub(u64::from(days.saturating_sub(1)));
        let store = Arc::clone(&self.store);
        let rows = blocking(move || store.usage(from, subject.as_deref())).await?;
        Ok(UsageList { usage: rows.iter().map(usage_row).collect() })
    }

    /// Writes down what was used, again and again, until dropped.
    pub(crate) async fn keep_saving(self: Arc<Self>) {
        loop {
            sleep(SAVE_INTERVAL).await;
            self.save().await;
        }
    }

    /// Writes down what was used since the last time; what cannot be written is kept for the next.
    pub(crate) async fn save(&self) {
        let fresh = self.accounts.take_fresh();
        if fresh.is_empty() {
            return;
        }
        let store = Arc::clone(&self.store);
        let accounts = Arc::clone(&self.accounts);
        // Goes on where the requester leaves: what was taken must not be lost.
        let saved = tokio::task::spawn_blocking(move || {
            if let Err(error) = store.add_usage(&fresh) {
                tracing::warn!(%error, "usage cannot be written down; it is tried again");
                accounts.give_back(fresh);
            }
        });
        if let Err(error) = saved.await {
            tracing::error!(%error, "usage was lost");
        }
    }
}

fn checked(mut wanted: CreateKey, now_ms: u64) -> Result<CreateKey, ApiError> {
    let wrong = |param: &str, reason: String| {
        let detail = ErrorDetail::new(ErrorCode::ValidationFailed, format!("{param} {reason}"));
        Err(ApiError::from(detail.with_param(param)))
    };
    if wanted.name.as_str() == CLIENT_TOKEN {
        return wrong("name", format!("{CLIENT_TOKEN} stands for the token of the home directory"));
    }
    if wanted.models.len() > KEY_MODELS_MAX {
        return wrong("models", format!("has more than {KEY_MODELS_MAX} entries"));
    }
    if wanted.expires_at_ms.is_some_and(|end| end <= now_ms) {
        return wrong("expires_at_ms", "is in the past".to_owned());
    }
    if let Some((field, range)) = wanted.limits.fault() {
        return wrong(&format!("limits.{field}"), format!("must be {range}"));
    }
    wanted.models.dedup();
    if let Some(routes) = &mut wanted.routes {
        routes.sort();
        routes.dedup();
        if routes.is_empty() {
            return wrong("routes", "names no route; leave it out for the default".to_owned());
        }
    }
    Ok(wanted)
}

fn fresh_value() -> Result<String, ApiError> {
    let random = Secret::generate().map_err(|error| {
        tracing::error!(%error, "no key can be made");
        ApiError::new(ErrorCode::InternalError, "the system gives no random numbers")
    })?;
    Ok(format!("{VALUE_PREFIX}{}", random.expose()))
}

fn usage_row(posting: &Posting) -> UsageRow {
    let Posting { subject, day, counts } = posting;
    UsageRow {
        key: subject.to_string(),
        day: date(*day),
        requests: counts.requests,
        prompt_tokens: counts.prompt_tokens,
        cached_tokens: counts.cached_tokens,
        completion_tokens: counts.completion_tokens,
    }
}

/// Writes a day, counted from the epoch, as a date: the civil calendar, whose
/// years here begin in March so that the leap day is their last.
fn date(day: u64) -> String {
    let days = day.saturating_add(719_468);
    let (era, rest) = (days / 146_097, days % 146_097);
    let year_of_era = (rest - rest / 1460 + rest / 36_524 - rest / 146_096) / 365;
    let day_of_year = rest - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}")
}

async fn blocking<T, F>(work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, rusqlite::Error> + Send + 'static,
{
    let failed = |error: &dyn std::error::Error| {
        tracing::error!(%error, "the database of keys failed");
        let message = "the database of keys cannot be used; the queen's log says why";
        ApiError::new(ErrorCode::InternalError, message)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}

fn taken(info: &KeyInfo) -> ApiError {
    let message = format!("there is a key called {} already; revoke it first", info.name);
    ErrorDetail::new(ErrorCode::KeyTaken, message).with_param("name").into()
}

fn unknown() -> ApiError {
    ApiError::new(ErrorCode::KeyNotFound, "no key has this name or id; `rbee key list` shows them")
}

#[cfg(test)]
mod tests;
