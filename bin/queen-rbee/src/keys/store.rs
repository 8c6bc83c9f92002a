//! `keys.db`: the keys by their digests, and what was used under each name on
//! each day. Owns its schema and rows; a key's value is in none of them.
//! Decides nothing about who may do what.
//!
//! Calls block; they belong on a blocking thread.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use auth_min::TokenDigest;
use rbee_api::key::{KeyInfo, USAGE_DAYS_MAX};
use rbee_sqlite::{DatabaseError, Opened};
use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, Row, params};
use rusqlite_migration::{M, Migrations};

use super::accounts::{Counts, Posting};

/// One step a schema version; a step that was released is never changed.
const STEPS: &[M<'static>] = &[M::up(
    "CREATE TABLE key (
        id TEXT PRIMARY KEY NOT NULL,
        name TEXT UNIQUE NOT NULL,
        digest BLOB UNIQUE NOT NULL CHECK (length(digest) = 32),
        models TEXT NOT NULL,
        routes TEXT NOT NULL,
        limits TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER
    ) STRICT;
    CREATE TABLE usage (
        day INTEGER NOT NULL,
        key TEXT NOT NULL,
        requests INTEGER NOT NULL,
        prompt_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        completion_tokens INTEGER NOT NULL,
        PRIMARY KEY (day, key)
    ) STRICT, WITHOUT ROWID;",
)];
const SCHEMA: Migrations<'static> = Migrations::from_slice(STEPS);
/// Most rows of one listing of usage.
const USAGE_ROWS_MAX: u32 = 10_000;

/// A key and what is compared with what clients show.
#[derive(Debug)]
pub(crate) struct StoredKey {
    pub(crate) info: KeyInfo,
    pub(crate) digest: TokenDigest,
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Mutex<Connection>,
}

impl Store {
    /// Opens the database at `path`. A damaged one is moved aside, with a
    /// warning, and no key is good until new ones are made.
    pub(crate) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let Opened { connection, damaged } = rbee_sqlite::open(path, &SCHEMA)?;
        if let Some(aside) = damaged {
            tracing::warn!(
                moved_to = %aside.display(),
                "the database of keys is damaged; starting without keys"
            );
        }
        Ok(Self { connection: Mutex::new(connection) })
    }

    pub(crate) fn keys(&self) -> Result<Vec<StoredKey>, rusqlite::Error> {
        let connection = self.lock();
        let mut query = connection.prepare(
            "SELECT id, name, digest, models, routes, limits, created_at_ms, expires_at_ms FROM key",
        )?;
        query.query_map([], stored_key)?.collect()
    }

    /// Writes a key down; `false` where its name is taken.
    pub(crate) fn insert(&self, key: &StoredKey) -> Result<bool, rusqlite::Error> {
        let KeyInfo { id, name, models, routes, limits, created_at_ms, expires_at_ms, .. } =
            &key.info;
        let json = |value: serde_json::Result<String>| {
            value.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
        };
        let inserted = self.lock().execute(
            "INSERT INTO key VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                id,
                name.as_str(),
                key.digest.as_bytes(),
                json(serde_json::to_string(models))?,
                json(serde_json::to_string(routes))?,
                json(serde_json::to_string(limits))?,
                signed(*created_at_ms),
                expires_at_ms.map(signed),
            ],
        );
        match inserted {
            Ok(_) => Ok(true),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn remove(&self, id: &str) -> Result<(), rusqlite::Error> {
        self.lock().execute("DELETE FROM key WHERE id = ?1", [id]).map(drop)
    }

    /// Adds to what was used, all of it or nothing, and forgets what is too old.
    pub(crate) fn add_usage(&self, postings: &[Posting]) -> Result<(), rusqlite::Error> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for Posting { subject, day, counts } in postings {
            transaction.execute(
                "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (day, key) DO UPDATE SET
                     requests = requests + excluded.requests,
                     prompt_tokens = prompt_tokens + excluded.prompt_tokens,
                     cached_tokens = cached_tokens + excluded.cached_tokens,
                     completion_tokens = completion_tokens + excluded.completion_tokens",
                params![
                    signed(*day),
                    subject.as_ref(),
                    signed(counts.requests),
                    signed(counts.prompt_tokens),
                    signed(counts.cached_tokens),
                    signed(counts.completion_tokens),
                ],
            )?;
        }
        if let Some(today) = postings.iter().map(|posting| posting.day).max() {
            let oldest = today.saturating_sub(u64::from(USAGE_DAYS_MAX));
            transaction.execute("DELETE FROM usage WHERE day < ?1", [signed(oldest)])?;
        }
        transaction.commit()
    }

    /// Returns what was used since `from_day`, the latest day first; with
    /// `subject` only under that name.
    pub(crate) fn usage(
        &self,
        from_day: u64,
        subject: Option<&str>,
    ) -> Result<Vec<Posting>, rusqlite::Error> {
        let connection = self.lock();
        let mut query = connection.prepare(
            "SELECT key, day, requests, prompt_tokens, cached_tokens, completion_tokens FROM usage
             WHERE day >= ?1 AND (?2 IS NULL OR key = ?2) ORDER BY day DESC, key LIMIT ?3",
        )?;
        query.query_map(params![signed(from_day), subject, USAGE_ROWS_MAX], posting)?.collect()
    }

    /// A panic elsewhere leaves the connection as SQLite left it, which is whole.
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stored_key(row: &Row<'_>) -> Result<StoredKey, rusqlite::Error> {
    let digest = TokenDigest::from_bytes(row.get(2)?);
    let name: String = row.get(1)?;
    let info = KeyInfo {
        id: row.get(0)?,
        name: name.parse().map_err(|error| unreadable(1, error))?,
        fingerprint: digest.fingerprint().to_string(),
        models: json(row, 3)?,
        routes: json(row, 4)?,
        limits: json(row, 5)?,
        created_at_ms: unsigned(row.get(6)?),
        expires_at_ms: row.get::<_, Option<i64>>(7)?.map(unsigned),
    };
    Ok(StoredKey { info, digest })
}

fn json<T: serde::de::DeserializeOwned>(
    row: &Row<'_>,
    column: usize,
) -> Result<T, rusqlite::Error> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| unreadable(column, error))
}

fn unreadable<E>(column: usize, error: E) -> rusqlite::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

fn posting(row: &Row<'_>) -> Result<Posting, rusqlite::Error> {
    let number = |column| row.get::<_, i64>(column).map(unsigned);
    let counts = Counts {
        requests: number(2)?,
        prompt_tokens: number(3)?,
        cached_tokens: number(4)?,
        completion_tokens: number(5)?,
    };
    Ok(Posting { subject: row.get::<_, String>(0)?.into(), day: number(1)?, counts })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rbee_api::key::{KeyLimits, RouteGroup};

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("keys.db")).unwrap();
        (directory, store)
    }

    fn key(id: &str, name: &str, value: &str) -> StoredKey {
        let digest = TokenDigest::of(value);
        let limits = KeyLimits { tokens_per_day: Some(7), ..KeyLimits::default() };
        let info = KeyInfo {
            id: id.to_owned(),
            name: name.parse().unwrap(),
            fingerprint: digest.fingerprint().to_string(),
            models: vec!["tiny".parse().unwrap()],
            routes: vec![RouteGroup::Inference, RouteGroup::Models],
            created_at_ms: 5,
            expires_at_ms: Some(9),
            limits,
        };
        StoredKey { info, digest }
    }

    fn used(subject: &str, day: u64, requests: u64) -> Posting {
        let counts = Counts {
            requests,
            prompt_tokens: 10 * requests,
            cached_tokens: requests,
            completion_tokens: 3,
        };
        Posting { subject: subject.into(), day, counts }
    }

    #[test]
    fn migrations_can_be_applied() {
        SCHEMA.validate().unwrap();
    }

    #[test]
    fn a_key_is_there_again_until_it_is_removed_and_its_value_never_is() {
        let (directory, store) = store();
        assert!(store.insert(&key("k-1", "ci", "rbee_canary")).unwrap());
        assert!(!store.insert(&key("k-2", "ci", "other")).unwrap(), "a name of two keys");
        drop(store);
        let store = Store::open(&directory.path().join("keys.db")).unwrap();
        let keys = store.keys().unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!(keys[0].info, key("k-1", "ci", "rbee_canary").info);
        assert!(keys[0].digest.matches(&TokenDigest::of("rbee_canary")));
        for file in std::fs::read_dir(directory.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(11).any(|window| window == b"rbee_canary"));
        }
        store.remove("k-1").unwrap();
        assert!(store.keys().unwrap().is_empty());
    }

    #[test]
    fn usage_adds_up_by_day_and_the_oldest_is_forgotten() {
        let (_directory, store) = store();
        store.add_usage(&[used("ci", 1, 1), used("ci", 20_000, 1)]).unwrap();
        store.add_usage(&[used("ci", 20_000, 2), used("web", 20_001, 1)]).unwrap();
        let all = store.usage(0, None).unwrap();
        let mut sum = used("ci", 20_000, 3);
        sum.counts.completion_tokens = 6;
        assert_eq!(all, [used("web", 20_001, 1), sum.clone()]);
        assert_eq!(store.usage(0, Some("ci")).unwrap(), [sum]);
        assert_eq!(store.usage(20_001, Some("ci")).unwrap(), []);
    }
}
