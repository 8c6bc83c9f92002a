//! What is used under each name: counted while it happens, held against its
//! limits, and handed over to be written down. Owns the lock around the meters
//! and the guard of one request; writes nothing by itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use input_validation::Sha256Hex;
use rbee_api::error::{ErrorCode, ErrorDetail};
use rbee_http::{ApiError, Grant};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::limits::{Exceeded, Meter, Moment};
use crate::telemetry;

/// Most names that are counted each on its own. Keys are fewer; an identity
/// provider can have more users, and those beyond share one account.
const ACCOUNTS_MAX: usize = 10_000;
/// Most names that get a label in the metrics of their own.
const LABELS_MAX: usize = 100;
/// The account and label of all others.
const OTHERS: &str = "other";

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) prompt: u64,
    /// Of the prompt's, those that were not computed.
    pub(crate) cached: u64,
    pub(crate) completion: u64,
}

impl Tokens {
    /// Returns what came after `earlier`.
    pub(crate) const fn since(self, earlier: Self) -> Self {
        Self {
            prompt: self.prompt.saturating_sub(earlier.prompt),
            cached: self.cached.saturating_sub(earlier.cached),
            completion: self.completion.saturating_sub(earlier.completion),
        }
    }
}

/// What was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
}

impl Counts {
    fn add(&mut self, more: Self) {
        let Self { requests, prompt_tokens, cached_tokens, completion_tokens } = more;
        self.requests = self.requests.saturating_add(requests);
        self.prompt_tokens = self.prompt_tokens.saturating_add(prompt_tokens);
        self.cached_tokens = self.cached_tokens.saturating_add(cached_tokens);
        self.completion_tokens = self.completion_tokens.saturating_add(completion_tokens);
    }

    /// What counts against the tokens of a day.
    const fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// What was used under a name on a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Posting {
    pub(crate) subject: Arc<str>,
    /// Days since the epoch.
    pub(crate) day: u64,
    pub(crate) counts: Counts,
}

#[derive(Debug)]
struct Account {
    meter: Meter,
    label: Arc<str>,
    /// What was not handed over yet, by day.
    fresh: BTreeMap<u64, Counts>,
}

#[derive(Debug, Default)]
struct Books {
    accounts: HashMap<Arc<str>, Account>,
    labels: usize,
}

/// The accounts of all names.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    books: Mutex<Books>,
}

impl Accounts {
    /// Goes on with what was used today before this process began.
    pub(crate) fn resumed(today: &[Posting]) -> Arc<Self> {
        let accounts = Self::default();
        let mut books = accounts.lock();
        for Posting { subject, day, counts } in today {
            let (_, account) = books.account(subject);
            account.meter = Meter::resumed(*day, counts.tokens());
        }
        drop(books);
        Arc::new(accounts)
    }

    /// Lets a request in under a grant, within its limits.
    ///
    /// # Errors
    /// `rate_limit_exceeded`.
    pub(crate) fn begin(
        self: &Arc<Self>,
        grant: &Arc<Grant>,
        now: Moment,
    ) -> Result<Spending, ApiError> {
        let mut books = self.lock();
        let (subject, account) = books.account(&grant.subject);
        if let Err(exceeded) = account.meter.begin(&grant.limits, now) {
            telemetry::key_refused(&account.label, exceeded.limit);
            return Err(refusal(exceeded, now));
        }
        let one = Counts { requests: 1, ..Counts::default() };
        account.fresh.entry(now.day()).or_default().add(one);
        let label = Arc::clone(&account.label);
        drop(books);
        telemetry::key_request(&label);
        Ok(Spending { accounts: Arc::clone(self), grant: Arc::clone(grant), subject, label })
    }

    /// Hands over what was used since the last time.
    pub(crate) fn take_fresh(&self) -> Vec<Posting> {
        let mut books = self.lock();
        let fresh = books.accounts.iter_mut().flat_map(|(subject, account)| {
            let days = std::mem::take(&mut account.fresh);
            let posting = |(day, counts)| Posting { subject: Arc::clone(subject), day, counts };
            days.into_iter().map(posting)
        });
        fresh.collect()
    }

    /// Takes back what could not be written down.
    pub(crate) fn give_back(&self, postings: Vec<Posting>) {
        let mut books = self.lock();
        for Posting { subject, day, counts } in postings {
            books.account(&subject).1.fresh.entry(day).or_default().add(counts);
        }
    }

    /// Returns the number of requests at this moment, under all names.
    pub(crate) fn running(&self) -> u32 {
        self.lock().accounts.values().map(|account| account.meter.running()).sum()
    }

    fn spend(&self, subject: &str, tokens: Tokens, now: Moment) {
        let mut books = self.lock();
        let Some(account) = books.accounts.get_mut(subject) else { return };
        let counts = Counts {
            requests: 0,
            prompt_tokens: tokens.prompt,
            cached_tokens: tokens.cached,
            completion_tokens: tokens.completion,
        };
        account.meter.spend(counts.tokens(), now);
        account.fresh.entry(now.day()).or_default().add(counts);
    }

    fn end(&self, subject: &str) {
        if let Some(account) = self.lock().accounts.get_mut(subject) {
            account.meter.end();
        }
    }

    /// A panic elsewhere leaves no account half-written: each change is one assignment after another.
    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Returns the account of a name, and the name under which it is kept.
    fn account(&mut self, subject: &str) -> (Arc<str>, &mut Account) {
        let is_known = self.accounts.contains_key(subject);
        let kept = if is_known || self.accounts.len() < ACCOUNTS_MAX { subject } else { OTHERS };
        let subject: Arc<str> = kept.into();
        let labels = &mut self.labels;
        let account = self.accounts.entry(Arc::clone(&subject)).or_insert_with(|| {
            *labels += 1;
            // Who signs in elsewhere is many; only names of our own become labels.
            let is_named = *labels <= LABELS_MAX && !subject.contains(':');
            let label = if is_named { Arc::clone(&subject) } else { OTHERS.into() };
            Account { meter: Meter::default(), label, fresh: BTreeMap::new() }
        });
        (subject, account)
    }
}

fn refusal(exceeded: Exceeded, now: Moment) -> ApiError {
    let Exceeded { limit, max, used, retry_after } = exceeded;
    let wait_ms = u64::try_from(retry_after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let message = match limit {
        "requests_per_minute" => format!("this key may ask {max} times a minute"),
        "tokens_per_day" => format!("this key may use {max} tokens a day, and has used {used}"),
        _ => format!("this key may have {max} requests at the same time"),
    };
    let message = format!("{message}; come back in {} s", wait_ms.div_ceil(1000));
    let figures = json!({
        "limit": limit, "max": max, "used": used,
        "reset_at_ms": now.unix_ms.saturating_add(wait_ms), "retry_after_ms": wait_ms,
    });
    ErrorDetail::new(ErrorCode::RateLimitExceeded, message).with_details(figures).into()
}

/// One request under a grant, counted until dropped, however it ends.
#[derive(Debug)]
pub(crate) struct Spending {
    accounts: Arc<Accounts>,
    grant: Arc<Grant>,
    subject: Arc<str>,
    label: Arc<str>,
}

impl Spending {
    /// Notes tokens, at the moment they are known.
    pub(crate) fn add(&self, tokens: Tokens) {
        if tokens != Tokens::default() {
            self.accounts.spend(&self.subject, tokens, Moment::now());
            telemetry::key_tokens(&self.label, tokens);
        }
    }

    /// Returns what workers are told of whose request it is.
    pub(crate) fn cache_scope(&self) -> Sha256Hex {
        self.grant.cache_scope()
    }

    /// Returns what is cancelled when the credential is taken back.
    pub(crate) fn revoked(&self) -> CancellationToken {
        self.grant.revoked.clone()
    }
}

impl Drop for Spending {
    fn drop(&mut self) {
        self.accounts.end(&self.subject);
    }
}

#[cfg(test)]
mod tests {
    use rbee_api::key::KeyLimits;

    use super::*;

    fn grant(subject: &str, limits: KeyLimits) -> Arc<Grant> {
        let mut grant = Grant::new(subject, subject);
        grant.limits = limits;
        Arc::new(grant)
    }

    #[test]
    fn what_is_used_is_handed_over_once_and_comes_back_where_it_cannot_be_written() {
        let accounts = Accounts::resumed(&[]);
        let now = Moment::now();
        let spending = accounts.begin(&grant("ci", KeyLimits::default()), now).unwrap();
        spending.add(Tokens { prompt: 7, cached: 5, completion: 2 });
        spending.add(Tokens { prompt: 0, cached: 0, completion: 1 });
        let fresh = accounts.take_fresh();
        let counts =
            Counts { requests: 1, prompt_tokens: 7, cached_tokens: 5, completion_tokens: 3 };
        assert_eq!(fresh, [Posting { subject: "ci".into(), day: now.day(), counts }]);
        assert_eq!(accounts.take_fresh(), []);
        accounts.give_back(fresh.clone());
        spending.add(Tokens { completion: 1, ..Tokens::default() });
        assert_eq!(accounts.take_fresh()[0].counts.completion_tokens, 4);
    }

    #[test]
    fn tokens_of_former_processes_count_and_refusals_tell_the_figures() {
        let now = Moment::now();
        let counts = Counts { prompt_tokens: 60, completion_tokens: 40, ..Counts::default() };
        let used = Posting { subject: "ci".into(), day: now.day(), counts };
        let accounts = Accounts::resumed(&[used]);
        let limits = KeyLimits { tokens_per_day: Some(100), ..KeyLimits::default() };
        let error = accounts.begin(&grant("ci", limits), now).unwrap_err();
        assert_eq!(error.code(), ErrorCode::RateLimitExceeded);
        let details = error.detail().details.clone().unwrap();
        assert_eq!((&details["limit"], &details["used"]), (&json!("tokens_per_day"), &json!(100)));
        assert_eq!(details["reset_at_ms"].as_u64().unwrap() % super::super::limits::DAY_MS, 0);
        assert!(accounts.begin(&grant("web", limits), now).is_ok());
    }

    #[test]
    fn a_request_counts_until_it_is_dropped() {
        let accounts = Accounts::resumed(&[]);
        let limits = KeyLimits { streams_max: Some(2), ..KeyLimits::default() };
        let (key, now) = (grant("ci", limits), Moment::now());
        let first = accounts.begin(&key, now).unwrap();
        let second = accounts.begin(&key, now).unwrap();
        assert!(accounts.begin(&key, now).is_err());
        drop(first);
        let third = accounts.begin(&key, now).unwrap();
        assert_eq!(accounts.running(), 2);
        drop((second, third));
        assert_eq!(accounts.running(), 0);
    }

    #[test]
    fn names_without_end_share_an_account_and_a_label() {
        let accounts = Accounts::resumed(&[]);
        let now = Moment::now();
        for number in 0..ACCOUNTS_MAX + 50 {
            drop(accounts.begin(&grant(&format!("jwt:{number}"), KeyLimits::default()), now));
        }
        let books = accounts.lock();
        assert_eq!(books.accounts.len(), ACCOUNTS_MAX + 1);
        assert_eq!(books.accounts[OTHERS].fresh[&now.day()].requests, 50);
        assert!(books.accounts.values().all(|account| &*account.label == OTHERS));
    }
}
