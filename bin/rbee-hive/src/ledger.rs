//! `workers.db`: the worker processes of this hive, each written down before it is started and struck out when it is
//! gone, so that a hive that takes over after a crash knows every process it has to answer for. Owns its schema and
//! its rows; starts, signals and decides nothing.

mod failing;
mod tally;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use input_validation::{ModelAlias, ModelRef, WorkerId};
use rbee_api::worker::Backend;
use rbee_sqlite::{DatabaseError, Opened};
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use rusqlite_migration::{M, Migrations};

use crate::platform::ProcessIdentity;
use crate::registry::Serving;

pub(crate) use tally::{Ending, Tally};

/// Steps of the schema, one for each released version of it. A step is never changed once released.
const STEPS: &[M<'_>] = &[
    M::up(
        "CREATE TABLE worker (
             id             TEXT PRIMARY KEY NOT NULL,
             model_ref      TEXT NOT NULL,
             alias          TEXT,
             backend        TEXT NOT NULL CHECK (backend IN ('llama', 'echo')),
             memory_bytes   INTEGER NOT NULL,
             started_at_ms  INTEGER NOT NULL,
             is_stopping    INTEGER NOT NULL DEFAULT 0,
             url            TEXT,
             boot_id        TEXT,
             pid            INTEGER,
             start_ticks    INTEGER,
             inode          INTEGER
         ) STRICT",
    ),
    M::up(
        "CREATE TABLE tally (
             id                INTEGER PRIMARY KEY CHECK (id = 0),
             graceful          INTEGER NOT NULL,
             forced            INTEGER NOT NULL,
             last_shutdown_ms  INTEGER
         ) STRICT;
         INSERT INTO tally VALUES (0, 0, 0, NULL);",
    ),
    M::up("ALTER TABLE worker ADD COLUMN heartbeat_seconds INTEGER NOT NULL DEFAULT 30"),
    M::up("CREATE TABLE failing (model_ref TEXT PRIMARY KEY NOT NULL, past TEXT NOT NULL) STRICT"),
    M::up(
        "ALTER TABLE worker ADD COLUMN slots_total INTEGER;
         ALTER TABLE worker ADD COLUMN device TEXT;",
    ),
];

const SCHEMA: Migrations<'_> = Migrations::from_slice(STEPS);

/// A worker as it was asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) id: WorkerId,
    pub(crate) model_ref: ModelRef,
    pub(crate) alias: Option<ModelAlias>,
    pub(crate) backend: Backend,
    /// Memory it was granted.
    pub(crate) memory_bytes: u64,
    pub(crate) started_at_ms: u64,
    /// Seconds between its reports, as it was told when it was started.
    pub(crate) heartbeat_seconds: u64,
    /// Whether it was asked to end.
    pub(crate) is_stopping: bool,
    /// What it serves with; `None` until its model is loaded.
    pub(crate) serving: Option<Serving>,
    /// Its process; `None` when the hive ended before it could write it down.
    pub(crate) process: Option<Started>,
}

/// The process of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) identity: ProcessIdentity,
    /// Where it listens.
    pub(crate) url: String,
}

/// The open ledger. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    connection: Arc<Mutex<Connection>>,
}

impl Ledger {
    /// Opens the ledger, and reads what a former hive has left in it. Blocks.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<Entry>), DatabaseError> {
        let Opened { connection, damaged } = rbee_sqlite::open(path, &SCHEMA)?;
        if let Some(aside) = damaged {
            tracing::warn!(moved_to = %aside.display(), "the ledger of workers was damaged and is begun anew");
        }
        let entries = entries(&connection)?;
        Ok((Self { connection: Arc::new(Mutex::new(connection)) }, entries))
    }

    /// Writes down a worker that is about to be started.
    pub(crate) async fn begin(&self, entry: Entry) -> Result<(), DatabaseError> {
        self.write(move |connection| {
            connection.execute(
                "INSERT INTO worker (id, model_ref, alias, backend, memory_bytes, started_at_ms, heartbeat_seconds)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    entry.id.as_str(),
                    entry.model_ref.as_str(),
                    entry.alias.as_ref().map(ModelAlias::as_str),
                    name_of(entry.backend),
                    signed(entry.memory_bytes),
                    signed(entry.started_at_ms),
                    signed(entry.heartbeat_seconds),
                ],
            )
        })
        .await
    }

    /// Writes down the process of a worker.
    pub(crate) async fn started(
        &self,
        id: &WorkerId,
        started: Started,
    ) -> Result<(), DatabaseError> {
        let id = id.clone();
        self.write(move |connection| {
            let Started { identity, url } = started;
            connection.execute(
                "UPDATE worker SET url = ?2, boot_id = ?3, pid = ?4, start_ticks = ?5, inode = ?6 WHERE id = ?1",
                params![
                    id.as_str(),
                    url,
                    identity.boot_id,
                    identity.pid,
                    signed(identity.start_ticks),
                    identity.inode.map(signed),
                ],
            )
        })
        .await
    }

    /// Writes down that a worker has loaded its model.
    pub(crate) async fn ready(&self, id: &WorkerId, serving: Serving) -> Result<(), DatabaseError> {
        let id = id.clone();
        self.write(move |connection| {
            connection.execute(
                "UPDATE worker SET slots_total = ?2, device = ?3 WHERE id = ?1",
                params![id.as_str(), serving.slots_total, serving.device],
            )
        })
        .await
    }

    /// Writes down that a worker is to end, so that whoever takes over goes on with that.
    pub(crate) async fn stopping(&self, id: &WorkerId) -> Result<(), DatabaseError> {
        let id = id.clone();
        self.write(move |connection| {
            connection.execute("UPDATE worker SET is_stopping = 1 WHERE id = ?1", [id.as_str()])
        })
        .await
    }

    /// Strikes out a worker whose process is gone.
    pub(crate) async fn ended(&self, id: &WorkerId) -> Result<(), DatabaseError> {
        let id = id.clone();
        self.write(move |connection| {
            connection.execute("DELETE FROM worker WHERE id = ?1", [id.as_str()])
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        locked(&self.connection)
    }

    /// Writes on a blocking thread; once begun it goes on even if nobody waits for it.
    async fn write(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<usize> + Send + 'static,
    ) -> Result<(), DatabaseError> {
        let connection = Arc::clone(&self.connection);
        let written = tokio::task::spawn_blocking(move || change(&locked(&connection)).map(drop));
        match written.await {
            Ok(outcome) => Ok(outcome?),
            Err(_cancelled) => Err(rusqlite::Error::InvalidQuery.into()),
        }
    }
}

/// Each change is one statement or one transaction, so a thread that panicked has left the connection usable.
fn locked(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entries(connection: &Connection) -> rusqlite::Result<Vec<Entry>> {
    let mut statement = connection.prepare(
        "SELECT id, model_ref, alias, backend, memory_bytes, started_at_ms, is_stopping, url, boot_id, pid,
                start_ticks, inode, heartbeat_seconds, slots_total, device
         FROM worker ORDER BY started_at_ms, id",
    )?;
    let rows = statement.query_map([], entry)?;
    let readable = rows.filter_map(|row| {
        row.inspect_err(|error| tracing::error!(%error, "a row of the ledger cannot be read")).ok()
    });
    Ok(readable.collect())
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let backend: String = row.get(3)?;
    Ok(Entry {
        id: parsed(row, 0)?,
        model_ref: parsed(row, 1)?,
        alias: match row.get::<_, Option<String>>(2)? {
            Some(_) => Some(parsed(row, 2)?),
            None => None,
        },
        backend: if backend == name_of(Backend::Llama) { Backend::Llama } else { Backend::Echo },
        memory_bytes: row.get::<_, i64>(4)?.cast_unsigned(),
        started_at_ms: row.get::<_, i64>(5)?.cast_unsigned(),
        heartbeat_seconds: row.get::<_, i64>(12)?.cast_unsigned(),
        is_stopping: row.get(6)?,
        serving: serving(row)?,
        process: process(row)?,
    })
}

fn serving(row: &Row<'_>) -> rusqlite::Result<Option<Serving>> {
    let (slots_total, device) = (row.get::<_, Option<u32>>(13)?, row.get(14)?);
    Ok(slots_total.zip(device).map(|(slots_total, device)| Serving { slots_total, device }))
}

fn process(row: &Row<'_>) -> rusqlite::Result<Option<Started>> {
    let (Some(url), Some(boot_id), Some(pid), Some(start_ticks)) =
        (row.get(7)?, row.get(8)?, row.get(9)?, row.get::<_, Option<i64>>(10)?)
    else {
        return Ok(None);
    };
    let inode = row.get::<_, Option<i64>>(11)?.map(i64::cast_unsigned);
    let start_ticks = start_ticks.cast_unsigned();
    Ok(Some(Started { identity: ProcessIdentity { boot_id, pid, start_ticks, inode }, url }))
}

fn parsed<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.get::<_, String>(index)?.parse().map_err(|error: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
    })
}

const fn name_of(backend: Backend) -> &'static str {
    match backend {
        Backend::Llama => "llama",
        Backend::Echo => "echo",
    }
}

/// SQLite has signed numbers alone; the bits are kept.
const fn signed(number: u64) -> i64 {
    number.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        Entry {
            id: format!("w-{name}").parse().unwrap(),
            model_ref: "file:/models/a.gguf".parse().unwrap(),
            alias: Some("a".parse().unwrap()),
            backend: Backend::Echo,
            memory_bytes: 1 << 33,
            started_at_ms: 7,
            heartbeat_seconds: 5,
            is_stopping: false,
            serving: None,
            process: None,
        }
    }

    fn started() -> Started {
        let identity = ProcessIdentity {
            boot_id: "boot".to_owned(),
            pid: 42,
            start_ticks: u64::MAX,
            inode: Some(u64::MAX - 1),
        };
        Started { identity, url: "http://127.0.0.1:8081".to_owned() }
    }

    #[tokio::test]
    async fn whoever_takes_over_reads_what_was_written_at_each_step() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workers.db");
        let (ledger, found) = Ledger::open(&path).unwrap();
        assert_eq!(found, []);
        let after = || Ledger::open(&path).unwrap().1;
        ledger.begin(entry("a")).await.unwrap();
        ledger.begin(Entry { alias: None, backend: Backend::Llama, ..entry("b") }).await.unwrap();
        let bare = Entry { alias: None, backend: Backend::Llama, ..entry("b") };
        assert_eq!(after(), [entry("a"), bare.clone()]);
        ledger.started(&entry("a").id, started()).await.unwrap();
        let running = Entry { process: Some(started()), ..entry("a") };
        assert_eq!(after(), [running.clone(), bare.clone()]);
        let serving = Serving { slots_total: 4, device: "cpu".to_owned() };
        ledger.ready(&entry("a").id, serving.clone()).await.unwrap();
        let running = Entry { serving: Some(serving), ..running };
        assert_eq!(after(), [running.clone(), bare.clone()]);
        ledger.stopping(&entry("a").id).await.unwrap();
        assert_eq!(after(), [Entry { is_stopping: true, ..running }, bare.clone()]);
        ledger.ended(&entry("a").id).await.unwrap();
        assert_eq!(after(), [bare]);
        assert!(ledger.begin(entry("b")).await.is_err(), "one row a worker");
    }

    #[tokio::test]
    async fn a_row_that_cannot_be_read_hides_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workers.db");
        let (ledger, _) = Ledger::open(&path).unwrap();
        ledger.begin(entry("a")).await.unwrap();
        ledger.begin(entry("b")).await.unwrap();
        let connection = Connection::open(&path).unwrap();
        connection
            .execute("UPDATE worker SET model_ref = 'no such thing!' WHERE id = 'w-a'", [])
            .unwrap();
        assert_eq!(Ledger::open(&path).unwrap().1, [entry("b")]);
    }
}
