//! `beehives.db`: the machines of the cluster, the only state of the queen that
//! outlives it. Owns its schema and its recovery; never holds what a machine
//! reports, and keeps no connection open: machines change rarely.
//!
//! Calls block; they belong on a blocking thread.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use input_validation::NodeName;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _};
use rusqlite_migration::{M, MigrationDefinitionError, Migrations};

/// The name of the machine the queen runs on.
const LOCAL: &str = "local";

/// How long another process may hold the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// One step a schema version; a step that was released is never changed.
const STEPS: &[M<'static>] = &[M::up(
    "CREATE TABLE hive (
        name TEXT PRIMARY KEY NOT NULL,
        url TEXT,
        created_at_ms INTEGER NOT NULL
    ) STRICT;",
)];
const MIGRATIONS: Migrations<'static> = Migrations::from_slice(STEPS);

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
pub enum HivesError {
    /// A newer program wrote the database.
    #[error("{} was written by a newer rbee", path.display())]
    Newer {
        /// The database.
        path: PathBuf,
    },
    /// The database is damaged and cannot be moved out of the way.
    #[error("{} is damaged and cannot be moved aside", path.display())]
    Stuck {
        /// The database.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error("cannot use {}", path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The schema cannot be brought up to date.
    #[error("cannot bring {} up to date", path.display())]
    Migration {
        /// The database.
        path: PathBuf,
        /// Why not.
        source: rusqlite_migration::Error,
    },
}

/// Reads the machines from the database at `path`; creates what is missing, the
/// local machine's row included. A damaged database is moved aside, with a
/// warning, and a fresh one takes its place.
///
/// # Errors
/// [`HivesError`].
pub(crate) fn load(path: &Path) -> Result<Hives, HivesError> {
    match read(path) {
        Err(HivesError::Database { source, .. }) if is_damage(&source) => {
            let aside = move_aside(path)?;
            tracing::warn!(
                database = %path.display(), moved_to = %aside.display(), error = %source,
                "the database of machines is damaged; starting with a fresh one"
            );
            read(path)
        }
        outcome => outcome,
    }
}

fn read(path: &Path) -> Result<Hives, HivesError> {
    let in_database =
        |source: rusqlite::Error| HivesError::Database { path: path.to_owned(), source };
    let mut connection = Connection::open(path).map_err(in_database)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(in_database)?;
    check(&connection).map_err(in_database)?;
    connection.pragma_update(None, "journal_mode", "wal").map_err(in_database)?;
    connection.pragma_update(None, "synchronous", "full").map_err(in_database)?;
    MIGRATIONS.to_latest(&mut connection).map_err(|source| in_migration(path, source))?;
    rows(&connection).map_err(in_database)
}

/// Opening is lazy, so damage shows only when something is read.
fn check(connection: &Connection) -> Result<(), rusqlite::Error> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(code, Some(verdict)))
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

fn in_migration(path: &Path, source: rusqlite_migration::Error) -> HivesError {
    let path = path.to_owned();
    match source {
        rusqlite_migration::Error::MigrationDefinition(
            MigrationDefinitionError::DatabaseTooFarAhead,
        ) => HivesError::Newer { path },
        rusqlite_migration::Error::RusqliteError { err, .. } => {
            HivesError::Database { path, source: err }
        }
        source => HivesError::Migration { path, source },
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Renames the database and its companions, so that nothing of them is lost.
fn move_aside(path: &Path) -> Result<PathBuf, HivesError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let with_suffix = |base: &Path, suffix: &str| {
        let mut name = OsString::from(base);
        name.push(suffix);
        PathBuf::from(name)
    };
    let aside = with_suffix(path, &format!(".damaged-{now}"));
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        match std::fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(HivesError::Stuck { path: from, source }),
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("beehives.db");
        (directory, path)
    }

    fn entries(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn migrations_can_be_applied() {
        MIGRATIONS.validate().unwrap();
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
    fn the_database_of_a_newer_program_is_refused_and_left_alone() {
        let (directory, path) = database();
        load(&path).unwrap();
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(load(&path), Err(HivesError::Newer { .. })));
        assert_eq!(entries(directory.path()), ["beehives.db"]);
    }

    #[test]
    fn a_damaged_database_is_moved_aside_and_replaced() {
        let whole_page = |byte: u8| vec![byte; 4096];
        let mut torn = {
            let (_directory, path) = database();
            load(&path).unwrap();
            std::fs::read(&path).unwrap()
        };
        torn.truncate(torn.len() - 4096);
        for damage in [b"not a database at all, but long enough".to_vec(), whole_page(0xff), torn] {
            let (directory, path) = database();
            std::fs::write(&path, &damage).unwrap();
            assert_eq!(load(&path).unwrap().local.as_str(), "local");
            let names = entries(directory.path());
            let aside = names.iter().find(|name| name.starts_with("beehives.db.damaged-"));
            let aside = directory.path().join(aside.expect("the damaged file is kept"));
            assert_eq!(std::fs::read(aside).unwrap(), damage);
        }
    }

    #[test]
    fn a_directory_in_the_way_is_an_error_and_stays() {
        let (_directory, path) = database();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(load(&path), Err(HivesError::Database { .. })));
        assert!(path.is_dir());
    }
}
