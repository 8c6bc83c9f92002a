//! `beehives.db`: the machines of the cluster, the only state of the queen that
//! outlives it. Owns its schema and its recovery; never holds what a machine
//! reports, and keeps no connection open: machines change rarely.
//!
//! Calls block; they belong on a blocking thread.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use input_validation::NodeName;
use rbee_sqlite::{DatabaseError, Opened};
use rusqlite::{Connection, OptionalExtension as _};
use rusqlite_migration::{M, Migrations};

/// The name of the machine the queen runs on.
const LOCAL: &str = "local";

/// One step a schema version; a step that was released is never changed.
const STEPS: &[M<'static>] = &[M::up(
    "CREATE TABLE hive (
        name TEXT PRIMARY KEY NOT NULL,
        url TEXT,
        created_at_ms INTEGER NOT NULL
    ) STRICT;",
)];
const SCHEMA: Migrations<'static> = Migrations::from_slice(STEPS);

/// One machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hive {
    pub(crate) name: NodeName,
    /// Its address; the local machine has none here, since its run file tells it.
    pub(crate) url: Option<String>,
}

/// The machines that are known, this one apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hives {
    pub(crate) local: NodeName,
    pub(crate) remote: Vec<Hive>,
}

/// Says why the machines cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {}", path.display())]
pub struct HivesError {
    /// The database.
    pub path: PathBuf,
    /// Why not.
    pub source: DatabaseError,
}

/// Reads the machines from the database at `path`; creates what is missing, the
/// local machine's row included. A damaged database is moved aside, with a
/// warning, and a fresh one takes its place.
///
/// # Errors
/// [`HivesError`].
pub(crate) fn load(path: &Path) -> Result<Hives, HivesError> {
    read(path).map_err(|source| HivesError { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Hives, DatabaseError> {
    let Opened { connection, damaged } = rbee_sqlite::open(path, &SCHEMA)?;
    if let Some(aside) = damaged {
        tracing::warn!(
            database = %path.display(), moved_to = %aside.display(),
            "the database of machines is damaged; starting with a fresh one"
        );
    }
    Ok(rows(&connection)?)
}

fn rows(connection: &Connection) -> Result<Hives, rusqlite::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    connection.execute(
        "INSERT INTO hive (name, url, created_at_ms) VALUES (?1, NULL, ?2) ON CONFLICT DO NOTHING",
        (LOCAL, i64::try_from(now).unwrap_or(i64::MAX)),
    )?;
    let local = connection
        .query_row("SELECT name FROM hive WHERE name = ?1", [LOCAL], |row| name(row, 0))
        .optional()?
        .ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let mut remote =
        connection.prepare("SELECT name, url FROM hive WHERE name <> ?1 ORDER BY name")?;
    let remote = remote
        .query_map([LOCAL], |row| Ok(Hive { name: name(row, 0)?, url: row.get(1)? }))?
        .collect::<Result<_, _>>()?;
    Ok(Hives { local, remote })
}

fn name(row: &rusqlite::Row<'_>, index: usize) -> Result<NodeName, rusqlite::Error> {
    row.get::<_, String>(index)?.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(
            index,
            rusqlite::types::Type::Text,
            Box::<input_validation::ValidationError>::new(error),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("beehives.db");
        (directory, path)
    }

    #[test]
    fn migrations_can_be_applied() {
        SCHEMA.validate().unwrap();
    }

    #[test]
    fn a_fresh_database_holds_the_local_machine_and_keeps_others() {
        let (_directory, path) = database();
        let fresh = load(&path).unwrap();
        assert_eq!(fresh, Hives { local: "local".parse().unwrap(), remote: Vec::new() });
        Connection::open(&path)
            .unwrap()
            .execute("INSERT INTO hive VALUES ('attic', 'http://10.0.0.7:9200', 1)", [])
            .unwrap();
        let again = load(&path).unwrap();
        let attic =
            Hive { name: "attic".parse().unwrap(), url: Some("http://10.0.0.7:9200".to_owned()) };
        assert_eq!(again, Hives { local: fresh.local, remote: vec![attic] });
    }

    #[test]
    fn a_damaged_database_is_replaced_and_a_newer_one_refused() {
        let (_directory, path) = database();
        std::fs::write(&path, b"not a database at all, but long enough").unwrap();
        assert_eq!(load(&path).unwrap().local.as_str(), "local");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(load(&path).unwrap_err().source, DatabaseError::Newer));
    }
}
